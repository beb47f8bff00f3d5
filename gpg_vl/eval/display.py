"""Prints results as tables and notes: per cent, half-widths, and where scorers disagree."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from gpg_vl.console import fit_tables, plain
from gpg_vl.eval.compare import Comparison
from gpg_vl.eval.results import Results, ScoredRow
from gpg_vl.eval.statistics import DRAWS, Estimate
from gpg_vl.eval.task import Task

_PATTERNS = 8  # maximum number of disagreement patterns shown
_ANSWERED = 0.9  # below this share a reader should ask whether the prompt fits the model


def results_tables(results: Results, console: Console) -> list[Table]:
    """Aggregates by scorers: per cent, half-width and 95% interval, with chance next to them."""
    return fit_tables(console, list(results.estimates), partial(_results_table, results))


def _results_table(results: Results, scorers: Sequence[str], brief: bool) -> Table:
    table = Table()
    table.add_column("score, %")
    for scorer in scorers:
        table.add_column(scorer, justify="right", no_wrap=True)
    table.add_column("chance", justify="right")
    for name in results.chance:
        if all(math.isnan(estimates[name].value) for estimates in results.estimates.values()):
            continue
        cells = [interval_cell(results.estimates[one][name], brief=brief) for one in scorers]
        table.add_row(name, *cells, percent(results.chance[name]))
    for k in next(iter(results.pass_at_k.values())):
        cells = [interval_cell(results.pass_at_k[one][k], brief=brief) for one in scorers]
        table.add_row(f"pass@{k}", *cells, "")
    table.add_section()
    table.add_row("answered", *(percent(results.answered[one]) for one in scorers), "")
    if any(ceiling < 1 for ceiling in results.ceilings.values()):
        ceilings = [percent(results.ceilings[one]) for one in scorers]
        table.add_row("ceiling: mean score", *ceilings, "")
    return table


def results_notes(results: Results, *, prompt: str) -> list[str]:
    """The notes under the table: number of rows, truncated answers, answer counts, and warnings."""
    truncated = "not recorded" if results.truncated is None else percent(results.truncated) + "%"
    times = "" if results.repeats == 1 else f" x {results.repeats} answers (avg@{results.repeats})"
    lines = [
        f"n = {results.docs}{times}   truncated {truncated}   errors {results.errors}",
        f"± and [ ]: 95% percentile bootstrap, {DRAWS} resamples",
    ]
    if absent := [name for name, value in results.chance.items() if math.isnan(value)]:
        lines.append(f"no rows for: {', '.join(absent)}")
    lines += [
        f"{scorer} leaves {count} rows out, as published"
        for scorer, count in results.skipped.items()
    ]
    for scorer, counts in results.labels.items():
        lines.append(
            f"answers, {scorer}: "
            + "  ".join(f"{label} {count}" for label, count in counts.items())
        )
    if results.answered[results.headline] < _ANSWERED:
        lines.append(
            f"warning: {results.headline} finds an answer in only {100 * results.answered[results.headline]:.1f}% of the "
            f"responses (prompt: {prompt}). Does the prompt ask for the answer in a form that the model gives?"
        )
    return lines


def size_note(task: Task, docs: int) -> str | None:
    """A note if the data is not a published split, else None."""
    if docs in task.sizes.values():
        return None
    sizes = (
        ", ".join(f"{name} {size}" for name, size in task.sizes.items())
        if len(task.sizes) > 1
        else None
    )
    published = sizes or next(iter(task.sizes.values()))
    return f"note: the data has {docs} rows, the published benchmark {published}. Published numbers are of all."


def disagreement_table(rows: Sequence[ScoredRow]) -> Table | None:
    """The answers on which the scorers differ, by pattern of scores, with one example each; None if they never do."""
    patterns: dict[tuple[float, ...], list[ScoredRow]] = {}
    for row in rows:
        scores = tuple(round(score.score, 2) for score in row.scores.values())
        if len(set(scores)) > 1:
            patterns.setdefault(scores, []).append(row)
    if not patterns:
        return None

    ordered = sorted(patterns.items(), key=lambda item: (-len(item[1]), item[0]))
    differing = sum(map(len, patterns.values()))
    table = Table(
        title=f"scorers disagree on {differing} of {len(rows)} answers", title_justify="left"
    )
    table.add_column("rows", justify="right")
    for scorer in rows[0].scores:
        table.add_column(scorer, justify="right")
    table.add_column("for example", overflow="ellipsis", no_wrap=True, max_width=60)

    for scores, members in ordered[:_PATTERNS]:
        one = members[0]
        response = one.prediction.response.text[-200:]
        example = f"doc {one.doc.doc_id}, gold {one.doc.gold!r}: {response!r}"
        table.add_row(str(len(members)), *(f"{score:g}" for score in scores), plain(example))

    if len(ordered) > _PATTERNS:
        rest = sum(len(members) for _, members in ordered[_PATTERNS:])
        table.add_row(
            str(rest), *("" for _ in rows[0].scores), f"in {len(ordered) - _PATTERNS} more patterns"
        )
    return table


def comparison_tables(comparison: Mapping[str, Comparison], console: Console) -> list[Table]:
    """Differences in percentage points with paired 95% intervals, and McNemar's counts and p."""
    return fit_tables(console, list(comparison), partial(_comparison_table, comparison))


def _comparison_table(
    comparison: Mapping[str, Comparison], scorers: Sequence[str], brief: bool
) -> Table:
    table = Table()
    table.add_column("difference, points")
    for scorer in scorers:
        table.add_column(scorer, justify="right", no_wrap=True)
    chosen = [comparison[scorer] for scorer in scorers]
    for name in chosen[0].differences:
        if all(math.isnan(one.differences[name].value) for one in chosen):
            continue
        cells = [interval_cell(one.differences[name], sign="+", brief=brief) for one in chosen]
        table.add_row(name, *cells)
    table.add_section()
    tests = [one.mcnemar for one in chosen]
    table.add_row(
        "only this / only other right",
        *(f"{t.only_first} / {t.only_second}" if t else "-" for t in tests),
    )
    table.add_row("McNemar exact p", *(f"{t.p_value:.4g}" if t else "-" for t in tests))
    return table


def interval_cell(estimate: Estimate, sign: str = "", *, brief: bool = False) -> str:
    """`76.15 ± 1.70 [74.41, 77.81]` for fractions of 1; `sign="+"` writes the sign of positive numbers too."""
    if math.isnan(estimate.value):
        return "no rows"
    value = f"{100 * estimate.value:{sign}.2f} ± {100 * estimate.half_width:.2f}"
    low, high = (f"{100 * bound:{sign}.2f}" for bound in (estimate.low, estimate.high))
    return value if brief else f"{value} [{low}, {high}]"


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
