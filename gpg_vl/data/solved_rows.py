"""Rows that a run has solved, and how the data order passes over them.

A row is solved once all answers of its last n groups were right. The order itself does not change: each of its places keeps
its row, and a place whose row is solved is passed over. So what is drawn next is a function of the position and of the counts
here, which are kept in each checkpoint.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Streaks = Mapping[int, int]
"""Row number to how many of its last groups, one behind the other, were all right; rows with none are not in it."""


class Judged(NamedTuple):
    """A group that was scored: where it was drawn, of which row, and whether all its answers were right.

    Example: `Judged(draw=40, row=8, all_right=True)`
    """

    draw: int
    row: int
    all_right: bool


class Solved(NamedTuple):
    """What is known of solved rows after a step.

    Example: `Solved(streaks={8: 2, 9: 1}, rows=1, again=0)`
    """

    streaks: Streaks
    rows: int
    """That are not drawn any more."""
    again: int
    """That were solved and are drawn again, because too few others were left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRule:
    """When a row counts as solved.

    Example: `SkipRule(needed=2, rows=300, least=32)`
    """

    needed: int
    """Groups of a row, one behind the other, that must be all right."""
    rows: int
    """That are drawn from."""
    least: int
    """Rows that must be left; with fewer, all are drawn again."""

    def settle(self, streaks: Streaks, judged: Iterable[Judged]) -> Solved:
        """What is known after the groups of a step."""
        counted = count_streaks(streaks, judged, needed=self.needed)
        solved = len(list_solved(counted, needed=self.needed))
        if self.rows - solved < self.least:
            return Solved({}, rows=0, again=solved)
        return Solved(counted, rows=solved, again=0)


def count_streaks(streaks: Streaks, judged: Iterable[Judged], *, needed: int) -> dict[int, int]:
    """The streaks after more groups, which count in the order of their draws, whoever has scored them.

    needed: n; a streak is not counted beyond it.
    """
    counted = dict(streaks)
    for group in sorted(judged):
        if group.all_right:
            counted[group.row] = min(counted.get(group.row, 0) + 1, needed)
        else:
            counted.pop(group.row, None)
    return counted


def list_solved(streaks: Streaks, *, needed: int) -> frozenset[int]:
    """The rows that are not drawn any more."""
    return frozenset(row for row, streak in streaks.items() if streak >= needed)


def next_draws(
    position: int, number: int, row_at: Callable[[int], int], solved: frozenset[int]
) -> Sequence[int]:
    """The next so many places of the order, from `position` on, whose row is not solved. One such row there must be."""
    if not solved:
        return range(position, position + number)

    draws: list[int] = []
    while len(draws) < number:
        if row_at(position) not in solved:
            draws.append(position)
        position += 1
    return draws
