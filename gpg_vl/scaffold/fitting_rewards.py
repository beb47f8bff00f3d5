"""Finds the built-in rewards that give a data set's gold answers full marks, the strictest first."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpg_vl.rewards.gold_proof import GoldScore
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import RANGE_SLACK
from gpg_vl.types import Example

_ASKS_FOR_A_NUMBER = re.compile(r"\bhow many\b|\bcount\b|\bnumber of\b", re.IGNORECASE)
_SHORT = 5
"""Maximum number of words of an answer that can be compared as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A reward that gives all checked gold answers full marks.

    Example: `Fit(name="counting", why="the questions ask for a number, and the answers are whole numbers")`
    """

    name: str
    why: str


def fitting_rewards(examples: Sequence[Example]) -> list[Fit]:
    """The fitting rewards, the most likely first. Gold answers are scored as in the gold check."""
    likely = [
        Fit(name=name, why=why)
        for name, (why, is_likely) in _SIGNS.items()
        if all(map(is_likely, examples))
    ]
    if not likely:
        return []
    with RewardPool({fit.name: 1.0 for fit in likely}, workers=1) as pool:
        ranges = pool.ranges()
        outcomes = {fit.name: pool.prove(examples, fit.name) for fit in likely}
    return [
        fit
        for fit in likely
        if all(
            isinstance(one, GoldScore) and one.value >= ranges[fit.name][1] - RANGE_SLACK
            for one in outcomes[fit.name]
        )
    ]


# ---- signs in an example


def _counts(example: Example) -> bool:
    asked = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
    return example.answer.isdecimal() and _ASKS_FOR_A_NUMBER.search(asked) is not None


def _is_mathematical(example: Example) -> bool:
    return re.search(r"\d|\\|\$", example.answer) is not None


def _is_short(example: Example) -> bool:
    return len(example.answer.split()) <= _SHORT


_SIGNS: Mapping[str, tuple[str, Callable[[Example], bool]]] = {
    "choice": ("every answer names one of its choices", lambda example: bool(example.choices)),
    "counting": ("the questions ask for a number, and the answers are whole numbers", _counts),
    "grounding": (
        "the answers are boxes in the declared coordinates",
        lambda example: "coordinates" in example.meta,
    ),
    "math": ("the answers are numbers or formulas", _is_mathematical),
    "classification": (
        "the answers are of a list of classes",
        lambda example: "classes" in example.meta,
    ),
    "vqa": ("the answers are short texts", _is_short),
}
"""Rules that suggest a reward for an example, the strictest first."""
