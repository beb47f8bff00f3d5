"""The data sets of a run, each with the config of a run on that set alone.

So each set is checked and rendered exactly as in a run on it alone, and both can use the same stored results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpg_vl.config import Config, SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """One data set of a run.

    Example: `TrainingSet(name="sat", weight=2.0, config=config)`
    """

    name: str
    """Of an item of `data.sources`; "" of `data.train`."""
    weight: float | None
    config: Config
    """A config with the set's own `data.train`, `prompt` and `rewards.weights`, without sources and order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """The share of one source in a run.

    Example: `SourceShare(name="sat", path="data/sat", rows=1200, share=0.7, rewards={"choice": 1.0})`
    """

    name: str
    path: str
    rows: int
    share: float
    """Share of the draws."""
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
    """The rewards of all sets, each with its first weight."""
    weights: dict[str, float] = {}
    for one in training_sets(config):
        weights = {**one.config.rewards.weights, **weights}
    return weights


def describe_paths(config: Config) -> str:
    """The data paths of a run, for messages."""
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
        asked["system"] = None  # remove the run's system text; the source has none
    updates: dict[str, Any] = {"prompt": config.prompt.model_copy(update=asked)}
    if source.rewards:
        updates["rewards"] = config.rewards.model_copy(update={"weights": source.rewards})
    return alone.model_copy(update=updates)


def _with_data(config: Config, keys: dict[str, Any]) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=keys)})
