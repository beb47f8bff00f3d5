"""Rewards: plain functions that score a completion, found by name.

A reward is `def my_reward(completion: Completion, example: Example) -> float` with values from 0 to 1. It may declare
another range (`@in_range(0, 2)`), that it scores the completions of one example together (`@batched`), or how a right answer is
written for it (`@gold_form('{"answer": "{answer}"}')`). An answer that cannot be parsed scores 0.0. An
exception is a bug in the reward: by default it stops the run (`rewards.on_error`).

Nothing in this package imports torch, so that reward workers start fast.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from gpg_vl.errors import UserError
from gpg_vl.prompting import GOLD_FORM as GOLD_FORM
from gpg_vl.registry import Registry
from gpg_vl.types import Completion, Example

RewardFunction = (
    Callable[[Completion, Example], float]
    | Callable[[Sequence[Completion], Example], Sequence[float]]
)

_JUDGING = """
choice classification counting detection geometry grounding grounding_giou grounding_hit math vqa vqa_anls vqa_relaxed
"""
BUILTIN = {
    "format": "gpg_vl.rewards.format:format",
    "length": "gpg_vl.rewards.length:length",
    "verbatim": "gpg_vl.rewards.verbatim:verbatim",
    **{name: f"gpg_vl.rewards.builtin:{name}" for name in _JUDGING.split()},
}
"""The built-in rewards."""

QUICK = frozenset(BUILTIN) - {"geometry", "math"}
"""The rewards that are known to be fast on any text, so they may run outside the worker processes.

The other two may pass a text to a computer algebra system.
"""

rewards: Registry[RewardFunction] = Registry(
    "reward", builtin=BUILTIN, entry_point_group="gpg_vl.rewards"
)

GoldForm = str | Callable[[Example], str] | None
"""A template, a function of the example, or None if no response is known to get full marks. See `gold_form`."""

F = TypeVar("F", bound=RewardFunction)


def reward(name: str, *, gold: GoldForm | Literal["default"] = "default") -> Callable[[F], F]:
    """Decorator: register a function as the reward `name`.

    gold: as in `gold_form`; "default" declares nothing. Raises ValueError if the name is taken.
    """

    def keep(function: F) -> F:
        rewards.register(name)(function)
        return function if gold == "default" else gold_form(gold)(function)

    return keep


def batched(function: F) -> F:
    """Decorator: the reward takes the list of all completions of an example and returns a list with one number for each."""
    function.is_batched = True  # type: ignore[union-attr]  # functions carry attributes
    return function


def gold_form(form: GoldForm) -> Callable[[F], F]:
    """Decorator: declare how a right answer is written as a response. The gold check uses it: before training it scores the
    data's gold answers, which must get full marks.

    form: a template with `{answer}`, such as `"{answer}"` for a bare answer; a function of the example that returns the
        whole response, such as `lambda example: json.dumps({"answer": example.answer})`; a text without `{answer}` that
        gets full marks for any gold answer, such as a layout; or None if no response is known to get full marks, which skips the
        check. The last two need no gold answers.

    The form that a reward declares overrides `rewards.gold` of the config. Raises UserError for any other form.
    """
    if form is not None and not isinstance(form, str) and not callable(form):
        raise UserError(
            f"@gold_form was given {form!r}. Allowed are a template such as '<answer>{{answer}}</answer>', a function of "
            f"the example, or None if no answer can get full marks."
        )

    def declare(function: F) -> F:
        function.gold_form = form  # type: ignore[union-attr]  # functions carry attributes
        return function

    return declare


def in_range(low: float, high: float) -> Callable[[F], F]:
    """Decorator: the reward returns values from `low` to `high`, both included, instead of 0 to 1."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"@in_range({low}, {high}) is not a range. Both ends must be finite and the first one smaller. "
            f"Bound the reward, for example with tanh, so that it has a range to declare."
        )

    def declare(function: F) -> F:
        function.declared_range = (float(low), float(high))  # type: ignore[union-attr]  # as above
        return function

    return declare
