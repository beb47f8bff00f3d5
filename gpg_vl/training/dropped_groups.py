"""Groups that are dropped because a reward failed (`rewards.on_error: drop_group`): how many are too
many, and the messages about them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpg_vl.errors import RunError
from gpg_vl.rewards.scoring import RewardFailure

WARN_ABOVE = 0.1
"""Share of a step's groups above which a warning is shown."""
STOP_ABOVE = 0.5
"""Share above which the run stops, because the remaining groups no longer represent the data."""
LEAST_TO_STOP = 4
"""The run stops only from this number of dropped groups on: in a step of two groups one bad row is
half of it."""


class Dropped(NamedTuple):
    """How many groups were dropped, and how many were sampled.

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

    failures, answered: those of the step so far, over all processes.
    """
    dropped = Dropped(len(failures), answered)
    if dropped.number < LEAST_TO_STOP or dropped.share <= STOP_ABOVE:
        return
    raise RunError(
        f"Step {step}: {dropped} groups were dropped because a reward failed. rewards.on_error: "
        f"drop_group allows up to half of the groups of a step; the step was not trained. Correct "
        f"the reward (gpg-vl rewards test shows how it scores an answer), then resume from the "
        f"last checkpoint with --resume. The first failure: {failures[0]}"
    )


def read_step(metrics: Mapping[str, Any]) -> Dropped:
    """The dropped groups of a step, from its row of metrics, which does not count them as seen."""
    number = metrics.get("reward_failures", 0)
    return Dropped(number, number + metrics.get("groups_seen", 0))


def add_steps(steps: Iterable[Mapping[str, Any]]) -> Dropped:
    """The dropped groups of several steps, from their rows of metrics."""
    by_step = [read_step(row) for row in steps]
    return Dropped(sum(one.number for one in by_step), sum(one.of for one in by_step))


def warn(step: int, metrics: Mapping[str, Any]) -> str:
    """The warning for a step in which too many groups were dropped; "" for any other step."""
    dropped = read_step(metrics)
    if dropped.share <= WARN_ABOVE:
        return ""
    return (
        f"warning: step {step}: {dropped} groups were dropped because a reward failed "
        f"(rewards.on_error: drop_group); above half of a step the run stops. Correct the reward; "
        f"gpg-vl rewards test shows how it scores an answer. The first failure: "
        f"{metrics.get('reward_failure', 'not recorded')}"
    )
