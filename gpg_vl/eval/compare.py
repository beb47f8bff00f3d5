"""Two runs on the same docs: which is better, and could it be luck."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from gpg_vl.eval.results import ScoredRow, interval_cell, json_number, label_columns, resample_weights, scores_of
from gpg_vl.eval.statistics import DRAWS, Estimate, McNemar, bootstrap_difference, mcnemar
from gpg_vl.eval.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run minus another on the same docs, under one scorer."""

    differences: Mapping[str, Estimate]
    """Per aggregate."""
    mcnemar: McNemar | None
    """None where scores are not all 0 or 1."""


def compare(
    task: Task, rows: Sequence[ScoredRow], others: Sequence[ScoredRow], *, seed: int, draws: int = DRAWS
) -> dict[str, Comparison]:
    """`rows` minus `others` per scorer, joined on doc_id. Raises ValueError unless both are of the same docs."""
    by_id = {row.doc.doc_id: row for row in others}
    if by_id.keys() != {row.doc.doc_id for row in rows}:
        raise ValueError(
            f"A comparison needs the same docs twice; {len(rows)} and {len(others)} rows with different ids were given."
        )
    others = [by_id[row.doc.doc_id] for row in rows]
    columns, weights_R_N = label_columns(task, rows), resample_weights(task, rows, seed, draws)
    found = {}
    for scorer in rows[0].scores:
        first_N, second_N = scores_of(rows, scorer), scores_of(others, scorer)
        differences = {
            name: bootstrap_difference(aggregate, first_N, second_N, columns, weights_R_N)
            for name, aggregate in task.aggregates.items()
        }
        binary = np.isin(np.concatenate([first_N, second_N]), (0.0, 1.0)).all()
        found[scorer] = Comparison(differences=differences, mcnemar=mcnemar(first_N, second_N) if binary else None)
    return found


def comparison_table(comparison: Mapping[str, Comparison]) -> Table:
    """Differences in percentage points with their paired 95% intervals, and McNemar's counts and p."""
    table = Table()
    table.add_column("difference, points")
    for scorer in comparison:
        table.add_column(scorer, justify="right")
    for name in next(iter(comparison.values())).differences:
        table.add_row(name, *(interval_cell(one.differences[name], sign="+") for one in comparison.values()))
    table.add_section()
    tests = [one.mcnemar for one in comparison.values()]
    table.add_row("only this / only other right", *(f"{t.only_first} / {t.only_second}" if t else "-" for t in tests))
    table.add_row("McNemar exact p", *(f"{t.p_value:.4g}" if t else "-" for t in tests))
    return table


def comparison_json(one: Comparison) -> dict[str, Any]:
    """The comparison for results.json, as fractions of 1."""
    numbers: dict[str, Any] = {
        f"diff_{name}": {"value": json_number(e.value), "ci95": [json_number(e.low), json_number(e.high)]}
        for name, e in one.differences.items()
    }
    if one.mcnemar is not None:
        numbers["mcnemar"] = {
            "only_this": one.mcnemar.only_first,
            "only_other": one.mcnemar.only_second,
            "p_value": one.mcnemar.p_value,
        }
    return numbers
