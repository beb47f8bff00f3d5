"""What a model said, on disk: the log that a run appends to and resumes from, and files of others that are scored.

A log (`predictions.jsonl`) has one record per response, appended and flushed as it comes; its key is (task, doc_id,
prompt_sha, gen_sha), so a changed prompt, checkpoint or decoding setting is a new key and nothing stale is reused.
Other files need only `{"doc_id": 0, "response": "..."}` per line, and `"sample": 0` to K-1 where docs were answered K
times; `{"doc_id": 0, "resps": [["..."]]}`, the samples file of lmms-eval, is read too. Responses are stored as they
came, never cleaned.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.types import Example, FinishReason

_SYNC_EVERY = (
    1.0  # seconds; every record is flushed to the system, and the disk is waited for this often
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer of a model.

    Example: `Response(text="two organs</think>(C)", finish_reason="stop", n_tokens=9, prefill="<think>")`
    """

    text: str
    """The completion as decoded, without the prefill."""
    finish_reason: FinishReason | None = None
    """None: not recorded (a file of others)."""
    n_tokens: int | None = None
    """Completed tokens, the end token included; None: not recorded."""
    prefill: str = ""
    """What the prompt had already written of the answer."""
    mask: Mapping[str, Any] | None = None
    """A segmentation that a later stage made of the answer, as COCO run lengths; only files of others have it."""

    @property
    def prefilled_think(self) -> bool:
        """True if the text starts inside a reasoning block."""
        return self.prefill.rfind("<think>") > self.prefill.rfind("</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why there is no answer, such as a damaged image: something about the doc, not about the program."""

    reason: str


Answers = tuple[Response, ...] | Failed
"""The responses to one example, as many as the settings' `repeats`."""
Responder = Callable[[Sequence[Example]], Iterator[Answers]]
"""Answers rendered examples in order: `gpg_vl.eval.generate` makes one of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One response to one doc, or why there is none.

    Example: `Prediction(doc_id=4, response=Response(...))`
    """

    doc_id: int
    sample: int = 0
    """Which of the repeated answers to the doc."""
    response: Response
    error: str | None = None
    """Why the response is void; such a row is scored 0, counted, and asked again by the next run."""


class Key(NamedTuple):
    """What makes a logged response reusable."""

    task: str
    doc_id: int
    prompt_sha: str
    gen_sha: str


def predictions_of(doc_id: int, answers: Answers, repeats: int) -> tuple[Prediction, ...]:
    """The answers to a doc; a failure voids every one of them. Raises ValueError for another number of answers."""
    if isinstance(answers, Failed):
        void = Response(text="", n_tokens=0)
        return tuple(
            Prediction(doc_id=doc_id, sample=i, response=void, error=answers.reason)
            for i in range(repeats)
        )
    if len(answers) != repeats:
        raise ValueError(f"Doc {doc_id} was answered {len(answers)} times instead of {repeats}.")
    return tuple(
        Prediction(doc_id=doc_id, sample=i, response=response) for i, response in enumerate(answers)
    )


def to_record(key: Key, prediction: Prediction, doc: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the log. `doc` is what scorers need (`gpg_vl.eval.records`), so that the log outlives the data."""
    response = prediction.response
    return {
        "task": key.task,
        "doc_id": key.doc_id,
        "prompt_sha": key.prompt_sha,
        "gen_sha": key.gen_sha,
        "sample": prediction.sample,
        "response": response.text,
        "prefill": response.prefill,
        "finish_reason": "error" if prediction.error is not None else response.finish_reason,
        "n_tokens": response.n_tokens,
        "error": prediction.error,
        "doc": dict(doc),
    }


def read_log(file: Path) -> dict[Key, Prediction]:
    """The last record of every key; {} if there is no file. A torn last line is ignored.

    Raises UserError for any other line that is not a record, naming its number.
    """
    if not file.exists():
        return {}
    return {
        _key(file, line, row): _prediction(file, line, row, prefill="")
        for line, row in json_rows(file, torn_end=True)
    }


@contextmanager
def appending(file: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends a record and flushes it. What a stopped writer left half-written is cut off first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_end(file)
    with file.open("a", encoding="utf-8") as stream:
        synced = time.monotonic()

        def append(record: Mapping[str, Any]) -> None:
            nonlocal synced
            stream.write(json.dumps(record, allow_nan=False) + "\n")
            stream.flush()
            if time.monotonic() - synced >= _SYNC_EVERY:
                os.fsync(stream.fileno())
                synced = time.monotonic()

        try:
            yield append
        finally:
            stream.flush()
            os.fsync(stream.fileno())


def read_predictions(
    file: Path,
    *,
    task: str,
    known: Collection[int],
    needed: Collection[int],
    prefill: str = "",
    repeats: int = 1,
    partial: bool = False,
) -> dict[int, tuple[Prediction, ...]]:
    """The predictions of the docs in `needed`, `repeats` each, from a log or from lines `{"doc_id": 0, "response": ".."}`.

    `known` are all doc ids of the benchmark; rows of known docs that are not needed (a limited run) are left out.
    `prefill` is assumed where a row does not record its own. In a log the last record of a key wins, and any record
    wins over an error; another second row for a sample of a doc is an error. Raises UserError for a malformed line, an
    unknown, doubled or missing doc or sample, or another task. With `partial` a needed doc may be missing, and is left out
    if one of its samples is; not all of them may.
    """
    found: dict[tuple[int, int], tuple[int, Key | None, Prediction]] = {}
    for line, row in json_rows(file, torn_end=False):
        if row.get("task", task) != task:
            raise UserError(
                f"{file}, line {line}: the row is of the task {row['task']!r}, but {task!r} is evaluated. "
                f"Give a file of {task}."
            )
        key = _key(file, line, row) if "gen_sha" in row else None
        for prediction in _answers(file, line, row, prefill):
            place = prediction.doc_id, prediction.sample
            _check_place(file, line, prediction, known, repeats)
            if place in found and not _replaces(key, *found[place][1:]):
                why = "" if key is None else " with another prompt, checkpoint or setting"
                raise UserError(
                    f"{file}, line {line}: {_name(*place, repeats)} was answered in line {found[place][0]} "
                    f"already{why}. One response per doc is allowed, or --repeats of them with their number as "
                    f"'sample'. Remove one of the two."
                )
            found[place] = (line, key, prediction)
    wanted = [(doc_id, sample) for doc_id in needed for sample in range(repeats)]
    missing = sorted(set(wanted) - found.keys())
    if partial:
        lacking = {doc_id for doc_id, _ in missing}
        needed = [doc_id for doc_id in needed if doc_id not in lacking]
    if missing and not (partial and needed):
        first = ", ".join(str(d) if repeats == 1 else f"{d} sample {i}" for d, i in missing[:5])
        raise UserError(
            f"{file} has no response for {len(missing)} of {len(wanted)} {'docs' if repeats == 1 else 'samples'} "
            f"(doc_id {first}{', ...' if len(missing) > 5 else ''}). Every doc counts. Generate the missing ones, or "
            "score those that are there, at most N, with --limit N."
        )
    return {
        doc_id: tuple(found[doc_id, sample][2] for sample in range(repeats)) for doc_id in needed
    }


def _name(doc_id: int, sample: int, repeats: int) -> str:
    return f"doc_id {doc_id}" if repeats == 1 else f"sample {sample} of doc_id {doc_id}"


def _check_place(
    file: Path, line: int, prediction: Prediction, known: Collection[int], repeats: int
) -> None:
    """Raises UserError for a doc that does not exist or a sample that nobody asked for."""
    if prediction.doc_id not in known:
        raise UserError(
            f"{file}, line {line}: there is no doc_id {prediction.doc_id} in the data, which has {len(known)} "
            "docs with row numbers from 0. Give the data that the predictions were made for."
        )
    if not 0 <= prediction.sample < repeats:
        raise UserError(
            f"{file}, line {line}: the row is sample {prediction.sample} of doc_id {prediction.doc_id}, but --repeats "
            f"is {repeats}, so samples are numbered 0 to {repeats - 1}. Give --repeats the number of answers per doc."
        )


def _answers(file: Path, line: int, row: Mapping[str, Any], prefill: str) -> list[Prediction]:
    """The predictions of a row: one, or as many as lmms-eval's `resps` holds."""
    if "resps" not in row or "response" in row:
        return [_prediction(file, line, row, prefill)]
    texts = row["resps"]
    while isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], list):
        texts = texts[0]
    texts = [
        text[0] if isinstance(text, list) and len(text) == 1 else text for text in texts or [None]
    ]
    rows = ({**row, "response": text, "sample": sample} for sample, text in enumerate(texts))
    return [_prediction(file, line, one, prefill) for one in rows]


def _replaces(key: Key | None, earlier_key: Key | None, earlier: Prediction) -> bool:
    """True if a second record for a doc is a log's way of asking again, and not a second answer."""
    return key is not None and (key == earlier_key or earlier.error is not None)


def json_rows(file: Path, *, torn_end: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line. `torn_end`: a broken rest after the last newline is skipped."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"The predictions file {file} cannot be read: {error.strerror}. Give the path of a .jsonl file."
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parsed(line)
        if isinstance(row, dict):
            yield number, row
        elif not (torn_end and number == len(lines)):
            raise UserError(
                f"{file}, line {number}: the line is not a JSON object: {line[:60]!r}. Every line must "
                'look like {"doc_id": 0, "response": "..."}. Correct or remove it.'
            )


def _parsed(line: bytes) -> object:
    """The JSON value of a line, None if it has none."""
    try:
        return json.loads(line)
    except (
        ValueError,
        RecursionError,
    ):  # ValueError: no JSON, no UTF-8, or a number of absurd length
        return None


def _prediction(file: Path, line: int, row: Mapping[str, Any], prefill: str) -> Prediction:
    error = _field(file, line, row, "error", (str, type(None)), None)
    text = "" if error is not None else _field(file, line, row, "response", (str,))
    finish = _field(file, line, row, "finish_reason", (str, type(None)), None)
    if finish not in ("stop", "length", "error", None):
        raise UserError(
            f"{file}, line {line}: finish_reason is {finish!r}. Allowed are 'stop', 'length' and null "
            "(unknown). Correct it or leave it out."
        )
    if finish == "error" and error is None:
        error = "no reason was recorded"
    response = Response(
        text=text,
        finish_reason=None if finish == "error" else finish,
        n_tokens=_field(file, line, row, "n_tokens", (int, type(None)), None),
        prefill=_field(file, line, row, "prefill", (str,), prefill),
        mask=_field(file, line, row, "mask", (dict, type(None)), None),
    )
    doc_id, sample = (
        _field(file, line, row, "doc_id", (int,)),
        _field(file, line, row, "sample", (int,), 0),
    )
    return Prediction(doc_id=doc_id, sample=sample, response=response, error=error)


def _key(file: Path, line: int, row: Mapping[str, Any]) -> Key:
    task, prompt, generation = (
        _field(file, line, row, name, (str,)) for name in ("task", "prompt_sha", "gen_sha")
    )
    return Key(
        task=task,
        doc_id=_field(file, line, row, "doc_id", (int,)),
        prompt_sha=prompt,
        gen_sha=generation,
    )


_REQUIRED = object()


def _field(
    file: Path,
    line: int,
    row: Mapping[str, Any],
    name: str,
    kinds: tuple[type, ...],
    default: object = _REQUIRED,
) -> Any:
    """The value of a field, checked. Raises UserError that names file, line and field."""
    value = row.get(name, default)
    allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    if value is _REQUIRED:
        raise UserError(
            f"{file}, line {line}: there is no {name!r} in {sorted(row)}. It must be there, as {allowed}. Add it."
        )
    if not isinstance(value, kinds) or isinstance(
        value, bool
    ):  # True is an int to Python, but it is no row number
        raise UserError(
            f"{file}, line {line}: {name!r} is {value!r:.60}. Allowed is {allowed}. Correct it."
        )
    return value


def _cut_torn_end(file: Path) -> None:
    """Make the file end with a whole line, so that the next record starts a line of its own."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if isinstance(_parsed(content[end:]), dict):
            stream.write(b"\n")  # whole after all, only its newline is missing
        else:
            stream.truncate(end)
