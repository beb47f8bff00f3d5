"""What came out of the study (`benchmarks/comparison.py`): outcomes, intervals over seeds and rows, tables, and the claims."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.comparison_settings import (
    ABLATION,
    ALGORITHMS,
    BUDGET,
    DEFAULT_RATE,
    RATES,
    SCENES,
    TASKS,
    Setting,
    Task,
)

RESAMPLES = 4_000
Key = tuple[str, str, str, str]
"""task, setting, learning rate, seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is kept of a run."""

    right: str
    """A digit for each held-out row, in their order: 1 where the strict score is full."""
    curve: tuple[tuple[int, float, float], ...]
    """(sampled answers, CPU seconds of the steps, strict accuracy in per cent on a part of the rows)."""
    steps: int
    answers: int
    cpu_seconds: float
    """Of all steps."""
    peak_mb: int
    """Of the program and its children, resident."""
    minutes: float
    """CPU minutes of the whole program, its start and its evaluations included."""

    @property
    def accuracy(self) -> float:
        """Per cent, on all held-out rows."""
        return 100 * self.right.count("1") / len(self.right)

    def area(self) -> float:
        """Mean accuracy over the sampled answers of the budget: what fast learning adds to."""
        answers, _, accuracies = zip(*self.curve, strict=True)
        at = np.linspace(0, answers[-1], 201)
        return float(np.interp(at, answers, accuracies).mean())

    def until(self, threshold: float) -> tuple[int, float] | None:
        """(sampled answers, CPU seconds) of the first evaluation at or above a threshold."""
        return next(((a, s) for a, s, accuracy in self.curve if accuracy >= threshold), None)


Kept = Mapping[Key, Outcome]


def read_outcomes(folder: Path) -> dict[Key, Outcome]:
    """What earlier calls have measured."""
    file = folder / "comparison.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    found = {}
    for row in rows:
        key, curve = tuple(row.pop("key")), tuple(map(tuple, row.pop("curve")))
        found[key] = Outcome(curve=curve, **row)
    return found


def write_outcomes(kept: Kept, folder: Path) -> None:
    """One line per run. The old file stands until the new one is whole."""
    lines = [json.dumps({"key": key, **asdict(kept[key])}) for key in sorted(kept)]
    partial = folder / "comparison.json.partial"
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    partial.replace(folder / "comparison.json")
    (folder / "comparison.md").write_text(render(kept))


def seeds_of(kept: Kept, task: Task, setting: str, rate: float) -> dict[int, Outcome]:
    """{seed: outcome} of a setting."""
    wanted = (task.name, setting, f"{rate:g}")
    return {int(key[3]): kept[key] for key in sorted(kept) if key[:3] == wanted}


def best_rates(kept: Kept) -> dict[str, float]:
    """{setting: learning rate} of those whose three rates were all tried with three seeds on the scenes."""
    found = {}
    for setting in ALGORITHMS:
        means = {}
        for rate in RATES:
            seeds = seeds_of(kept, SCENES, setting.name, rate)
            if {0, 1, 2} <= set(seeds):
                means[rate] = mean(seeds[seed].accuracy for seed in range(3))
        if len(means) == len(RATES):
            found[setting.name] = max(means, key=means.__getitem__)
    return found


# ---- intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".1f")

    def __format__(self, digits: str) -> str:
        value, low, high = (format(n, digits or ".1f") for n in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def interval(rights_S_N: np.ndarray) -> Interval:
    """Mean over seeds and rows in per cent, with both drawn anew with replacement: rows are the same for all seeds.

    rights_S_N: numbers of each of S seeds and N rows. Two settings are compared by their difference, seed by seed and row by
        row.
    """
    seeds, rows = rights_S_N.shape
    rng = np.random.default_rng(0)
    # how often each seed and row is drawn; the mean of a resample is then a product with both
    seeds_R_S = rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    rows_R_N = rng.multinomial(rows, [1 / rows] * rows, RESAMPLES) / rows
    means_R = np.einsum("rs,sn,rn->r", seeds_R_S, rights_S_N, rows_R_N, optimize=True)
    low, high = np.percentile(100 * means_R, [2.5, 97.5])
    return Interval(value=float(100 * rights_S_N.mean()), low=float(low), high=float(high))


def rights(outcomes: Iterable[Outcome]) -> np.ndarray:
    """[S, N] zeros and ones."""
    return np.array([[float(c) for c in outcome.right] for outcome in outcomes])


def difference(mine: Mapping[int, Outcome], other: Mapping[int, Outcome]) -> Interval | None:
    """Of the accuracies on the seeds that both have; None if there is none."""
    common = sorted(set(mine) & set(other))
    if not common:
        return None
    return interval(rights(mine[s] for s in common) - rights(other[s] for s in common))


# ---- tables


def row(
    task: Task, setting: Setting, mine: Mapping[int, Outcome], gpg: Mapping[int, Outcome]
) -> list[str]:
    """The cells of a setting."""
    outcomes = list(mine.values())
    versus = None if setting.name == "gpg" else difference(mine, gpg)
    cells = [str(len(mine)), str(interval(rights(outcomes))), "" if versus is None else str(versus)]
    cells.append(f"{mean(outcome.area() for outcome in outcomes):.1f}")
    for threshold in task.thresholds:
        reached = [found for o in outcomes if (found := o.until(threshold)) is not None]
        if not reached or len(reached) < len(outcomes):
            cells.append(f"{len(reached)} of {len(outcomes)} seeds")
        else:
            answers, seconds = (mean(column) for column in zip(*reached, strict=True))
            cells.append(
                f"{answers:,.0f} / {seconds:.0f} s" if setting.samples else f"{seconds:.0f} s"
            )
    per_thousand = [1e3 * o.cpu_seconds / o.answers for o in outcomes if o.answers]
    cells.append(f"{mean(per_thousand):.1f}" if per_thousand and setting.samples else "")
    return [*cells, f"{mean(o.peak_mb for o in outcomes):.0f}", setting.passes]


def table(
    kept: Kept, task: Task, settings: Sequence[Setting], rate_of: Callable[[str], float]
) -> list[str]:
    """A row for each setting that has a run at its rate."""
    head = ["setting", "rate", "seeds", "strict accuracy, %", "minus GPG", "mean over the run"]
    head += [f"answers / CPU until {t:g} %" for t in task.thresholds]
    head += ["CPU s per 1,000 answers", "peak MB", "also computes"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    gpg = seeds_of(kept, task, "gpg", rate_of("gpg"))
    for setting in settings:
        mine = seeds_of(kept, task, setting.name, rate_of(setting.name))
        if mine:
            cells = [setting.name, f"{rate_of(setting.name):g}", *row(task, setting, mine, gpg)]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def render(kept: Kept) -> str:
    """The whole document."""
    best = best_rates(kept)
    lines = [
        "# The paper's comparison, in one program",
        "",
        (
            f"Made by `python -m benchmarks.comparison`, which says how; {len(kept)} runs so far, `--plan` says which are left. "
            f"Every run begins with the quickstart's base model and ends when {BUDGET:,} answers were sampled (SFT: after 100 "
            "steps, on the gold answers of the same rows). Strict accuracy on held-out rows; brackets are 95 % "
            "intervals over seeds and rows; `minus GPG` is paired, seed by seed and row by row. `answers / CPU until` is the "
            f"first evaluation at or above that accuracy, on 200 rows, every 20 steps. Three seeds make wide intervals."
        ),
        "",
    ]  # fmt: skip
    for task in TASKS.values():
        same = table(kept, task, ALGORITHMS, lambda _: DEFAULT_RATE)
        if same:
            lines += [f"## {task.name}: one learning rate for all", "", *same]
        tried = [setting for setting in ALGORITHMS if setting.name in best]
        if tried and (own := table(kept, task, tried, lambda name: best[name])):
            lines += [f"## {task.name}: each at the best of {len(RATES)} rates", "", *own]
    ablation = table(kept, SCENES, (ALGORITHMS[0], *ABLATION), lambda _: DEFAULT_RATE)
    lines += ["## One factor at a time around GPG, scenes", "", *ablation] if ablation else []
    said = claims(kept)
    return "\n".join(
        [*lines, *(["## What the paper says, and what was found", "", *said] if said else []), ""]
    )


# ---- the claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That one setting is better than another, and where it is said."""

    text: str
    better: str
    worse: str


CLAIMS = (
    Claim(text="GPG is better than GRPO (CV-Bench 76.2 against 59.5)", better="gpg", worse="grpo"),
    Claim(text="GPG is better than supervised training (76.2 against 57.8)", better="gpg", worse="sft"),
    Claim(text="GPG is better than PPO (said without numbers)", better="gpg", worse="ppo"),
    Claim(text="GPG is better than ReMax (said without numbers)", better="gpg", worse="remax"),
    Claim(text="GPG is better than DAPO (mathematics, 57.7 against 56.0)", better="gpg", worse="dapo"),
    Claim(text="alpha of AGE helps (mathematics, 47.8 against 43.9)", better="gpg", worse="age off"),
    Claim(text="sampling again until beta_th helps (48.3 against 47.8)", better="gpg", worse="beta_th 0"),
    Claim(text="the best beta_th is 0.8 (48.6)", better="beta_th 0.8", worse="gpg"),
    Claim(text="larger groups are better (G = 16 against 2)", better="G 16", worse="G 2"),
    Claim(text="F = group deviation loses to F = 1 with AGE", better="gpg", worse="f_norm group_std"),
)  # fmt: skip


def claims(kept: Kept) -> list[str]:
    """A sentence for each claim whose runs are there, at one learning rate for all, on the scenes."""
    lines = []
    for claim in CLAIMS:
        better, worse = (
            seeds_of(kept, SCENES, name, DEFAULT_RATE) for name in (claim.better, claim.worse)
        )
        found = difference(better, worse)
        if found is not None:
            seeds = len(set(better) & set(worse))
            lines.append(f"- {claim.text}: {judge(found)} ({found} points, {seeds} seeds).")
    return lines


def judge(found: Interval) -> str:
    """What an interval of (better - worse) says of a claim."""
    if found.low > 0:
        return "reproduced"
    return (
        "not reproduced, it is the other way round"
        if found.high < 0
        else "cannot be told apart here"
    )
