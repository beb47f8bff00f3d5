"""Prepares the charts for the page's script: which curves are drawn from which columns, for one run or for two."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpg_vl.report.curves import Table
from gpg_vl.report.visible_text import line

MOST_SERIES = 12
"""Curves of one chart and run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A chart of training metrics: its columns by name, or all columns with a given beginning and ending.

    Example: `Kind(title="Gradient norm", columns=("grad_norm",))`
    """

    title: str
    columns: tuple[str, ...] = ()
    beginning: str | None = None
    ending: str = ""
    note: str = ""
    log: bool = False

    def names(self, table: Table) -> list[str]:
        """The columns of the table that the chart shows."""
        if self.beginning is None:
            return [name for name in self.columns if name in table.columns]
        found = [
            name
            for name in table.columns
            if name.startswith(self.beginning) and name.endswith(self.ending)
        ]
        return sorted(found)[:MOST_SERIES]


TRAINING = (
    Kind(
        title="Reward",
        columns=("reward", "greedy_reward"),
        note="weighted total, mean over all answers",
    ),
    Kind(title="Reward by function", beginning="reward/", note="unweighted means"),
    Kind(title="Reward by task", beginning="reward_by_task/", note="weighted total"),
    Kind(title="Reward by source", beginning="source/", ending="/reward", note="weighted total"),
    Kind(
        title="Accuracy by source",
        beginning="source/",
        ending="/accuracy",
        note="share with full marks in the first reward of the source",
    ),
    Kind(
        title="Groups by source",
        beginning="source/",
        ending="/valid_share",
        note="share with unequal rewards",
    ),
    Kind(title="Length by source", beginning="source/", ending="/length", note="tokens"),
    Kind(
        title="Accuracy",
        columns=("accuracy", "greedy_accuracy"),
        note="share with full marks in the first reward",
    ),
    Kind(
        title="Groups",
        columns=("valid_share", "all_right_share", "all_wrong_share"),
        note="only groups with unequal rewards teach anything",
    ),
    Kind(title="Alpha", columns=("alpha",), note="correction for groups without a signal"),
    Kind(title="Entropy", columns=("entropy",), note="per token"),
    Kind(title="Length of answers", columns=("length_all", "length_valid"), note="tokens"),
    Kind(title="Truncated answers", columns=("truncated_share",), note="share cut by the limit"),
    Kind(
        title="Log-prob gap",
        columns=("logp_gap_mean", "logp_gap_max", "logp_gap_stale_mean", "logp_gap_stale_max"),
        note="engine against trainer, absolute; a value of 0 is not drawn",
        log=True,
    ),
    Kind(title="Gradient norm", columns=("grad_norm",)),
    Kind(title="Loss", columns=("loss",)),
    Kind(title="Loss of the critic", columns=("value_loss",)),
    Kind(
        title="Explained variance",
        columns=("explained_variance",),
        note="of returns, by the critic: 1 if it is exact",
    ),
    Kind(title="Learning rate", beginning="learning_rate"),
    Kind(title="Seconds", beginning="seconds/", note="per step, by phase"),
    Kind(title="Share of a step", beginning="share_of_step/", note="data: waiting for prompts"),
)
_NO_SCORES = ("answered", "truncated", "rows")
_BLANK = "blank_"


def chart_data(
    trains: Sequence[Table], evals: Sequence[Table], labels: Sequence[str]
) -> dict[str, Any]:
    """Two tables, of training and of evaluations, and the charts that name their columns.

    `labels`: what the runs are called, of as many runs as there are tables. A column is `RUN:NAME`, RUN from 0.
    """
    return {
        "tables": [_merge(trains), _merge(evals)],
        "training": list(_training(trains, labels)),
        "evaluations": list(_evaluations(evals, labels)),
    }


def score_names(table: Table) -> list[str]:
    """The scores of evaluations, without what is next to them."""
    return [
        name
        for name in table.columns
        if "/" not in name and name not in _NO_SCORES and not name.startswith(_BLANK)
    ]


def _merge(tables: Sequence[Table]) -> dict[str, Any]:
    """One table with the steps of all, and nothing where a run has no such step."""
    steps = sorted({step for table in tables for step in table.steps})
    columns: dict[str, list[int | float | None]] = {}
    for run, table in enumerate(tables):
        # a step that is there twice was evaluated twice: the later one counts
        place = {step: index for index, step in enumerate(table.steps)}
        where = [place.get(step) for step in steps]
        for name, values in table.columns.items():
            columns[f"{run}:{name}"] = [None if at is None else values[at] for at in where]
    return {"steps": steps, "columns": columns}


def _training(tables: Sequence[Table], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    for kind in TRAINING:
        names = list(dict.fromkeys(name for table in tables for name in kind.names(table)))
        if names:
            series = [
                # each run has its own colours, because dashes are hard to see on a noisy curve
                _series(run, name, hue + run * len(names), labels, kind)
                for hue, name in enumerate(names)
                for run, table in enumerate(tables)
                if name in table.columns
            ]
            yield {"title": kind.title, "note": kind.note, "log": kind.log, "series": series}


def _series(run: int, name: str, hue: int, labels: Sequence[str], kind: Kind) -> dict[str, Any]:
    short = name.removesuffix(kind.ending)
    if kind.beginning and kind.beginning.endswith("/"):
        short = short.removeprefix(kind.beginning)
    return {
        "label": _label(short, run, labels),
        "column": f"{run}:{name}",
        "hue": hue,
        "run": run,
    }


def _evaluations(tables: Sequence[Table], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    names = list(dict.fromkeys(name for table in tables for name in score_names(table)))
    for name in names[:MOST_SERIES]:
        series: list[dict[str, Any]] = []
        for run, table in enumerate(tables):
            if name in table.columns:
                series += _score_series(run, name, table.columns, labels)
        yield {"title": line(name), "note": "", "log": False, "series": series}


def _score_series(
    run: int, name: str, columns: Mapping[str, Any], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The curves of a score with its interval, of the score with blank images, and of chance."""
    kinds = (("", name, 0), (_BLANK, f"{_BLANK}{name}", 1))
    for prefix, column, hue in kinds:
        if column not in columns:
            continue
        what = "blank picture" if prefix else "real picture"
        low, high = f"ci95/{column}/0", f"ci95/{column}/1"
        band = [f"{run}:{low}", f"{run}:{high}"] if low in columns and high in columns else None
        yield {
            "label": _label(what, run, labels),
            "column": f"{run}:{column}",
            "hue": hue + run * len(kinds),
            "run": run,
            "band": band,
        }

    chance = f"chance/{name}"
    if chance in columns and run == 0:
        yield {
            "label": "chance",
            "column": f"{run}:{chance}",
            "hue": 7,
            "run": run,
            "dash": True,
        }


def _label(name: str, run: int, labels: Sequence[str]) -> str:
    """The label in the legend; a name that is too long keeps its end, where reward names differ."""
    if len(labels) == 1:
        return _short(line(name), 40)
    return f"{_short(line(name), 30)} · {_short(labels[run], 20)}"


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
