"""Computes results from scored rows, and writes results.json and samples_<task>.jsonl.

Keys of results.json follow lmms-eval, `metric,filter`, with the scorer as the filter: `acc_official,strict`, and
`acc,strict` for the headline. Accuracies, `answered`, `truncated` and `chance` are fractions of 1.
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

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.doc_json import doc_record
from gpg_vl.eval.predictions import Prediction
from gpg_vl.eval.settings import EvalSettings, render_turn
from gpg_vl.eval.statistics import (
    DRAWS,
    Estimate,
    Floats,
    Sample,
    bootstrap,
    pass_at,
    point,
    resample,
)
from gpg_vl.eval.task import Doc, Task, stratum

UNANSWERED = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """A doc, one answer to it, and the verdicts of all scorers."""

    doc: Doc
    prediction: Prediction
    scores: Mapping[str, Verdict]

    @property
    def error(self) -> str | None:
        """Why the row is an error, under every scorer or under one that refuses its gold answer; None if it is not."""
        refusals = (reason for scorer, reason in self.doc.refused.items() if scorer in self.scores)
        return self.prediction.error if self.prediction.error is not None else next(refusals, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The results of one run. All values are fractions of 1 except counts.

    Example: `results.estimates["strict"]["official"].value`, the same as `results.flat()["acc_official,strict"]`
    """

    task: str
    estimates: Mapping[str, Mapping[str, Estimate]]
    """By scorer, then by aggregate."""
    chance: Mapping[str, float]
    """The expected score of blind guessing, per aggregate."""
    mean_chance: float
    """The same as a mean over rows."""
    answered: Mapping[str, float]
    """Per scorer, the share of rows in which it found an answer."""
    labels: Mapping[str, Mapping[str, int]]
    """Counts of the parsed answers per scorer, and of the right ones under `gold`: shows a preference for a letter."""
    skipped: Mapping[str, int]
    """For scorers that leave rows out of their denominator, how many; other scorers include them."""
    truncated: float | None
    """Share that hit the token limit, of the rows that record how they ended; None if none does."""
    errors: int
    """Count of rows that could not be asked, or not be scored under one of the scorers."""
    docs: int
    """Count of docs; there are `repeats` rows of each."""
    repeats: int
    pass_at_k: Mapping[str, Mapping[int, Estimate]]
    """Scorer, then k: the mean over docs of the chance that one of k answers is right. {} without repeats."""
    ceilings: Mapping[str, float]
    """Per scorer, the mean score of right answers, each in the form that scores best; {} if not measured."""
    rows: tuple[ScoredRow, ...]

    @property
    def headline(self) -> str:
        """The scorer of numbers without a scorer's name: `strict` if it was run."""
        return "strict" if "strict" in self.estimates else next(iter(self.estimates))

    @property
    def first(self) -> str:
        """The aggregate of numbers without an aggregate's name."""
        return next(iter(self.chance))

    def flat(self) -> dict[str, Any]:
        """The numbers under lmms-eval's keys, as results.json has them. A value over no rows is None."""
        numbers: dict[str, Any] = {}
        for scorer, estimates in self.estimates.items():
            numbers |= _keys("acc", scorer, estimates[self.first])
            for name, estimate in estimates.items():
                numbers |= _keys(f"acc_{name}", scorer, estimate)
            if self.repeats > 1:
                numbers |= _keys(f"acc_avg@{self.repeats}", scorer, estimates[self.first])
            for k, estimate in self.pass_at_k.get(scorer, {}).items():
                numbers |= _keys(f"acc_pass@{k}", scorer, estimate)
            numbers[f"answered,{scorer}"] = self.answered[scorer]
        numbers |= {
            "n": self.docs,
            "repeats": self.repeats,
            "answered": self.answered[self.headline],
            "truncated": self.truncated,
            "errors": self.errors,
            "chance": self.mean_chance,
        }
        numbers |= {f"chance_{name}": json_number(value) for name, value in self.chance.items()}
        numbers |= {f"skipped,{scorer}": count for scorer, count in self.skipped.items()}
        numbers |= {f"ceiling,{scorer}": value for scorer, value in self.ceilings.items()}
        numbers |= {f"labels,{scorer}": dict(counts) for scorer, counts in self.labels.items()}
        return numbers


def summarise(
    task: Task,
    rows: Sequence[ScoredRow],
    *,
    seed: int,
    draws: int = DRAWS,
    ceilings: Mapping[str, float] | None = None,
) -> Results:
    """Every aggregate of every scorer with its interval. Pure; deterministic in the rows and the seed."""
    scorers = list(rows[0].scores)
    verdicts = {scorer: [row.scores[scorer] for row in rows] for scorer in scorers}

    # use the same resamples for every scorer and every aggregate
    columns, weights_R_N = label_columns(task, rows), resample_weights(task, rows, seed, draws)
    estimates = {
        scorer: {
            name: bootstrap(
                aggregate, scores_of(rows, scorer), columns, weights_R_N, parts_of(rows, scorer)
            )
            for name, aggregate in task.aggregates.items()
        }
        for scorer in scorers
    }
    chance_N = np.array([0.0 if row.doc.problem else task.chance(row.doc) for row in rows])
    chance = {name: point(one, chance_N, columns) for name, one in task.aggregates.items()}

    # How the answers ended, of those that say so, and what could be read in them.
    reasons = [row.prediction.response.finish_reason for row in rows]
    finished = [reason for reason in reasons if reason is not None]
    answered = {
        scorer: sum(one.parsed is not None for one in of) / len(of)
        for scorer, of in verdicts.items()
    }
    skipped = {scorer: sum(math.isnan(one.score) for one in of) for scorer, of in verdicts.items()}

    docs = len({row.doc.doc_id for row in rows})
    return Results(
        task=task.name,
        estimates=estimates,
        labels=_labels(task, rows, scorers),
        chance=chance,
        mean_chance=float(chance_N.mean()),
        answered=answered,
        skipped={scorer: count for scorer, count in skipped.items() if count},
        truncated=finished.count("length") / len(finished) if finished else None,
        errors=sum(row.error is not None for row in rows),
        docs=docs,
        repeats=len(rows) // docs,
        pass_at_k={scorer: _pass_at_k(task, rows, scorer, seed, draws) for scorer in scorers},
        ceilings=ceilings or {},
        rows=tuple(rows),
    )


def _pass_at_k(
    task: Task, rows: Sequence[ScoredRow], scorer: str, seed: int, draws: int
) -> dict[int, Estimate]:
    """pass@1, @2, @4 ... @repeats over docs, resampled by doc (or by the task's cluster)."""
    right: dict[int, list[bool]] = {}
    for row in rows:
        right.setdefault(row.doc.doc_id, []).append(row.scores[scorer].score >= task.right_from)
    repeats = len(next(iter(right.values())))
    if repeats == 1:
        return {}
    ones = list({row.doc.doc_id: row for row in rows}.values())
    weights_R_N = resample_weights(task, ones, seed, draws)
    ks = sorted({2**i for i in range(repeats.bit_length()) if 2**i <= repeats} | {repeats})
    return {
        k: bootstrap(
            Sample.mean,
            np.array([pass_at(k, sum(marks), repeats) for marks in right.values()]),
            {},
            weights_R_N,
        )
        for k in ks
    }


def results_json(
    results: Results, *, task: Task, original: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json. `original` is how many docs the data has, before any limit; `config` how the answers came about."""
    return {
        "results": {task.name: results.flat()},
        "configs": {
            task.name: {
                "description": task.description,
                "source": task.source,
                "published_sizes": dict(task.sizes),
                "metric": task.metric,
                "headline": results.first,
                "aggregates": list(task.aggregates),
                "scorers": list(results.estimates),
                "limited_by": list(task.strata),
                "resampled_within": list(task.resample_within),
                "resampled_together": task.cluster,
            }
        },
        "versions": {task.name: task.version},
        "n-samples": {task.name: {"original": original, "effective": results.docs}},
        "config": dict(config),
    }


def sample_records(results: Results, settings: EvalSettings | None) -> Iterable[dict[str, Any]]:
    """The lines of samples_<task>.jsonl: question, answer, and the verdict of each scorer.

    `input` is the rendered text where `settings` say how it was rendered, else the doc's own prompt. `doc` has everything
    needed to score the row again.
    """
    for row in results.rows:
        doc, response = row.doc, row.prediction.response
        yield {
            "task": results.task,
            "doc_id": doc.doc_id,
            "sample": row.prediction.sample,
            "input": render_turn(settings, doc) if settings else doc.example.prompt,
            "target": doc.gold,
            "response": response.text,
            "prefill": response.prefill,
            "finish_reason": response.finish_reason,
            "n_tokens": response.n_tokens,
            **({} if response.mask is None else {"mask": dict(response.mask)}),
            "error": row.prediction.error,
            "scores": {
                name: {
                    "parsed": one.parsed,
                    "answered": one.parsed is not None,
                    "score": 0.0 if math.isnan(one.score) else one.score,
                    "notes": one.note,
                }
                | ({"parts": dict(one.parts)} if one.parts else {})
                | ({"skipped": True} if math.isnan(one.score) else {})
                for name, one in row.scores.items()
            },
            "doc": doc_record(doc),
        }


def write_results(
    folder: Path, tree: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], task: str
) -> None:
    """Write results.json and samples_<task>.jsonl in `folder`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / f"samples_{task}.jsonl",
        "".join(json.dumps(sample, allow_nan=False) + "\n" for sample in samples),
    )
    _write(folder / "results.json", json.dumps(tree, indent=2, allow_nan=False) + "\n")


def json_number(value: float) -> float | None:
    """The value, with None for NaN, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def scores_of(rows: Sequence[ScoredRow], scorer: str) -> Floats:
    """scores_N of one scorer, NaN where it leaves the row out."""
    return np.array([row.scores[scorer].score for row in rows], dtype=np.float64)


def parts_of(rows: Sequence[ScoredRow], scorer: str) -> dict[str, Floats]:
    """The parts that the scorer gives, each [N]; a row without one counts as 0 in it."""
    names = {name for row in rows for name in row.scores[scorer].parts}
    return {
        name: np.array([row.scores[scorer].parts.get(name, 0.0) for row in rows])
        for name in sorted(names)
    }


def label_columns(task: Task, rows: Sequence[ScoredRow]) -> dict[str, NDArray[np.str_]]:
    """The columns that the task's aggregates choose by, each [N]."""
    return {
        name: np.array([str(row.doc.columns.get(name)) for row in rows]) for name in task.groups
    }


def resample_weights(task: Task, rows: Sequence[ScoredRow], seed: int, draws: int) -> Floats:
    """weights_R_N within the task's own strata; rows of one doc, or of one cluster of the task, are drawn together."""
    strata_N = [stratum(row.doc, task.resample_within) for row in rows]
    clusters_N = [row.doc.columns[task.cluster] if task.cluster else row.doc.doc_id for row in rows]
    return resample(strata_N, clusters_N, draws=draws, seed=seed)


def _labels(
    task: Task, rows: Sequence[ScoredRow], scorers: Sequence[str]
) -> dict[str, dict[str, int]]:
    if task.gold_label is None:
        return {}
    counts = {scorer: Counter(_label(row.scores[scorer]) for row in rows) for scorer in scorers}
    counts["gold"] = Counter(task.gold_label(row.doc) for row in rows)
    return {
        scorer: {
            label: one[label]
            for label in sorted(one, key=lambda label: (label == UNANSWERED, label))
        }
        for scorer, one in counts.items()
    }


def _keys(key: str, scorer: str, estimate: Estimate) -> dict[str, Any]:
    return {
        f"{key},{scorer}": json_number(estimate.value),
        f"{key}_stderr,{scorer}": json_number(estimate.stderr),
        f"{key}_ci95,{scorer}": [json_number(estimate.low), json_number(estimate.high)],
    }


def _label(verdict: Verdict) -> str:
    return UNANSWERED if verdict.parsed is None else verdict.parsed


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
