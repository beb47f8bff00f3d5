"""What the study compares: tasks, settings of algorithms, and which runs of them are made (`benchmarks/comparison.py`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BUDGET = 25_600
"""Answers that a run samples: 100 steps of 32 prompts with 8 answers each, where no group is sampled again."""
PER_STEP = 256
"""Answers of a step: with G answers to each prompt, a step has 256 / G prompts."""
RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates that every algorithm is tried with, the same for all."""
DEFAULT_RATE = 3e-4
"""Of the ablation, and of a task on which the rates were not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learned, and how it is evaluated."""

    name: str
    config: str
    """Of configs/, whose algorithm is replaced."""
    evaluation: str
    options: tuple[str, ...]
    """Of `python -m gpg_vl.eval`."""
    thresholds: tuple[float, ...]
    """Strict accuracies in per cent whose price is asked."""


SCENES = Task(
    name="scenes",
    config="quickstart.yaml",
    evaluation="cvbench",
    options=("--prompt", "plain", "--max-new-tokens", "6"),
    thresholds=(60, 70),
)
DIGITS = Task(
    name="digits",
    config="digits.yaml",
    evaluation="digits",
    options=("--max-new-tokens", "2"),
    thresholds=(60, 75),
)
FEW_DIGITS = Task(
    name="digits, 4 per digit",
    config="digits.yaml",
    evaluation="digits",
    options=("--max-new-tokens", "2"),
    thresholds=(40, 50),
)
TASKS = {task.name: task for task in (SCENES, DIGITS, FEW_DIGITS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An algorithm as a config names it, and the size of a group."""

    name: str
    algorithm: Mapping[str, Any]
    group_size: int = 8
    passes: str = "none"
    """What a step computes beside the sampled answers and one forward and backward pass over them."""

    @property
    def samples(self) -> bool:
        return self.algorithm.get("name") != "sft"

    @property
    def extra_answers(self) -> int:
        """Answers to each prompt that are sampled beside the group."""
        return int(self.algorithm.get("name") == "remax")


def _named(name: str, passes: str = "none", **keys: Any) -> Setting:
    return Setting(name=name, algorithm={"name": name, **keys}, passes=passes)


GPG: Mapping[str, Any] = {
    "name": "gpg",
    "f_norm": "one",
    "age": "inverse_valid_fraction",
    "beta_th": 0.4,
    "aggregation": "sequence",
}
"""The published setting of the multimodal runs (spec v2 of the paper's code)."""

ALGORITHMS = (
    Setting(name="gpg", algorithm=GPG, passes="groups sampled again"),
    _named("grpo", passes="reference"),
    _named("rloo"),
    _named("remax", passes="a greedy answer per prompt"),
    _named("ppo", passes="reference, values, three more updates"),
    _named("sft"),
    _named("dr_grpo"),
    _named("dapo", passes="groups sampled again"),
    _named("reinforce"),
    _named("reinforce_pp"),
    _named("opo"),
    _named("gspo"),
    _named("cispo"),
)
"""Each with the settings that its paper publishes, which are the defaults here; the learning rate alone is tried."""
SIX = tuple(setting for setting in ALGORITHMS[:6])
"""Those of the articles' claims."""


def _changed(**keys: Any) -> Setting:
    """GPG with one factor changed."""
    name = ", ".join(f"{key} {value}" for key, value in keys.items())
    size = keys.pop("G", 8)
    return Setting(name=name, algorithm={**GPG, **keys}, group_size=size)


ABLATION = (
    *(_changed(f_norm=value) for value in ("group_std", "batch_std")),
    *(_changed(age=value) for value in ("off", "valid_fraction")),
    _changed(aggregation="token"),
    _changed(age="token", aggregation="token"),
    *(_changed(beta_th=value) for value in (0, 0.6, 0.8)),
    *(_changed(G=value) for value in (2, 4, 16)),
)
"""One factor at a time around GPG. `age: token` exists with the mean over tokens alone, which therefore stands beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training and its evaluation."""

    stage: str
    task: Task
    setting: Setting
    rate: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Under which the result is kept."""
        return (self.task.name, self.setting.name, f"{self.rate:g}", str(self.seed))


def plan(best_rates: Mapping[str, float]) -> Iterator[Run]:
    """Every run of the study, in the order in which they are made: whole rows of a table first, then more seeds.

    best_rates: setting -> learning rate, of those for which it is known; until then the default one.
    """

    def runs(
        stage: str, task: Task, settings: Sequence[Setting], seeds: Sequence[int], rates: Any = None
    ) -> Iterator[Run]:
        for seed in seeds:
            for setting in settings:
                best = best_rates.get(setting.name, DEFAULT_RATE)
                for rate in rates or (best,):
                    yield Run(stage=stage, task=task, setting=setting, rate=rate, seed=seed)

    yield from runs("six", SCENES, SIX, range(3), (DEFAULT_RATE,))
    yield from runs("ablation", SCENES, ABLATION, range(3), (DEFAULT_RATE,))
    yield from runs("rates", SCENES, SIX, range(3), RATES)
    yield from runs("others", SCENES, ALGORITHMS[6:], range(3), RATES)
    yield from runs("six", SCENES, SIX, range(8))
    yield from runs("six", DIGITS, SIX, range(8))
    yield from runs("ablation", SCENES, ABLATION, range(5), (DEFAULT_RATE,))
    yield from runs("six", FEW_DIGITS, SIX, range(3))
