"""Warnings about steps in which almost no group carries a signal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpg_vl.types import Group

FEW = 0.1
"""A warning is shown if the share of groups with signal is below this."""
ENOUGH_TO_TELL = 16
"""Minimum number of groups for a meaningful share."""
LEAST_ROUNDS = 2
"""A step that samples again is checked after this many rounds."""


class Seen(NamedTuple):
    """The groups that were scored in a step so far, over all processes.

    Example: `Seen(groups=64, valid=1, all_right=3, all_wrong=60)`
    """

    groups: int
    valid: int
    all_right: int
    all_wrong: int

    @property
    def are_few(self) -> bool:
        """Whether too few of them carry a signal to learn from."""
        return self.groups >= ENOUGH_TO_TELL and self.valid < FEW * self.groups


def count_seen(groups: Sequence[Group]) -> Seen:
    return Seen(
        groups=len(groups),
        valid=sum(group.is_valid for group in groups),
        all_right=sum(group.is_all_right for group in groups),
        all_wrong=sum(not group.is_valid and group.right == 0 for group in groups),
    )


def read_seen(steps: Iterable[Mapping[str, Any]]) -> Seen:
    """The groups of steps, from their rows of metrics."""
    shares = ("valid_share", "all_right_share", "all_wrong_share")
    rows = [row for row in steps if row.get("groups_seen")]
    counts = [sum(round(row[name] * row["groups_seen"]) for row in rows) for name in shares]
    return Seen(sum(row["groups_seen"] for row in rows), *counts)


def describe_few_signals(step: int, seen: Seen, *, rounds: int) -> str:
    """The warning about a step in which too few groups carry a signal.

    rounds: the maximum number of rounds a step may sample.
    """
    effort = f" samples up to {rounds} rounds of answers and" if rounds > 1 else ""
    cost = f"A step{effort} learns from these alone"
    return (
        f"warning: step {step}: {seen.valid} of {seen.groups} groups so far carry a signal ({seen.all_wrong} were all wrong, "
        f"{seen.all_right} all right). {cost}. {advise(seen)}"
    )


def advise(seen: Seen) -> str:
    """Advice if almost no group carries a signal."""
    if 2 * (seen.all_right + seen.all_wrong) < seen.groups - seen.valid:
        what = (
            "Mostly the answers to a row get one reward, neither 0 nor 1: raise rollout.temperature or "
            "rollout.group_size, so that answers differ, or use a reward with finer scores"
        )
    elif seen.all_right > seen.all_wrong:
        what = (
            "Mostly the rows are too easy by now: take harder ones, or let the run skip rows that it has solved "
            "(data.skip_solved)"
        )
    else:
        what = (
            "Mostly the rows are too hard for the model, or the reward cannot read its answers: read them (samples/), "
            "train on gold answers first (algorithm.name: sft), take easier rows or another model, or raise "
            "rollout.group_size or rollout.temperature"
        )
    return f"{what}. gpg-vl data rate CONFIG counts the rows that carry a signal, and data.pass_rate draws only those."
