"""Reads the order file, which lists the rows in the order in which they are drawn, by ids or by numbers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean
from gpg_vl.types import Example

_SHOWN = 5
"""Maximum number of entries named in a message."""
_NEAR = 1000
"""Number of known ids that an unknown one is compared with."""


def read_order(file: Path, examples: Sequence[Example]) -> np.ndarray:
    """The numbers of the rows, in the order of the file: as many as it lists.

    A `.json` file is a list of ids, or of row numbers from 0; any other file has one id per line, and empty
    lines are ignored. With several sets an id is `SOURCE/ID`. Rows are read only to find ids, and not at all for numbers.

    Raises UserError if the file cannot be read, lists nothing, or lists an unknown row, or a row twice.
    """
    listed = _read_entries(file)
    several = bool(examples[0].source)
    if isinstance(listed[0], int):
        numbers = _check_numbers(file, listed, len(examples), several=several)
    else:
        numbers = _find_ids(file, listed, examples, several=several)
    _refuse_repeated(file, listed, numbers)
    return np.array(numbers, np.uint32)


def _read_entries(file: Path) -> list[int] | list[str]:
    """What the file lists, of one kind. Raises UserError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.order is {str(file)!r}, which cannot be read: {error}. It must be a file of ids, one a line, or a JSON list. "
            f"Give the path of one, or leave data.order out to draw in a seeded order."
        ) from None

    listed = _parse_json(file, text) if file.suffix == ".json" else _split_lines(text)
    if not listed:
        raise UserError(
            f"data.order is {str(file)!r}, which lists no row. At least one is needed. Check that it was written completely."
        )
    return listed


def _split_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _parse_json(file: Path, text: str) -> list[int] | list[str]:
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"data.order is {str(file)!r}, which is not JSON: {error}. Write a list of ids or of row numbers, or ids one a line "
            f"into a file of another ending."
        ) from None
    kinds = {type(entry) for entry in listed} if isinstance(listed, list) else {type(listed)}
    if not isinstance(listed, list) or not (kinds <= {int} or kinds <= {str}):
        given = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(
            f"data.order is {str(file)!r}, which holds {given}. A list of ids (texts) or a list of row numbers (from 0) is "
            f'allowed. Write ["7", "12"] or [7, 12].'
        )
    return listed


def _check_numbers(file: Path, listed: Sequence[int], rows: int, *, several: bool) -> Sequence[int]:
    if several:
        raise UserError(
            f"data.order is {str(file)!r}, a list of row numbers, but data.sources names several sets, each with a row 0. Ids "
            f"are allowed there, with the name of their source in front. Write SOURCE/ID."
        )
    unknown = [number for number in listed if not 0 <= number < rows]
    if unknown:
        raise UserError(
            f"data.order is {str(file)!r}, which lists {len(unknown)} row number(s) that there are not: {_name(unknown)}. The "
            f"data has the rows 0 to {rows - 1}. Correct the list, or the data."
        )
    return listed


def _find_ids(
    file: Path, listed: Sequence[str], examples: Iterable[Example], *, several: bool
) -> list[int]:
    wanted = set(listed)
    places: dict[str, int] = {}
    near: list[str] = []
    for number, example in enumerate(examples):
        name = f"{example.source}/{example.id}" if several else example.id
        if name in wanted:
            places[name] = number
        elif len(near) < _NEAR:
            near.append(name)

    unknown = [name for name in listed if name not in places]
    if unknown:
        form = " Each is SOURCE/ID, because data.sources names several sets." if several else ""
        # do not list all names of a large set
        advice = did_you_mean(unknown[0], near).split("Known:")[0]
        raise UserError(
            f"data.order is {str(file)!r}, which lists {len(unknown)} id(s) that the data does not have: {_name(unknown)}. "
            f"Ids of its rows are allowed.{form} {advice}Correct the list, or the data."
        )
    return [places[name] for name in listed]


def _refuse_repeated(
    file: Path, listed: Sequence[int] | Sequence[str], numbers: Sequence[int]
) -> None:
    first: dict[int, int] = {}
    again = []
    for place, number in enumerate(numbers, 1):
        if first.setdefault(number, place) != place:
            again.append(f"{listed[place - 1]!r} (entries {first[number]} and {place})")
    if again:
        more = f" and {len(again) - _SHOWN} more" if len(again) > _SHOWN else ""
        raise UserError(
            f"data.order is {str(file)!r}, which lists {len(again)} row(s) twice: {', '.join(again[:_SHOWN])}{more}. An "
            f"epoch draws each row once at most. Take the repetitions out."
        )


def _name(entries: Sequence[object]) -> str:
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(repr(entry) for entry in entries[:_SHOWN]) + more
