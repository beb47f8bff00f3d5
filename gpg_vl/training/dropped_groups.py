"""Groups that are dropped because a reward broke (`rewards.on_error: drop_group`): how many are too
many, and what is said of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpg_vl.errors import RunError
from gpg_vl.rewards.scoring import RewardFailure

WARN_ABOVE = 0.1
"""Share of a step's groups from which on the screen warns."""
STOP_ABOVE = 0.5
"""Share from which on the run stops: what is left is no fair part of the data any more."""
LEAST_TO_STOP = 4
"""Dropped groups. In a step of two groups one bad row is half of it."""


class Dropped(NamedTuple):
    """How many groups were dropped, of how many that were answered.

    Example: `Dropped(155, 160)`
    """

    number: int
    of: int

    @property
    def share(self) -> float:
        return self.number / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.number} of {self.of}"


def refuse_too_many(failures: Sequence[RewardFailure], answered: int, step: int) -> None:
    """Raise RunError if more than half of the groups of a step were dropped.

    failures, answered: of the step so far, over all processes.
    """
    dropped = Dropped(len(failures), answered)
    if dropped.number < LEAST_TO_STOP or dropped.share <= STOP_ABOVE:
        return
    raise RunError(
        f"Step {step}: {dropped} groups were dropped because a reward broke. rewards.on_error: "
        f"drop_group allows up to half of the groups of a step; the step was not trained. Correct "
        f"the reward (gpg-vl rewards test shows what it makes of an answer), then resume from the "
        f"last checkpoint with --resume. The first failure: {failures[0]}"
    )


def read_step(metrics: Mapping[str, Any]) -> Dropped:
    """Of a step, by its row of metrics: dropped groups are not among those it has seen."""
    number = metrics.get("reward_failures", 0)
    return Dropped(number, number + metrics.get("groups_seen", 0))


def add_steps(steps: Iterable[Mapping[str, Any]]) -> Dropped:
    """Of several steps, by their rows of metrics."""
    by_step = [read_step(row) for row in steps]
    return Dropped(sum(one.number for one in by_step), sum(one.of for one in by_step))


def warn(step: int, metrics: Mapping[str, Any]) -> str:
    """What to say of a step in which too many groups were dropped; "" of any other."""
    dropped = read_step(metrics)
    if dropped.share <= WARN_ABOVE:
        return ""
    return (
        f"warning: step {step}: {dropped} groups were dropped because a reward broke "
        f"(rewards.on_error: drop_group); above half of a step the run stops. Correct the reward; "
        f"gpg-vl rewards test shows what it makes of an answer. The first failure: "
        f"{metrics.get('reward_failure', 'not recorded')}"
    )
