"""The groups of a step dealt over processes, so that none has many more tokens to train on than the others.

Processes sample equally many groups and train on those with a signal, of which one may have few and another many. All wait for
the fullest. The gradient does not know who computed which group, so some change over before training, prompts and all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator

from gpg_vl.training.collectives import gather
from gpg_vl.types import Group

TOLERANCE = 0.05
"""By so much the fullest process may be above the mean before anything moves."""
WORTH = 0.01
"""Of the mean: a move that relieves the fuller of two processes by less is not made, because pictures move too."""


class Move(NamedTuple):
    """A group that changes over.

    Example: `Move(source=0, place=3, to=1)`
    """

    source: int
    """The process that has sampled it."""
    place: int
    """Among the groups of that process."""
    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """What this process trains on, and how evenly all are loaded.

    Example: `Dealt(groups=groups, moved=1, before=1.42, after=1.03)`
    """

    groups: tuple[Group, ...]
    moved: int
    """Groups that changed over, of all processes."""
    before: float
    """Tokens of the fullest process over the mean of all."""
    after: float


def deal(
    accelerator: Accelerator, groups: Sequence[Group], tokens: Sequence[int], *, may_move: bool
) -> Dealt:
    """Exchange groups with the other processes where that pays. All processes call it together.

    tokens: what training runs through the model of each of these groups. may_move: False only looks how they are dealt.
    """
    by_process: list[Sequence[int]] = gather(accelerator, list(tokens))
    moves = plan_moves(by_process) if may_move else []
    own = accelerator.process_index
    gone = {move.place for move in moves if move.source == own}
    dealt = [group for place, group in enumerate(groups) if place not in gone]

    # all know of all moves, so all come here or none does
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
    """Which groups change over, the same for the same numbers.

    The fullest process gives to the emptiest the group that leaves both most alike, the earlier of equal ones, until the fullest
    is near the mean or no group helps. Few move: where they were sampled most are best kept.

    tokens: of each group, by process.
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
    """Tokens of the fullest process over the mean of all, after these moves; 1 where there are none."""
    loads = [sum(of_one) for of_one in tokens]
    for source, place, to in moves:
        loads[source] -= tokens[source][place]
        loads[to] += tokens[source][place]
    return max(loads) * len(loads) / sum(loads) if any(loads) else 1.0
