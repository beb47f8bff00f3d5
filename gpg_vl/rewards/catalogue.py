"""The list of rewards and the description of each, for `gpg-vl rewards list` and `gpg-vl rewards show`."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards import BUILTIN, QUICK, rewards
from gpg_vl.rewards.samples import Sample
from gpg_vl.rewards.scoring import Reward, call, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One reward in the list.

    Example: `Entry(name="counting", meaning="1.0 if ...", low=0.0, high=1.0, batched=False, source="built in")`
    """

    name: str
    meaning: str
    """The first line of its docstring."""
    low: float
    high: float
    batched: bool
    source: str
    """`built in`, `built in, in workers only`, or the `module:function` of a plug-in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample and the reward's verdict on it."""

    sample: Sample
    score: float
    verdict: Verdict | None


def entries() -> list[Entry]:
    """All rewards that can be named, sorted. Imports them all and passes on any error that a plug-in raises."""
    return [entry(name) for name in rewards.names()]


def entry(name: str) -> Entry:
    """The entry of one reward. Raises what the registry raises."""
    reward = load(name)
    return Entry(
        name=name,
        meaning=documentation(reward).partition("\n")[0] or "(no docstring)",
        low=reward.low,
        high=reward.high,
        batched=reward.batched,
        source=_source(name, reward),
    )


def documentation(reward: Reward) -> str:
    """The docstring of a reward, without the indentation of the code; "" if it has none."""
    return inspect.cleandoc(reward.function.__doc__ or "")


def run_samples(reward: Reward) -> list[Shown]:
    """The samples that the reward declares, each scored with it now."""
    samples: Sequence[Sample] = getattr(reward.function, "examples", ())
    explain = getattr(reward.function, "explain", None)
    results = []
    for sample in samples:
        completion, example = sample.completion(), sample.example()
        score = call(reward, [completion] if reward.batched else completion, example)[0]
        results.append(
            Shown(
                sample=sample,
                score=score,
                verdict=None if explain is None else explain(completion, example),
            )
        )
    return results


def _source(name: str, reward: Reward) -> str:
    if name in BUILTIN:
        return "built in" if name in QUICK else "built in, in workers only"
    return name if ".py:" in name else f"{reward.function.__module__}:{reward.function.__name__}"
