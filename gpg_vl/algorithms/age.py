"""Accurate gradient estimation (AGE): alpha, and the collection of groups until enough of them
carry a signal.

A group whose answers are all right or all wrong has no gradient but dilutes the mean over groups.
The paper's alpha = B/(B-M) undoes the dilution (eq. 7 and 8); its threshold beta_th bounds it by
sampling more groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

from gpg_vl.algorithms.option_types import Age

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """What one optimizer step consists of, summed over all processes and micro-batches before the
    first backward pass.

    Example: two groups of two, lengths 2, 4 | 3, 1, only the first with a signal:
        `StepCounts(groups=2, valid_groups=1, completions=4, tokens=10, valid_tokens=6)`
    """

    groups: int
    valid_groups: int
    completions: int
    tokens: int
    """All completion tokens, those of groups without signal included."""
    valid_tokens: int


def age_factor(counts: StepCounts, mode: Age) -> float:
    """The factor on the policy term.

    `inverse_valid_fraction` is the paper's alpha = B/(B-M), counted in groups. `token` is
    K/K_valid, which makes the token mean run over tokens of valid groups exactly. `valid_fraction`
    is the inverse of alpha. `off` is 1. Without any valid group there is nothing to scale: 0.0.
    """
    if counts.valid_groups == 0:
        return 0.0

    match mode:
        case "off":
            return 1.0
        case "inverse_valid_fraction":
            return counts.groups / counts.valid_groups
        case "token":
            return counts.tokens / counts.valid_tokens
        case "valid_fraction":
            return counts.valid_groups / counts.groups


def groups_needed(beta_th: float, groups: int) -> int:
    """Least number of valid groups in a step of `groups`: beta_th * groups rounded up.

    The 1e-9 keeps 0.55 * 100 = 55.00000000000001 from asking for 56.
    """
    return ceil(beta_th * groups - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(Generic[T]):
    """The groups of one optimizer step on this process, and how they were found."""

    used: tuple[T, ...]
    """At most `slots` groups: valid ones first, then fillers of the latest round."""
    carry: tuple[T, ...]
    """Valid groups that found no place; they come first in the next step. None is ever dropped."""
    seen: tuple[T, ...]
    """Every group sampled in this step, before any was replaced."""
    rounds: int
    """Rounds of sampling, on the process that needed most."""
    cap_hit: bool
    """True if `max_rounds` ended the search below the threshold."""


def collect(
    carry: Sequence[T],
    *,
    slots: int,
    needed: int,
    max_rounds: int,
    is_valid: Callable[[T], bool],
    draw: Callable[[bool], Sequence[T]],
    total: Callable[[int], int],
) -> Collected[T]:
    """Sample groups until `needed` of the step's slots, over all processes, hold a valid group.

    draw: called once per round on every process, with True if this one has a free slot. Returns the
        scored groups it sampled, none when called with False (a full process draws nothing but
        stays in step with the others).
    total: the sum of a number over all processes.
    At the cap the step continues with what there is; it never raises.
    """
    valid = list(carry)
    seen: list[T] = []
    fillers: list[T] = []
    enough = False
    rounds = 0

    while rounds < max_rounds and not enough:
        rounds += 1
        drawn = draw(len(valid) < slots)
        seen.extend(drawn)
        valid.extend(group for group in drawn if is_valid(group))

        latest = [group for group in drawn if not is_valid(group)]
        fillers = latest or fillers

        # a surplus waits for the next step: it cannot stand in for what another process lacks
        enough = total(min(len(valid), slots)) >= needed

    used = valid[:slots]
    used += fillers[: slots - len(used)]
    return Collected(
        used=tuple(used),
        carry=tuple(valid[slots:]),
        seen=tuple(seen),
        rounds=rounds,
        cap_hit=not enough,
    )
