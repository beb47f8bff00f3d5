"""Reads JSON lines of a run that may still be running or was killed: what can be read, and how much cannot.

A field of the wrong type counts as missing, because a folder may come from an older version or from anyone.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

LONGEST_LINE = 64 << 20
"""Bytes of one line; a longer one is not held in memory."""

Row = dict[str, Any]
T = TypeVar("T")


def read_rows(file: Path) -> Iterator[Row | None]:
    """The object of each line, None for a line that holds none. A file that is not there has no lines.

    A last line without an end is still being written: it is left out. Raises OSError.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        while line := stream.readline(LONGEST_LINE):
            if line.endswith(b"\n"):
                if line.strip():
                    yield _parse(line)
            elif len(line) == LONGEST_LINE:
                _skip_line(stream.readline)
                yield None


def _skip_line(readline: Any) -> None:
    while (rest := readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass


def _parse(line: bytes) -> Row | None:
    # not UTF-8, no JSON, a number of absurd length; nested without end
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def get(row: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """The value of a field, None if it is absent or of another type."""
    value = row.get(name)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def number(value: object) -> int | float | None:
    """The value if it is a finite number, else None. True and False do not count as numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: object) -> int | None:
    """The value if it is a whole number from 0 that a page can count with, else None."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < 2**53 else None
