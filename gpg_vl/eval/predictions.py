"""Predictions on disk: the log to which a run appends and from which it resumes, and other files that are scored.

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

MAX_LINE = 64 << 20
"""Maximum bytes of a line; a longer one is refused before it is read into memory."""
_SYNC_EVERY = 1.0
"""Seconds between fsyncs. Every record is flushed to the system, but synced to the disk only this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer of a model.

    Example: `Response(text="two organs</think>(C)", finish_reason="stop", n_tokens=9, prefill="<think>")`
    """

    text: str
    """The completion as decoded, without the prefill."""
    finish_reason: FinishReason | None = None
    """None: not recorded (in a file from another program)."""
    n_tokens: int | None = None
    """Number of completion tokens, including the end token; None: not recorded."""
    prefill: str = ""
    """The beginning of the answer that the prompt already contains."""
    mask: Mapping[str, Any] | None = None
    """A segmentation that a later stage made from the answer, as COCO run lengths; only files from other programs have
    it."""

    @property
    def prefilled_think(self) -> bool:
        """True if the text starts inside a reasoning block."""
        return self.prefill.rfind("<think>") > self.prefill.rfind("</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why there is no answer: a problem of the doc, such as a damaged image, and not of the program."""

    reason: str


Answers = tuple[Response, ...] | Failed
"""The responses to one example, as many as the settings' `repeats`."""
Responder = Callable[[Sequence[Example]], Iterator[Answers]]
"""A function that answers rendered examples in order; `gpg_vl.eval.generate` makes one from a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One response to one doc, or why there is none.

    Example: `Prediction(doc_id=4, response=Response(...))`
    """

    doc_id: int
    sample: int = 0
    """The number of the answer among the repeated answers to the doc."""
    response: Response
    error: str | None = None
    """Why there is no valid response; such a row scores 0, is counted, and is generated again by the next run."""


class Key(NamedTuple):
    """The key under which a logged response can be reused."""

    task: str
    doc_id: int
    prompt_sha: str
    gen_sha: str


def predictions_of(doc_id: int, answers: Answers, repeats: int) -> tuple[Prediction, ...]:
    """The predictions of a doc; a failure makes all of them errors. Raises ValueError for another number of answers."""
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
    """A line of the log. `doc` has everything that scorers need (`gpg_vl.eval.doc_json`), so the log can be scored without
    the data."""
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
    """The last record of every key; {} if there is no file. An incomplete last line is ignored.

    Raises UserError for any other line that is not a record, naming its number.
    """
    if not file.exists():
        return {}
    lines = (_Line(file, *numbered) for numbered in json_rows(file, torn_end=True))
    return {_key(line): _prediction(line, prefill="") for line in lines}


@contextmanager
def appending(file: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that appends a record and flushes it. First removes an incomplete last line of an interrupted
    writer."""
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
    found: dict[tuple[int, int], _Found] = {}
    for line in (_Line(file, *numbered) for numbered in json_rows(file, torn_end=False)):
        if line.row.get("task", task) != task:
            raise line.wrong(
                f"the row is of the task {line.row['task']!r}, but {task!r} is evaluated. "
                f"Give a file of {task}."
            )
        key = _key(line) if "gen_sha" in line.row else None
        for prediction in _answers(line, prefill):
            _check_place(line, prediction, known, repeats)
            place = prediction.doc_id, prediction.sample
            if place in found and not _replaces(key, found[place]):
                why = "" if key is None else " with another prompt, checkpoint or setting"
                raise line.wrong(
                    f"{_name(*place, repeats)} was answered in line {found[place].line} already{why}. "
                    "One response per doc is allowed, or --repeats of them with their number as "
                    "'sample'. Remove one of the two."
                )
            found[place] = _Found(line.number, key, prediction)

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
        doc_id: tuple(found[doc_id, sample].prediction for sample in range(repeats))
        for doc_id in needed
    }


def _name(doc_id: int, sample: int, repeats: int) -> str:
    return f"doc_id {doc_id}" if repeats == 1 else f"sample {sample} of doc_id {doc_id}"


_REQUIRED = object()


class _Line(NamedTuple):
    """A row of a file, for messages that name the line."""

    file: Path
    number: int
    row: Mapping[str, Any]

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.file}, line {self.number}: {what}")

    def field(self, name: str, *kinds: type, default: object = _REQUIRED) -> Any:
        """The value of a field, of one of these kinds. Raises UserError that names the field."""
        value = self.row.get(name, default)
        allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        if value is _REQUIRED:
            raise self.wrong(
                f"there is no {name!r} in {sorted(self.row)}. It must be there, as {allowed}. "
                "Add it."
            )
        # True is an int to Python, but it is no row number.
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.wrong(f"{name!r} is {value!r:.60}. Allowed is {allowed}. Correct it.")
        return value


class _Found(NamedTuple):
    """A prediction with the number of its line, and its key if the line is of a log."""

    line: int
    key: Key | None
    prediction: Prediction


def _replaces(key: Key | None, earlier: _Found) -> bool:
    """True if a second record for a doc is a repeated attempt in a log, and not a second answer."""
    return key is not None and (key == earlier.key or earlier.prediction.error is not None)


def _check_place(line: _Line, prediction: Prediction, known: Collection[int], repeats: int) -> None:
    """Raises UserError for an unknown doc or an unexpected sample number."""
    if prediction.doc_id not in known:
        raise line.wrong(
            f"there is no doc_id {prediction.doc_id} in the data, which has {len(known)} docs with "
            "row numbers from 0. Give the data that the predictions were made for."
        )
    if not 0 <= prediction.sample < repeats:
        raise line.wrong(
            f"the row is sample {prediction.sample} of doc_id {prediction.doc_id}, but --repeats is "
            f"{repeats}, so samples are numbered 0 to {repeats - 1}. Give --repeats the number of "
            "answers per doc."
        )


def _answers(line: _Line, prefill: str) -> list[Prediction]:
    """The predictions of a row: one, or as many as lmms-eval's `resps` holds."""
    if "resps" not in line.row or "response" in line.row:
        return [_prediction(line, prefill)]
    texts = line.row["resps"]
    while isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], list):
        texts = texts[0]
    texts = [
        text[0] if isinstance(text, list) and len(text) == 1 else text for text in texts or [None]
    ]
    rows = ({**line.row, "response": text, "sample": sample} for sample, text in enumerate(texts))
    return [_prediction(line._replace(row=row), prefill) for row in rows]


def json_rows(file: Path, *, torn_end: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line. `torn_end`: a broken rest after the last newline is skipped."""
    for number, line in _numbered_lines(file):
        if not line.strip():
            continue
        row = _parse_json(line)
        if isinstance(row, dict):
            yield number, row
        elif line.endswith(b"\n") or not torn_end:
            raise UserError(
                f"{file}, line {number}: the line is not a JSON object: {line[:60]!r}. Every line must "
                'look like {"doc_id": 0, "response": "..."}. Correct or remove it.'
            )


def _numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1; one at a time, none longer than `MAX_LINE`."""
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{file}, line {number}: the line is longer than {MAX_LINE >> 20} MiB. Shorter lines are allowed. "
                        "Shorten or remove it."
                    )
                yield number, line
    except OSError as error:
        raise UserError(
            f"The predictions file {file} cannot be read: {error.strerror}. Give the path of a .jsonl file."
        ) from None


def _parse_json(line: bytes) -> object:
    """The JSON value of a line, None if it has none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or an extremely long number
        return None


def _prediction(line: _Line, prefill: str) -> Prediction:
    null = type(None)
    error = line.field("error", str, null, default=None)
    finish = line.field("finish_reason", str, null, default=None)
    if finish not in ("stop", "length", "error", None):
        raise line.wrong(
            f"finish_reason is {finish!r}. Allowed are 'stop', 'length' and null (unknown). "
            "Correct it or leave it out."
        )
    if finish == "error" and error is None:
        error = "no reason was recorded"

    response = Response(
        text="" if line.row.get("error") is not None else line.field("response", str),
        finish_reason=None if finish == "error" else finish,
        n_tokens=line.field("n_tokens", int, null, default=None),
        prefill=line.field("prefill", str, default=prefill),
        mask=line.field("mask", dict, null, default=None),
    )
    return Prediction(
        doc_id=line.field("doc_id", int),
        sample=line.field("sample", int, default=0),
        response=response,
        error=error,
    )


def _key(line: _Line) -> Key:
    return Key(
        task=line.field("task", str),
        doc_id=line.field("doc_id", int),
        prompt_sha=line.field("prompt_sha", str),
        gen_sha=line.field("gen_sha", str),
    )


def _cut_torn_end(file: Path) -> None:
    """Make the file end with a complete line, so that the next record starts on a new line."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if isinstance(_parse_json(content[end:]), dict):
            stream.write(b"\n")  # the record is complete, only its newline is missing
        else:
            stream.truncate(end)
