"""Rows that a run has solved, and how they are skipped in the data order.

A row is solved once all answers of its last n groups were right. The order itself does not change: positions whose row is
solved are skipped. So the next draw depends only on the position and on the counts here, which are saved in each
checkpoint.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Streaks = Mapping[int, int]
"""Row number to how many of its last groups in a row were all right; rows with 0 are left out."""


class Judged(NamedTuple):
    """A scored group: its draw, its row, and whether all its answers were right.

    Example: `Judged(draw=40, row=8, all_right=True)`
    """

    draw: int
    row: int
    all_right: bool


class Solved(NamedTuple):
    """The state of solved rows after a step.

    Example: `Solved(streaks={8: 2, 9: 1}, rows=1, again=0)`
    """

    streaks: Streaks
    rows: int
    """Number of rows that are no longer drawn."""
    again: int
    """Number of solved rows that are drawn again because too few others were left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRule:
    """When a row counts as solved.

    Example: `SkipRule(needed=2, rows=300, least=32)`
    """

    needed: int
    """Number of consecutive groups of a row that must be all right."""
    rows: int
    """Number of rows to draw from."""
    least: int
    """Minimum number of unsolved rows; with fewer all rows are drawn again."""

    def settle(self, streaks: Streaks, judged: Iterable[Judged]) -> Solved:
        """The state after the groups of a step."""
        counted = count_streaks(streaks, judged, needed=self.needed)
        solved = len(list_solved(counted, needed=self.needed))
        if self.rows - solved < self.least:
            return Solved({}, rows=0, again=solved)
        return Solved(counted, rows=solved, again=0)


def count_streaks(streaks: Streaks, judged: Iterable[Judged], *, needed: int) -> dict[int, int]:
    """Update the streaks with more groups, in the order of their draws, whichever process scored them.

    needed: n; streaks are not counted beyond it.
    """
    counted = dict(streaks)
    for group in sorted(judged):
        if group.all_right:
            counted[group.row] = min(counted.get(group.row, 0) + 1, needed)
        else:
            counted.pop(group.row, None)
    return counted


def list_solved(streaks: Streaks, *, needed: int) -> frozenset[int]:
    """The rows that are no longer drawn."""
    return frozenset(row for row, streak in streaks.items() if streak >= needed)


def next_draws(
    position: int, number: int, row_at: Callable[[int], int], solved: frozenset[int]
) -> Sequence[int]:
    """The next positions of the order, from `position` on, whose row is not solved. At least one row must be unsolved."""
    if not solved:
        return range(position, position + number)

    draws: list[int] = []
    while len(draws) < number:
        if row_at(position) not in solved:
            draws.append(position)
        position += 1
    return draws
