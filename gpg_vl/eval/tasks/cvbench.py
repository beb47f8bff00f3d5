"""CV-Bench (nyu-visionx/CV-Bench, Apache-2.0): counting, relations, depth and distance as multiple choice.

2638 rows: Count 788, Relation 650, Depth 600, Distance 600; images of ADE20K, COCO (2D) and Omni3D (3D). From the
Cambrian-1 paper, arXiv:2406.16860. Two single numbers are in use, and neither may be compared with the other:

- `official`, the data card's formula: half the mean of the ADE20K and COCO accuracies plus half the Omni3D accuracy;
- `micro`, right answers over all rows, which GPG, VisualThinker and lmms-eval print as the total.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any, NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.eval.statistics import Aggregate, Floats, Sample
from gpg_vl.eval.tables import SUFFIXES, json_columns, read_rows
from gpg_vl.eval.task import Doc, PromptStyle, Score, Task
from gpg_vl.rewards.choice import match_choice
from gpg_vl.rewards.parse import extract_answer
from gpg_vl.types import Example

KINDS = ("2D", "3D")
TASKS = ("Count", "Relation", "Depth", "Distance")
SOURCES = ("ADE20K", "COCO", "Omni3D")
REQUIRED = ("type", "task", "choices", "answer", "prompt", "source")
LAYOUTS = (
    ("test_2d.parquet", "test_3d.parquet"),
    ("test.parquet",),
    ("test_2d.jsonl", "test_3d.jsonl"),
    ("test.jsonl",),
)

_CAMBRIAN = PromptStyle(
    template="{prompt}\nAnswer with the option's letter from the given choices directly.", max_new_tokens=512
)
PROMPTS = {
    "official": _CAMBRIAN,
    "cambrian": _CAMBRIAN,
    "lmms": PromptStyle(
        template="Note: You only need to respond with {letters} without providing any additional "
        "information.\n\n{prompt}",
        system="You are a helpful assistant.",
        max_new_tokens=1024,
    ),
    "visualthinker": PromptStyle(
        template="{prompt}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> "
        "tags.",
        max_new_tokens=1024,
    ),
    # For base checkpoints: bare text without roles, which ends inside the reasoning.
    # NOTE: the original has the image and then the word <image>; a mark stands for the image, so here the word is lost.
    "visualthinker_base": PromptStyle(
        template="<image>A conversation between User and Assistant. The user asks a question about the image, and the "
        "Assistant solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer.\nUser: {prompt} \nAssistant: Let me solve this step by step.\n",
        chat="plain",
        prefill="<think>",
        max_new_tokens=1024,
    ),
    "plain": PromptStyle(template="{prompt}", max_new_tokens=1024),
}


def cvbench() -> Task:
    """The task, for `python -m gpg_vl.eval cvbench`."""
    return Task(
        name="cvbench",
        version="1",
        published_size=2638,
        description="CV-Bench: 2D counting and relations, 3D depth and distance; multiple choice with 2 to 6 options",
        source="https://huggingface.co/datasets/nyu-visionx/CV-Bench (Apache-2.0)",
        files=data_files,
        load=load,
        # The benchmark owner's question. Models trained to reason are asked with `visualthinker` or their own style.
        prompts=PROMPTS,
        default_prompt="official",
        scorers={"strict": strict, "official": cambrian, "cambrian": cambrian},
        default_scorers=("strict", "official"),
        gold_responses=gold_responses,
        gold_label=lambda doc: ascii_uppercase[_gold(doc)],
        chance=lambda doc: 1 / len(_choices(doc)),
        aggregates={
            "official": official,
            "micro": Sample.mean,
            "2D": two_d,
            "3D": three_d,
            **{name: _mean_of("task", name) for name in TASKS},
            **{name: _mean_of("source", name) for name in SOURCES},
        },
        groups=("type", "task", "source"),
        strata=("source", "task"),
        resample_within=("source",),
    )


# --- aggregates: accuracies in [0, 1], one per resample -------------------------------------------------------------


def two_d(sample: Sample) -> Floats:
    """Mean of the two source accuracies, each source weighing the same (data card)."""
    return (sample.mean(source="ADE20K") + sample.mean(source="COCO")) / 2


def three_d(sample: Sample) -> Floats:
    return sample.mean(source="Omni3D")


def official(sample: Sample) -> Floats:
    """1/2 ((ADE20K + COCO)/2 + Omni3D): the data card, and Cambrian-1 appendix C."""
    return (two_d(sample) + three_d(sample)) / 2


def _mean_of(column: str, value: str) -> Aggregate:
    return lambda sample: sample.mean(**{column: value})


# --- scorers --------------------------------------------------------------------------------------------------------


def strict(doc: Doc, response: str, prefilled_think: bool) -> Score:
    """The last answer after the reasoning, matched exactly and unambiguously: the rule that training rewards use."""
    extracted = extract_answer(response, prefilled_think=prefilled_think)
    notes = ", ".join(flag for flag in ("unclosed_think", "truncated", "several") if getattr(extracted, flag))
    picked = None if extracted.candidate is None else match_choice(extracted.candidate, _choices(doc))
    if picked is None:
        return Score(score=0.0, answered=False, parsed=None, notes=notes)
    return Score(score=float(picked == _gold(doc)), answered=True, parsed=ascii_uppercase[picked], notes=notes)


def cambrian(doc: Doc, response: str, prefilled_think: bool) -> Score:
    """The first character after "answer is", as the Cambrian-1 evaluation scripts for CV-Bench read it.

    Kept with its quirks, for comparison with published numbers: "answer is: b" leaves the colon, the article "a" is
    option A, and tags are not looked at. `prefilled_think` therefore changes nothing.
    """
    text = response.lower().strip()
    for keyword in ("answer is", "answer is:", "answer:"):
        text = text.rpartition(keyword)[2].strip()
    text = text.rstrip("." if doc.columns["type"] == "2D" else ".:,").lstrip("(").rstrip(")")
    first = text[:1]
    letters = ascii_uppercase[: len(_choices(doc))].lower()
    option_text = doc.columns["type"] == "3D" and first == _choices(doc)[_gold(doc)].lower()
    right = first == letters[_gold(doc)] or (first != "" and option_text)
    answered = right or (first != "" and first in letters)
    return Score(score=float(right), answered=answered, parsed=first.upper() or None)


def gold_responses(doc: Doc) -> tuple[str, ...]:
    """`(C)`, and the option's text unless that is a letter itself or the text of two options."""
    text, texts = _choices(doc)[_gold(doc)], [choice.strip().casefold() for choice in _choices(doc)]
    names_it = texts.count(text.strip().casefold()) == 1 and not (len(text.strip()) == 1 and text.strip().isalpha())
    return (doc.gold, text) if names_it else (doc.gold,)


def _choices(doc: Doc) -> tuple[str, ...]:
    assert doc.example.choices is not None, doc.doc_id
    return doc.example.choices


def _gold(doc: Doc) -> int:
    """Index of the right option; `load` has checked that the gold is a letter in parentheses."""
    return ascii_uppercase.index(doc.gold[1])


# --- data -----------------------------------------------------------------------------------------------------------


def data_files(path: Path) -> tuple[Path, ...]:
    """The tables at `path`: the file itself, or what a folder holds in either layout. Raises UserError."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise UserError(
            f"There is no CV-Bench data at {path}. Give a .parquet or .jsonl file, or the folder of the "
            "downloaded data set."
        )
    for layout in LAYOUTS:
        present = [name for name in layout if (path / name).is_file()]
        if present == list(layout):
            return tuple(path / name for name in layout)
        if present:
            raise UserError(
                f"{path} has {present[0]} but not {next(n for n in layout if n not in present)}, half of "
                "CV-Bench. Fetch the other half, or give the path of the one file to evaluate it alone."
            )
    tables = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(tables) != 1:
        found = ", ".join(file.name for file in tables) or "no .parquet and no .jsonl file"
        raise UserError(
            f"{path} holds {found}. A CV-Bench folder holds "
            f"{' or '.join(' + '.join(layout) for layout in LAYOUTS)}, or one table of another name. Give "
            "the path of the file."
        )
    return (tables[0],)


def load(path: Path, *, images: bool = True) -> list[Doc]:
    """The rows at `path` in order, numbered from 0; 2D before 3D. Raises UserError that names file, row and column.

    Images are the bytes of the `image` column, or files below the folder of the table (`image` as a path, else
    `filename`). Whether an image file can be read is found out when it is needed.
    """
    without = () if images else ("image",)
    rows = (
        (file, number, row)
        for file in data_files(path)
        for number, row in enumerate(read_rows(file, required=REQUIRED, without=without))
    )
    docs = [_doc(doc_id, row, _Place(file, number), images) for doc_id, (file, number, row) in enumerate(rows)]
    if not docs:
        raise UserError(f"{path} has no rows. CV-Bench has 2638. Give the right file, or fetch it again.")
    return docs


class _Place(NamedTuple):
    """Where a row stands, for messages. Rows count from 0 in their file."""

    file: Path
    number: int

    def wrong(self, column: str, value: object, allowed: str) -> UserError:
        return UserError(
            f"{self.file}, row {self.number}, column {column!r}: the value is {value!r:.80}. Allowed is "
            f"{allowed}. Correct the row, or fetch the file again."
        )


def _doc(doc_id: int, row: Mapping[str, Any], place: _Place, images: bool) -> Doc:
    choices = row["choices"]
    texts = isinstance(choices, list) and all(isinstance(text, str) and text.strip() for text in choices)
    if not (texts and 2 <= len(choices) <= 26):
        raise place.wrong("choices", choices, "a list of 2 to 26 option texts")
    golds = tuple(f"({letter})" for letter in ascii_uppercase[: len(choices)])
    for column, allowed in (("type", KINDS), ("task", TASKS), ("source", SOURCES), ("answer", golds)):
        if row[column] not in allowed:
            raise place.wrong(column, row[column], ", ".join(allowed))
    if not (isinstance(row["prompt"], str) and row["prompt"].strip()):
        raise place.wrong("prompt", row["prompt"], "a text")
    columns = json_columns({name: value for name, value in row.items() if name != "image"})
    example = Example(
        id=str(doc_id),
        images=(_image(row, place),) if images else (),
        prompt=row["prompt"],
        answer=row["answer"],
        choices=tuple(choices),
        task=row["task"],
        meta=columns,
    )
    return Doc(doc_id=doc_id, example=example, gold=row["answer"], columns=columns)


def _image(row: Mapping[str, Any], place: _Place) -> str | bytes:
    """The encoded image, or the absolute path of a file below the folder of the table."""
    cell = row.get("image")
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    name = cell or row.get("filename")
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise place.wrong(
            "image" if cell else "filename", name, f"an encoded image, or a path below {place.file.parent}"
        )
    return str((place.file.parent / name).absolute())
