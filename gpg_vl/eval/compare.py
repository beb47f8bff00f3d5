"""Compares two runs on the same docs: which is better, and whether the difference may be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpg_vl.eval.results import (
    ScoredRow,
    json_number,
    label_columns,
    parts_of,
    resample_weights,
    scores_of,
)
from gpg_vl.eval.statistics import DRAWS, Estimate, McNemar, bootstrap_difference, mcnemar
from gpg_vl.eval.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run minus another on the same docs, under one scorer."""

    differences: Mapping[str, Estimate]
    """Per aggregate."""
    mcnemar: McNemar | None
    """McNemar's test of right and wrong docs. None if docs are answered several times, or if scores are graded and the task
    does not define from which score an answer is right."""


def compare(
    task: Task,
    rows: Sequence[ScoredRow],
    others: Sequence[ScoredRow],
    *,
    seed: int,
    draws: int = DRAWS,
) -> dict[str, Comparison]:
    """`rows` minus `others` per scorer, joined on doc and sample. Raises ValueError unless both are of the same ones."""
    by_place = {_place(row): row for row in others}
    if by_place.keys() != {_place(row) for row in rows}:
        raise ValueError(
            f"A comparison needs the same docs twice; {len(rows)} and {len(others)} rows with different ids were given."
        )

    # pair the rows, and use the same resamples for both
    others = [by_place[_place(row)] for row in rows]
    columns, weights_R_N = label_columns(task, rows), resample_weights(task, rows, seed, draws)
    repeated = any(row.prediction.sample for row in rows)

    found = {}
    for scorer in rows[0].scores:
        first_N, second_N = scores_of(rows, scorer), scores_of(others, scorer)
        parts = parts_of(rows, scorer), parts_of(others, scorer)
        differences = {
            name: bootstrap_difference(aggregate, first_N, second_N, columns, weights_R_N, *parts)
            for name, aggregate in task.aggregates.items()
        }

        # McNemar's test needs one right-or-wrong result per doc
        graded = (
            task.right_from == 1
            and not np.isin(np.concatenate([first_N, second_N]), (0.0, 1.0)).all()
        )
        right_N, other_right_N = (
            (one >= task.right_from).astype(np.float64) for one in (first_N, second_N)
        )
        test = None if repeated or graded else mcnemar(right_N, other_right_N)
        found[scorer] = Comparison(differences=differences, mcnemar=test)
    return found


def _place(row: ScoredRow) -> tuple[int, int]:
    return row.doc.doc_id, row.prediction.sample


def comparison_json(one: Comparison) -> dict[str, Any]:
    """The comparison for results.json, as fractions of 1."""
    numbers: dict[str, Any] = {
        f"diff_{name}": {
            "value": json_number(e.value),
            "ci95": [json_number(e.low), json_number(e.high)],
        }
        for name, e in one.differences.items()
    }
    if one.mcnemar is not None:
        numbers["mcnemar"] = {
            "only_this": one.mcnemar.only_first,
            "only_other": one.mcnemar.only_second,
            "p_value": one.mcnemar.p_value,
        }
    return numbers
