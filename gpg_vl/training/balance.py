"""Balances the groups of a step over the processes, so that no process has many more tokens to train on than the others.

Processes sample equally many groups and train on those with a signal; some may have few of these and others many. All wait for
the slowest. The gradient does not depend on which process computes which group, so some groups are moved before training,
together with their prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator

from gpg_vl.training.collectives import gather
from gpg_vl.types import Group

TOLERANCE = 0.05
"""Nothing is moved while the fullest process is at most this share above the mean."""
WORTH = 0.01
"""A move that relieves the fuller process by less than this share of the mean is not made, because images are moved too."""


class Move(NamedTuple):
    """The move of one group from one process to another.

    Example: `Move(source=0, place=3, to=1)`
    """

    source: int
    """The process that sampled it."""
    place: int
    """Its index in the groups of that process."""
    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """The groups that this process trains on, and how even the load of all processes is.

    Example: `Dealt(groups=groups, moved=1, before=1.42, after=1.03)`
    """

    groups: tuple[Group, ...]
    moved: int
    """Number of groups moved, over all processes."""
    before: float
    """Tokens of the fullest process over the mean of all."""
    after: float


def deal(
    accelerator: Accelerator, groups: Sequence[Group], tokens: Sequence[int], *, may_move: bool
) -> Dealt:
    """Exchange groups with the other processes where it is worth it. All processes call it together.

    tokens: the number of training tokens of each group. may_move: False moves nothing and only measures the balance.
    """
    by_process: list[Sequence[int]] = gather(accelerator, list(tokens))
    moves = plan_moves(by_process) if may_move else []
    own = accelerator.process_index
    gone = {move.place for move in moves if move.source == own}
    dealt = [group for place, group in enumerate(groups) if place not in gone]

    # all processes know all moves, so either all of them get here or none
    if moves:
        sent = [(move.to, groups[move.place]) for move in moves if move.source == own]
        for of_one in gather(accelerator, sent):
            dealt += [group for to, group in of_one if to == own]
    return Dealt(
        groups=tuple(dealt),
        moved=len(moves),
        before=excess(by_process, []),
        after=excess(by_process, moves),
    )


def plan_moves(tokens: Sequence[Sequence[int]]) -> list[Move]:
    """Plan which groups to move. Deterministic.

    The fullest process gives the emptiest process the group that makes both most equal (the earlier of equal ones), until the
    fullest is near the mean or no group helps. So only few groups move.

    tokens: the tokens of each group, by process.
    """
    stays = [dict(enumerate(of_one)) for of_one in tokens]
    loads = [sum(of_one) for of_one in tokens]
    mean = sum(loads) / len(loads)
    moves: list[Move] = []
    while max(loads) > mean * (1 + TOLERANCE):
        fullest, emptiest = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[fullest] - loads[emptiest]
        relief = {place: min(size, gap - size) for place, size in stays[fullest].items()}
        place = max(relief, key=lambda one: (relief[one], -one), default=None)
        if place is None or relief[place] < max(WORTH * mean, 1):
            break

        size = stays[fullest].pop(place)
        loads[fullest] -= size
        loads[emptiest] += size
        moves.append(Move(fullest, place, emptiest))
    return moves


def excess(tokens: Sequence[Sequence[int]], moves: Sequence[Move]) -> float:
    """Tokens of the fullest process divided by the mean, after these moves; 1 if there are no tokens."""
    loads = [sum(of_one) for of_one in tokens]
    for source, place, to in moves:
        loads[source] -= tokens[source][place]
        loads[to] += tokens[source][place]
    return max(loads) * len(loads) / sum(loads) if any(loads) else 1.0
