"""Guesses which column of a data set is which field of an example, by names and by the first rows."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.layouts import CONVERSATIONS
from gpg_vl.data.media import looks_like_media
from gpg_vl.data.read import COMMON_NAMES
from gpg_vl.data.sources import tables
from gpg_vl.errors import UserError

Cells = Mapping[str, Any]

_WORDS = {
    "choices": "choices options candidates alternatives",
    "answer": "answer answers gold solution truth gt label target response output completion",
    "prompt": "question prompt problem query instruction conversation conversations messages text input",
    "task": "task category subject topic skill",
    "id": "id idx uid index",
}
"""Words in column names, the most likely first; fields are assigned in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A field and its column.

    Example: `Guess(field="prompt", column="query", why="guessed by its name")`
    """

    field: str
    column: str
    why: str


def first_rows(source: str, limit: int) -> list[Cells]:
    """The first rows of a source, structs flattened into dotted names.

    Raises UserError if the source cannot be read, or holds no row that can.
    """
    names = {name for common in COMMON_NAMES.values() for name in common}
    names |= {word for words in _WORDS.values() for word in words.split()}
    cells = (
        dict(_flat(cells))
        for table in tables(source, names)
        for _, cells in table.rows()
        if not isinstance(cells, CellError)
    )
    rows: list[Cells] = list(islice(cells, limit))
    if not rows:
        raise UserError(
            f"{source} holds no row that can be read. At least one is needed. Check that it was written completely."
        )
    return rows


def _flat(cells: Cells) -> Iterator[tuple[str, Any]]:
    """Columns and their values; a struct that is not an image is split into its fields."""
    for name, value in cells.items():
        if isinstance(value, dict) and value and not looks_like_media(name, value):
            yield from ((f"{name}.{key}", part) for key, part in value.items())
        else:
            yield name, value


def guess_columns(rows: Sequence[Cells], declared: Mapping[str, str]) -> tuple[Guess, ...]:
    """The columns of the fields for which one is found, in the order of the fields.

    declared: what the user says, which is taken as it is. Raises UserError if there is no column for the question or the
    gold answer.
    """
    left = list(dict.fromkeys(n for row in rows for n in row))
    left = [name for name in left if name not in declared.values()]
    found = {
        field: Guess(field=field, column=column, why="as you said")
        for field, column in declared.items()
    }
    for field, fits in _FITS.items():
        if field in found:
            continue
        suited = [name for name in left if fits(name, [row[name] for row in rows if name in row])]
        guess = _choose(field, suited)
        if guess is not None:
            found[field] = guess
            left.remove(guess.column)

    # the last turn of a conversation may be the answer
    asked = found.get("prompt")
    if "answer" not in found and asked is not None and asked.column in CONVERSATIONS:
        found["answer"] = Guess(field="answer", column=asked.column, why="its last turn")

    for field in ("prompt", "answer"):
        if field not in found:
            what = "question" if field == "prompt" else "gold answer"
            raise UserError(
                f"None of the columns looks like the {what}: {', '.join(left) or '(none is left)'}. Say which it is: "
                f"--columns {field}=NAME."
            )
    return tuple(found[field] for field in COMMON_NAMES if field in found)


def _choose(field: str, suited: Sequence[str]) -> Guess | None:
    """The suitable column with the most likely word in its name."""
    exact = [name for name in COMMON_NAMES[field] if name in suited]
    if exact:
        return Guess(field=field, column=exact[0], why="by its name")
    if field == "images":
        return Guess(field=field, column=suited[0], why="by its content") if suited else None

    for word in _WORDS[field].split():
        named = [name for name in suited if word in _words_of(name)]
        if named:
            return Guess(field=field, column=min(named, key=len), why="guessed by its name")
    return None


def _words_of(name: str) -> list[str]:
    """Split names such as `gt_answer`, `GoldAnswer` and `reward.ground_truth` into lower-case words."""
    return [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


# ---- what the cells of a field may be


def _are_pictures(name: str, cells: Sequence[object]) -> bool:
    there = [cell for cell in cells if cell]
    return bool(there) and all(looks_like_media(name, cell) for cell in there)


def _are_choices(_: str, cells: Sequence[object]) -> bool:
    there = [cell for cell in cells if cell is not None]
    return bool(there) and all(
        isinstance(cell, list) and len(cell) > 1 and all(isinstance(one, str) for one in cell)
        for cell in there
    )


def _are_answers(_: str, cells: Sequence[object]) -> bool:
    return all(isinstance(cell, str | int | float) and cell != "" for cell in cells)


def _are_prompts(name: str, cells: Sequence[object]) -> bool:
    if _are_pictures(name, cells):
        return False
    return all(isinstance(cell, str | list) and bool(cell) for cell in cells)


def _are_names(_: str, cells: Sequence[object]) -> bool:
    return all(isinstance(cell, str) and len(cell) < 60 for cell in cells)


def _are_ids(_: str, cells: Sequence[object]) -> bool:
    return all(isinstance(cell, str | int) for cell in cells) and len(set(map(str, cells))) == len(
        cells
    )


_FITS: Mapping[str, Callable[[str, Sequence[object]], bool]] = {
    "images": _are_pictures,
    "choices": _are_choices,
    "answer": _are_answers,
    "prompt": _are_prompts,
    "task": _are_names,
    "id": _are_ids,
}
"""In the order in which the fields choose."""
