"""Loading a reward, checking its values, and summing rewards.

Everything here is a pure function of its arguments; `isolation` runs it in worker processes. User code is
called only in `call`, and nothing is caught here: the caller decides what an exception means.
"""

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Literal, NamedTuple, cast

from gpg_vl.errors import UserError
from gpg_vl.rewards import GOLD_FORM, GoldForm, rewards
from gpg_vl.types import Completion, Example, Group

FailureKind = Literal["timeout", "crash", "exception", "value"]
Parts = dict[str, tuple[float, ...]]

TOTAL_DIGITS = 9
"""Totals are rounded to 1e-9, so that 0.1 + 0.2 equals 0.3 and rounding errors do not create a signal."""
RANGE_SLACK = 1e-9
"""A value at most this far outside its range is a rounding error and is moved to the end of the range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFailure:
    """Why a group could not be scored.

    Example: `RewardFailure(kind="value", reward="my.py:f", example_id="7", member=3, message="The reward ...")`
    """

    kind: FailureKind
    """`timeout`: too slow. `crash`: its process died. `exception`: it raised. `value`: not a number in its range."""
    reward: str
    example_id: str
    member: int | None
    """The number of the completion in the group, from 0; None if the reward is batched and got all of them."""
    message: str
    """What was given, what is allowed and what to do; for an exception, with its traceback."""
    cause: str = ""
    """Equal for failures with the same bug, such as `KeyError at r.py:7`. "" if the example is wrong."""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scored groups, in the order given, and the failures of the groups that are missing."""

    groups: list[Group]
    failures: list[RewardFailure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A loaded reward function with a checked signature.

    Example: `Reward(name="choice", function=choice, batched=False, low=0.0, high=1.0)`
    """

    name: str
    function: Callable[..., object]
    batched: bool
    low: float
    """The minimum and maximum value that it declares."""
    high: float
    gold: GoldForm = GOLD_FORM
    """How a gold answer is written for it; None: none can get full marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRewards:
    """How the rows of one of several data sets are scored.

    Example: `SourceRewards(weights={"choice": 1.0}, root=Path("data/sat"))`
    """

    weights: Mapping[str, float]
    root: str | Path | None = None
    """The folder that image paths are relative to."""


class Item(NamedTuple):
    """One example and completions of it, which are scored together."""

    example: Example
    completions: tuple[Completion, ...]


class RewardValueError(ValueError):
    """A reward returned something that is not a finite number in its range."""


def load(name: str, gold: str = GOLD_FORM) -> Reward:
    """Find a reward by name, importing its module. Raises what the registry raises, or UserError for its signature.

    gold: the form of gold answers for a reward that does not declare one.
    """
    function = rewards.get(name)
    is_batched = bool(getattr(function, "is_batched", False))
    check_signature(name, function, is_batched=is_batched)
    low, high = getattr(function, "declared_range", (0.0, 1.0))
    return Reward(
        name=name,
        function=function,
        batched=is_batched,
        low=low,
        high=high,
        gold=getattr(function, "gold_form", gold),
    )


def check_signature(name: str, function: Callable[..., object], *, is_batched: bool) -> None:
    """Raise UserError unless the function can be called as `function(completion, example)`."""
    first = "completions" if is_batched else "completion"
    wanted = f"Write it as `def {getattr(function, '__name__', 'my_reward')}({first}, example)`"
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        return

    try:
        signature.bind(object(), object())
    except TypeError as error:
        raise UserError(
            f"The reward {name!r} is declared as `{signature}`. It is called with exactly two arguments, "
            f"({first}, example): {error}. {wanted}; everything else is in `example.meta`."
        ) from None

    # it can be called, but its parameter names show that it expects something else
    names = list(signature.parameters)
    if names[0] == "example" or names[1:2] in (["completion"], ["completions"]):
        raise UserError(
            f"The reward {name!r} is declared as `{signature}`, but the completion comes first. {wanted}."
        )
    if names[0] == "completions" and not is_batched:
        raise UserError(
            f"The reward {name!r} is declared as `{signature}`, but it is given one completion at a time. "
            f"Decorate it with @batched (gpg_vl.rewards) to be given all completions of an example."
        )

    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(
            f"The reward {name!r} is a coroutine or a generator, but it must return its value. "
            f"{wanted} with an ordinary `return`."
        )


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as floats in their order. Raises UserError if there are none, or if one is not a finite number."""
    if not weights:
        raise UserError(
            "No reward is named. Give at least one with its weight, such as `rewards: {choice: 1.0}`."
        )
    for name, weight in weights.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, Real)
            or not -math.inf < weight < math.inf
        ):
            raise UserError(
                f"The weight of the reward {name!r} is {weight!r}. It must be a finite number; "
                f"write 1.0 for a reward that counts in full."
            )
    return {name: float(weight) for name, weight in weights.items()}


def call(reward: Reward, given: Completion | Sequence[Completion], example: Example) -> list[float]:
    """Run a reward on a completion, or on a list if it is batched. Raises RewardValueError and passes on the reward's own
    errors."""
    returned = reward.function(given, example)
    if isinstance(given, Completion):
        return [checked_value(returned, reward, example.id)]
    if not isinstance(returned, list | tuple) or len(returned) != len(given):
        raise RewardValueError(
            f"The batched reward {reward.name!r} returned {reprlib.repr(returned)} for example "
            f"{example.id!r}. It must return a list of {len(given)} numbers, one per completion."
        )
    return [checked_value(value, reward, example.id) for value in returned]


def checked_value(value: object, reward: Reward, example_id: str) -> float:
    """The value as a float in the declared range.

    Any real number is accepted: float, int, NumPy scalars, and bool, as `return guess == gold` is the natural way to
    write a reward. Tensors, strings and None are refused, because silent conversion would hide mistakes.
    """
    number = cast(float, value) if isinstance(value, Real) else math.nan
    if reward.low - RANGE_SLACK <= number <= reward.high + RANGE_SLACK:
        return min(max(float(number), reward.low), reward.high)
    advice = "Return one number"
    if -math.inf < number < math.inf:  # math.isfinite overflows on a huge int
        advice = "Bring it into that range, or declare another one with @in_range(low, high)"
    elif value is None:
        advice = "Check that every path ends in a `return`"
    elif hasattr(value, "item"):
        advice = "Return `value.item()` of an array or tensor with one element"
    raise RewardValueError(
        f"The reward {reward.name!r} returned {reprlib.repr(value)} for example {example_id!r}. "
        f"It must return a number from {reward.low:g} to {reward.high:g}. {advice}."
    )


def totals(parts: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> tuple[float, ...]:
    """The weighted sum of each completion, in float64 and in the order of `weights`, rounded to 1e-9.

    With a fixed order equal parts give bit-equal totals; the rounding makes different parts with the same sum equal. Both are
    needed because a group carries a signal if its totals differ at all.
    """
    columns = [[weight * value for value in parts[name]] for name, weight in weights.items()]
    return tuple(round(sum(column), TOTAL_DIGITS) for column in zip(*columns, strict=True))


def with_rewards(group: Group, parts: Parts, weights: Mapping[str, float]) -> Group:
    """The group with the rewards of its answers. parts: in the order of `Group.answers`."""
    rewards = totals(parts, weights)
    if group.greedy is None:
        return replace(group, rewards=rewards, reward_parts=parts)

    *sampled, last = rewards
    greedy_parts = {name: values[-1] for name, values in parts.items()}
    return replace(
        group,
        rewards=tuple(sampled),
        reward_parts={name: values[:-1] for name, values in parts.items()},
        greedy=replace(group.greedy, reward=last, reward_parts=greedy_parts),
    )
