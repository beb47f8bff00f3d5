"""Scored rows into numbers, and numbers into results.json, samples_<task>.jsonl and a table.

Keys of results.json follow lmms-eval, `metric,filter`, with the scorer as the filter: `acc_official,strict`.
Accuracies, `answered`, `truncated` and `chance` are fractions of 1 in the files and per cent in the table.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from gpg_vl.eval.predictions import Prediction
from gpg_vl.eval.settings import EvalSettings, asked
from gpg_vl.eval.statistics import DRAWS, Estimate, Floats, bootstrap, point, resample
from gpg_vl.eval.task import Doc, Score, Task, stratum

UNANSWERED = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """A doc, what was answered, and what every scorer makes of it."""

    doc: Doc
    prediction: Prediction
    scores: Mapping[str, Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The numbers of one run over `rows`. Everything is a fraction of 1 unless it says count.

    Example: `results.estimates["strict"]["official"].value`, the same as `results.flat()["acc_official,strict"]`
    """

    task: str
    estimates: Mapping[str, Mapping[str, Estimate]]
    """Scorer, then aggregate."""
    chance: Mapping[str, float]
    """What blind guessing is expected to give, per aggregate."""
    mean_chance: float
    """The same as a plain mean over rows."""
    answered: Mapping[str, float]
    """Per scorer, the share of rows in which it found an answer."""
    labels: Mapping[str, Mapping[str, int]]
    """Counts of the parsed answers per scorer, and of the right ones under `gold`: shows a preference for a letter."""
    truncated: float | None
    """Share that hit the token limit, of the rows that record how they ended; None if none does."""
    errors: int
    """Count of rows that could not be asked."""
    rows: tuple[ScoredRow, ...]

    @property
    def headline(self) -> str:
        """The scorer that a number without a scorer's name is of: `strict` if it was asked for."""
        return "strict" if "strict" in self.estimates else next(iter(self.estimates))

    def flat(self) -> dict[str, Any]:
        """The numbers under lmms-eval's keys, as results.json has them. What does not exist (no such rows) is None."""
        numbers: dict[str, Any] = {}
        for scorer, estimates in self.estimates.items():
            for name, estimate in estimates.items():
                numbers[f"acc_{name},{scorer}"] = json_number(estimate.value)
                numbers[f"acc_{name}_stderr,{scorer}"] = json_number(estimate.stderr)
                numbers[f"acc_{name}_ci95,{scorer}"] = [json_number(estimate.low), json_number(estimate.high)]
            numbers[f"answered,{scorer}"] = self.answered[scorer]
        numbers |= {
            "n": len(self.rows),
            "answered": self.answered[self.headline],
            "truncated": self.truncated,
            "errors": self.errors,
            "chance": self.mean_chance,
        }
        numbers |= {f"chance_{name}": json_number(value) for name, value in self.chance.items()}
        numbers |= {f"labels,{scorer}": dict(counts) for scorer, counts in self.labels.items()}
        return numbers


def summarise(task: Task, rows: Sequence[ScoredRow], *, seed: int, draws: int = DRAWS) -> Results:
    """Every aggregate of every scorer with its interval. Pure; deterministic in the rows and the seed."""
    columns, weights_R_N = label_columns(task, rows), resample_weights(task, rows, seed, draws)
    scorers = list(rows[0].scores)
    estimates = {
        scorer: {
            name: bootstrap(aggregate, scores_of(rows, scorer), columns, weights_R_N)
            for name, aggregate in task.aggregates.items()
        }
        for scorer in scorers
    }
    chance_N = np.array([task.chance(row.doc) for row in rows])
    reasons = [row.prediction.response.finish_reason for row in rows]
    finished = [reason for reason in reasons if reason is not None]
    return Results(
        task=task.name,
        estimates=estimates,
        labels=_labels(task, rows, scorers),
        chance={name: point(aggregate, chance_N, columns) for name, aggregate in task.aggregates.items()},
        mean_chance=float(chance_N.mean()),
        answered={scorer: sum(row.scores[scorer].answered for row in rows) / len(rows) for scorer in scorers},
        truncated=finished.count("length") / len(finished) if finished else None,
        errors=sum(row.prediction.error is not None for row in rows),
        rows=tuple(rows),
    )


def results_json(results: Results, *, task: Task, original: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """results.json. `original` is how many docs the data has, before any limit; `config` how the answers came about."""
    return {
        "results": {task.name: results.flat()},
        "configs": {
            task.name: {
                "description": task.description,
                "source": task.source,
                "published_size": task.published_size,
                "aggregates": list(task.aggregates),
                "scorers": list(results.estimates),
                "limited_by": list(task.strata),
                "resampled_within": list(task.resample_within),
            }
        },
        "versions": {task.name: task.version},
        "n-samples": {task.name: {"original": original, "effective": len(results.rows)}},
        "config": dict(config),
    }


def sample_records(results: Results, settings: EvalSettings | None) -> Iterable[dict[str, Any]]:
    """The lines of samples_<task>.jsonl: what was asked and answered, and what each scorer made of it.

    `input` is the rendered text where `settings` say how it was rendered, else the doc's own prompt.
    """
    for row in results.rows:
        doc, response = row.doc, row.prediction.response
        yield {
            "doc_id": doc.doc_id,
            "input": asked(settings, doc) if settings else doc.example.prompt,
            "target": doc.gold,
            "response": response.text,
            "prefill": response.prefill,
            "finish_reason": response.finish_reason,
            "error": row.prediction.error,
            "scores": {
                name: {"parsed": one.parsed, "answered": one.answered, "score": one.score, "notes": one.notes}
                for name, one in row.scores.items()
            },
            "doc": dict(doc.columns),
        }


def write_results(folder: Path, tree: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], task: str) -> None:
    """results.json and samples_<task>.jsonl in `folder`, each complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"samples_{task}.jsonl", "".join(json.dumps(sample, allow_nan=False) + "\n" for sample in samples))
    _write(folder / "results.json", json.dumps(tree, indent=2, allow_nan=False) + "\n")


def results_table(results: Results) -> Table:
    """Aggregates by scorers: per cent, half-width and 95% interval, with chance beside them."""
    table = Table()
    table.add_column("accuracy %")
    for scorer in results.estimates:
        table.add_column(scorer, justify="right")
    table.add_column("chance", justify="right")
    for name in results.chance:
        cells = [interval_cell(estimates[name]) for estimates in results.estimates.values()]
        table.add_row(name, *cells, _percent(results.chance[name]))
    table.add_section()
    table.add_row("answered", *(_percent(share) for share in results.answered.values()), "")
    return table


def results_notes(results: Results) -> list[str]:
    """What stands under the table: how many rows, how they ended, and how often each answer was given."""
    truncated = "not recorded" if results.truncated is None else _percent(results.truncated) + "%"
    lines = [
        f"n = {len(results.rows)}   truncated {truncated}   errors {results.errors}",
        f"± and [ ]: 95% percentile bootstrap, {DRAWS} resamples",
    ]
    for scorer, counts in results.labels.items():
        lines.append(f"answers, {scorer}: " + "  ".join(f"{label} {count}" for label, count in counts.items()))
    return lines


def interval_cell(estimate: Estimate, sign: str = "") -> str:
    """`76.15 ± 1.70 [74.41, 77.81]` for fractions of 1; `sign="+"` writes the sign of positive numbers too."""
    if math.isnan(estimate.value):
        return "no rows"
    low, high = (f"{100 * bound:{sign}.2f}" for bound in (estimate.low, estimate.high))
    return f"{100 * estimate.value:{sign}.2f} ± {100 * estimate.half_width:.2f} [{low}, {high}]"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def json_number(value: float) -> float | None:
    """The value, None for NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


def scores_of(rows: Sequence[ScoredRow], scorer: str) -> Floats:
    """scores_N of one scorer."""
    return np.array([row.scores[scorer].score for row in rows], dtype=np.float64)


def label_columns(task: Task, rows: Sequence[ScoredRow]) -> dict[str, NDArray[np.str_]]:
    """The columns that the task's aggregates choose by, each [N]."""
    return {name: np.array([str(row.doc.columns[name]) for row in rows]) for name in task.groups}


def resample_weights(task: Task, rows: Sequence[ScoredRow], seed: int, draws: int) -> Floats:
    """weights_R_N within the task's own strata."""
    return resample([stratum(row.doc, task.resample_within) for row in rows], draws=draws, seed=seed)


def _labels(task: Task, rows: Sequence[ScoredRow], scorers: Sequence[str]) -> dict[str, dict[str, int]]:
    if task.gold_label is None:
        return {}
    counts = {scorer: Counter(_label(row.scores[scorer]) for row in rows) for scorer in scorers}
    counts["gold"] = Counter(task.gold_label(row.doc) for row in rows)
    return {
        scorer: {label: one[label] for label in sorted(one, key=lambda label: (label == UNANSWERED, label))}
        for scorer, one in counts.items()
    }


def _label(score: Score) -> str:
    return score.parsed if score.answered and score.parsed is not None else UNANSWERED


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
