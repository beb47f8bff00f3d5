"""The sets that a run trains on, each with the config of a run that would train on it alone.

So everything that is checked, proved and rendered of a set is what a run on it alone would do, and a result is found again
by both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpg_vl.config import Config, SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """One set.

    Example: `TrainingSet(name="sat", weight=2.0, config=config)`
    """

    name: str
    """Of an item of `data.sources`; "" of `data.train`."""
    weight: float | None
    config: Config
    """With its own `data.train`, `prompt` and `rewards.weights`; it has no sources and no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """How much of a run is of one source.

    Example: `SourceShare(name="sat", path="data/sat", rows=1200, share=0.7, rewards={"choice": 1.0})`
    """

    name: str
    path: str
    rows: int
    share: float
    """Of the draws."""
    rewards: Mapping[str, float]


def training_sets(config: Config) -> tuple[TrainingSet, ...]:
    """The sets of a run: those of `data.sources`, or the one of `data.train`."""
    if config.data.sources:
        return tuple(
            TrainingSet(name=source.called, weight=source.weight, config=_config_of(config, source))
            for source in config.data.sources
        )
    alone = config if config.data.order is None else _with_data(config, {"order": None})
    return (TrainingSet(name="", weight=None, config=alone),)


def all_rewards(config: Config) -> dict[str, float]:
    """The rewards of all sets, each with the weight that it has first."""
    weights: dict[str, float] = {}
    for one in training_sets(config):
        weights = {**one.config.rewards.weights, **weights}
    return weights


def describe_paths(config: Config) -> str:
    """Where the rows of a run come from, for messages."""
    return ", ".join(one.config.data.only for one in training_sets(config))


def _config_of(config: Config, source: SourceConfig) -> Config:
    """The config of a run on this source alone."""
    alone = _with_data(
        config,
        {
            "train": source.path,
            "root": source.root,
            "columns": source.columns,
            "limit": source.limit,
            "sources": (),
            "order": None,
        },
    )
    asked = source.prompt.model_dump(exclude_none=True)
    if asked.get("system") == "":
        asked["system"] = None  # the run's own is set aside, and nothing comes in its place
    updates: dict[str, Any] = {"prompt": config.prompt.model_copy(update=asked)}
    if source.rewards:
        updates["rewards"] = config.rewards.model_copy(update={"weights": source.rewards})
    return alone.model_copy(update=updates)


def _with_data(config: Config, keys: dict[str, Any]) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=keys)})
