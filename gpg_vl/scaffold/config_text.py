"""Writes a config with comments for a data set, from its first rows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpg_vl.console import visible
from gpg_vl.data.read import folder_of, read_rows
from gpg_vl.errors import UserError
from gpg_vl.scaffold.columns import Cells, Guess, first_rows, guess_columns
from gpg_vl.scaffold.fitting_rewards import Fit, fitting_rewards
from gpg_vl.types import Example

ROWS = 64
"""Number of rows that are read."""
_SHOWN = 60
"""Maximum characters of a cell in a comment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The findings from the first rows of a data set."""

    source: str
    rows: Sequence[Cells]
    columns: Sequence[Guess]
    unused: Sequence[str]
    """Columns that are not used."""
    examples: Sequence[Example]
    root: Path | None
    """The folder that image paths are relative to, if it is not the folder of the data."""
    fits: Sequence[Fit]


def guess_from_rows(source: str, declared: dict[str, str]) -> Findings:
    """Read the first rows and guess. `declared`: fields whose column the user has set.

    Raises UserError if the rows cannot be read, or cannot be understood with these columns.
    """
    rows = first_rows(source, ROWS)
    columns = guess_columns(rows, declared)
    taken = {guess.column for guess in columns}
    unused = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in taken]

    mapping = {guess.field: guess.column for guess in columns}
    examples = []
    for row in read_rows(source, mapping, limit=ROWS):
        if not isinstance(row, Example):
            raise UserError(
                f"{row.source}: {row.message} Correct the row, or say which column is which with --columns FIELD=COLUMN."
            )
        examples.append(row)
    return Findings(
        source=source,
        rows=rows,
        columns=columns,
        unused=unused,
        examples=examples,
        root=_find_root(source, examples),
        fits=fitting_rewards(examples),
    )


def _find_root(source: str, examples: Sequence[Example]) -> Path | None:
    """The folder of the images if it is not that of the data; None if it is, or if no folder is found."""
    paths = [image for one in examples for image in one.images if isinstance(image, str)]
    folder = folder_of(source)
    if not paths or folder is None:
        return None
    near = [folder, folder / "images", folder.parent, folder.parent / "images", Path()]
    found = next((root for root in near if all((root / path).is_file() for path in paths)), folder)
    return None if found == folder else found


def write_config(findings: Findings, *, model: str, folder: str) -> str:
    """The text of the config. `model`: a folder or a name on the hub. `folder`: the run folder."""
    sections = (
        _head(findings),
        _model(model),
        _data(findings),
        _prompt(findings),
        _rollout(),
        _rewards(findings),
        _training(),
        _output(folder),
    )
    return "\n".join(line for section in sections for line in section) + "\n"


def _head(findings: Findings) -> Iterator[str]:
    number = len(findings.examples)
    yield f"# Written by gpg-vl init, which looked at the first {number} row(s) of {_text(findings.source)}."
    yield "# What is guessed says so: look at it, then"
    yield "#   gpg-vl data check THIS_FILE           every row, picture and prompt, before any weights are loaded"
    yield "#   gpg-vl train THIS_FILE --dry-run      the rewards on the gold answers, and the plan"
    yield "#   gpg-vl train THIS_FILE"
    yield "# gpg-vl config lists every other key with its default and meaning."


def _model(model: str) -> Iterator[str]:
    yield "model:"
    yield f"  path: {_text(model)}  # a checkpoint folder, or a name on the hub"
    yield "  # dtype: bfloat16  # on a GPU"


def _data(findings: Findings) -> Iterator[str]:
    yield "data:"
    yield f"  train: {_text(findings.source)}"
    if findings.root is not None:
        yield f"  root: {_text(str(findings.root))}  # guessed: the pictures of these rows are there"
    yield "  columns:  # our field: the column of the data"
    first = findings.rows[0]
    for guess in findings.columns:
        shown = _format_cell(first.get(guess.column))
        yield f"    {guess.field}: {_text(guess.column)}  # {guess.why}; in the first row {shown}"
    if findings.unused:
        yield f"    # not used: {', '.join(map(_text, findings.unused))}"
    if not any(one.images for one in findings.examples):
        yield "    # no column looks like a picture: the model is asked in text alone"


def _prompt(findings: Findings) -> Iterator[str]:
    """A template that shows the options, if the questions do not."""
    yield "prompt:"
    hidden = [one for one in findings.examples if one.choices and not _shows_choices(one)]
    if hidden:
        yield "  # guessed: the questions do not show their options, so the prompt does"
        yield '  template: "{prompt} Answer with one of: {choices}."'
    else:
        yield '  template: "{prompt}"  # say here how to answer, such as "{prompt} Answer with the letter alone."'


def _shows_choices(example: Example) -> bool:
    asked = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
    return all(choice in asked for choice in example.choices or ())


def _rollout() -> Iterator[str]:
    yield "rollout:"
    yield "  group_size: 8        # answers to each question; more find rarer right answers"
    yield "  max_new_tokens: 256  # the longest answer; one that is cut off is seldom right"


def _rewards(findings: Findings) -> Iterator[str]:
    number = len(findings.examples)
    yield "rewards:"
    if not findings.fits:
        yield "  # No built-in reward is sure to read these answers: vqa compares short texts, so look at what it"
        yield "  # makes of yours (gpg-vl rewards test vqa --data ...), or write one: my_rewards.py:my_function"
        yield "  weights: {vqa: 1.0}"
        return

    best, *others = findings.fits
    yield f"  # guessed: {best.why}, and it gives all {number} gold answers full marks"
    for fit in others:
        yield f"  # {fit.name} does so too: {fit.why}"
    yield f"  weights: {{{best.name}: 1.0}}"


def _training() -> Iterator[str]:
    yield "train:"
    yield "  prompts_per_step: 8    # groups in a step; a multiple of the number of processes"
    yield "  epochs: 1"
    yield "  learning_rate: 1.0e-6  # of all weights; with model.lora_rank about ten times as much"


def _output(folder: str) -> Iterator[str]:
    yield "output:"
    yield f"  folder: {_text(folder)}"


def _text(value: str) -> str:
    """A text in YAML on one line."""
    quoted = json.dumps(visible(value), ensure_ascii=False)
    is_plain = value.replace("_", "").replace("-", "").replace("/", "").replace(".", "").isalnum()
    return value if is_plain and not value[0].isdigit() and value[0] not in "-." else quoted


def _format_cell(cell: object) -> str:
    """The beginning of a cell, on one line."""
    if isinstance(cell, bytes) or (isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes)):
        return "the bytes of a file"
    text = " ".join(visible(cell if isinstance(cell, str) else repr(cell)).split())
    return json.dumps(text if len(text) <= _SHOWN else text[:_SHOWN] + "...", ensure_ascii=False)
