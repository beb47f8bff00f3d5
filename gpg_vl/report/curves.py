"""Reads metrics.jsonl into curves, with memory that does not grow with the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from gpg_vl.report.json_lines import Row, number, read_rows, whole

MOST_POINTS = 1000
"""Points of a curve; a longer run has every second step drawn, every fourth, every eighth ..."""
MOST_COLUMNS = 200
"""Maximum number of different columns; our rows have about fifty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of one kind: their steps, and columns with one value per row, None if a row has none.

    Example: `Table(steps=(1, 2), columns={"reward": (0.5, None)}, rows=2, every=1)`
    """

    steps: tuple[int, ...] = ()
    columns: Mapping[str, tuple[int | float | None, ...]] = field(default_factory=dict)
    rows: int = 0
    """Number of rows in the file."""
    every: int = 1
    """Every `every`-th row is included, and always the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The contents of metrics.jsonl.

    Example: `Metrics(train=Table(...), eval=Table(...), seconds={"train": 12.5}, unread=0)`
    """

    train: Table
    eval: Table
    seconds: Mapping[str, float]
    """By phase, summed over all training rows, and `eval` over the evaluations."""
    unread: int
    """Lines that hold no row of a run."""


class _Thinned:
    """Collects rows and keeps every `every`-th of them, and the last one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[_Point] = []
        self._last: tuple[int, Row] | None = None
        self.every, self.rows = 1, 0

    def add(self, step: int, row: Row) -> None:
        # most rows of a long run are left out, so skip them before reading their numbers
        self._last = (step, row)
        if self.rows % self.every == 0:
            self._kept.append(_point(self.rows, step, row))
        self.rows += 1

        if len(self._kept) > self._most:
            del self._kept[1::2]
            self.every *= 2

    def table(self) -> Table:
        kept = list(self._kept)
        if self._last is not None and kept[-1].place != self.rows - 1:
            kept.append(_point(self.rows - 1, *self._last))
        names = list(dict.fromkeys(name for one in kept for name in one.values))[:MOST_COLUMNS]
        return Table(
            steps=tuple(one.step for one in kept),
            columns={name: tuple(one.values.get(name) for one in kept) for name in names},
            rows=self.rows,
            every=self.every,
        )


class _Point(NamedTuple):
    """A kept row: its index among the rows of its kind, its step and its numbers."""

    place: int
    step: int
    values: dict[str, int | float]


def _point(place: int, step: int, row: Row) -> _Point:
    return _Point(place, step, dict(islice(_numbers(row), MOST_COLUMNS)))


def read_metrics(file: Path) -> Metrics:
    """All rows of metrics.jsonl, thinned. Raises OSError."""
    kinds = {"train": _Thinned(MOST_POINTS), "eval": _Thinned(MOST_POINTS)}
    seconds: dict[str, float] = {}
    unread = 0
    for row in read_rows(file):
        step = None if row is None else whole(row.get("step"))
        if row is None or step is None or row.get("kind") not in ("train", "eval"):
            unread += 1
            continue
        kinds[row["kind"]].add(step, row)
        for name, value in _flat("seconds", row.get("seconds"), depth=2):
            phase = name.removeprefix("seconds/")
            if phase in seconds or len(seconds) < MOST_COLUMNS:
                seconds[phase] = seconds.get(phase, 0.0) + value

    return Metrics(
        train=kinds["train"].table(), eval=kinds["eval"].table(), seconds=seconds, unread=unread
    )


def _numbers(row: Row) -> Iterator[tuple[str, int | float]]:
    """The finite numbers of a row by name, `group/name` for those of an object in it, `name/0` for those of a list."""
    for name, value in row.items():
        if name in ("step", "kind"):
            continue
        yield from _flat(name, value, depth=2)


def _flat(name: str, value: Any, depth: int) -> Iterator[tuple[str, int | float]]:
    if (plain := number(value)) is not None:
        yield name, plain
    elif depth and isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner, depth - 1)
    elif depth and isinstance(value, list):
        for place, inner in enumerate(value[:4]):
            yield from _flat(f"{name}/{place}", inner, depth - 1)
