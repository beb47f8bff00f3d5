"""Renders the page of a run: one HTML file that loads nothing.

The plots are uPlot's (50 kB where plotly has 4.5 MB, so that a report can be mailed; a canvas, quick with thousands of
steps). Nothing that a run has written becomes markup or script: jinja2 escapes it, the numbers are a JSON block, and
the page's own policy names the digests of the only scripts and styles that a browser may run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpg_vl.report import charts, view
from gpg_vl.report.curves import Table
from gpg_vl.report.evaluations import Changed, compare
from gpg_vl.report.folder import Run, read_run
from gpg_vl.report.groups import spread
from gpg_vl.report.phases import phases
from gpg_vl.report.pictures import Album
from gpg_vl.report.visible_text import line

PICTURE_BYTES = 9 << 20
"""Maximum characters of all images of a page, so that with its texts it stays below 15 MB."""
MOST_EVALUATIONS = 30
"""Lines of the table of evaluations."""
NAME = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Before and after, or one run and the other."""

    title: str
    before: str
    after: str
    changed: Changed
    rows: dict[str, list[view.PairView]]


def write_report(folder: Path, other: Path | None = None, to: Path | None = None) -> Path:
    """Write the page of a run, next to another one if there is one. Returns its file, `report.html` in the run folder.

    Raises UserError if there is no such run, OSError if the page cannot be written.
    """
    file = folder / NAME if to is None else to
    page = render(read_run(folder), None if other is None else read_run(other))

    # write atomically, also for readers that have it open
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)
    return file


def render(run: Run, other: Run | None = None, *, live: bool = False) -> str:
    """The page as HTML. `live`: the page polls its server for changes."""
    runs = [run] if other is None else [run, other]
    labels = _labels(runs)
    album = Album(run.folder.resolve(), PICTURE_BYTES)
    css = _static("uplot.min.css") + _static("page.css")
    scripts = [_static("uplot.min.js"), _static("page.js")]
    data = charts.chart_data(
        [one.metrics.train for one in runs], [one.metrics.eval for one in runs], labels
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=line(run.folder.resolve().name, 80),
            run=run,
            other=other,
            labels=labels,
            live=live,
            policy=_policy(css, scripts, live=live),
            css=css,
            scripts=scripts,
            data=embed(data),
            data_steps=any(one.metrics.train.rows for one in runs),
            facts=[view.facts(one) for one in runs],
            missing=[[line(message, 400) for message in one.missing] for one in runs],
            thinned=[
                message
                for one in runs
                for message in _describe_thinning(one.metrics.train, "steps")
            ],
            evaluations=[_evaluations(one) for one in runs],
            differences=view.differences(run, other) if other is not None else [],
            pairs=[_pairs(*one, album) for one in _changes(run, other, labels)],
            groups=view.group_views(run.samples.groups, album),
            phases=[phases(one) for one in runs],
        )
    )


def embed(data: Any) -> str:
    """JSON that is safe inside a script element: characters with a meaning in HTML are escaped."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---- parts of the page


def _labels(runs: Sequence[Run]) -> list[str]:
    """Short names of the runs: their folder names, or as much of the path as needed to distinguish them."""
    paths = [one.folder.resolve() for one in runs]
    for depth in (1, 2, 3):
        names = [line("/".join(path.parts[-depth:]), 40) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place + 1})" for place, name in enumerate(names)]


def _evaluations(run: Run) -> list[tuple[int, list[view.Score]]]:
    table = run.metrics.eval
    names = charts.score_names(table)[: charts.MOST_SERIES]
    places = spread(range(len(table.steps)), MOST_EVALUATIONS)
    return [(table.steps[place], view.scores(run, place, names)) for place in places]


def _describe_thinning(table: Table, what: str) -> list[str]:
    if table.every == 1:
        return []
    return [f"Of {table.rows:,} {what} every {table.every:,}th is drawn, and the last."]


def _changes(
    run: Run, other: Run | None, labels: Sequence[str]
) -> list[tuple[str, str, str, Changed, Path]]:
    found = []
    if run.changed is not None:
        before, after = f"step {run.changed.before}", f"step {run.changed.after}"
        found.append(("Before and after", before, after, run.changed, run.folder))
    if other is not None and run.evaluations and other.evaluations:
        ends = [max(one.evaluations.items()) for one in (run, other)]
        found.append(("The two runs", labels[0], labels[1], compare(ends[0], ends[1]), run.folder))
    return found


def _pairs(
    title: str, before: str, after: str, changed: Changed, folder: Path, album: Album
) -> Pairs:
    pictures = folder / "evaluations" / "pictures"
    return Pairs(
        title=title,
        before=before,
        after=after,
        changed=changed,
        rows=view.pair_views(changed, album, pictures),
    )


# ---- what the page is made with


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gpg_vl.report", "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = line
    return environment


@cache
def _static(name: str) -> str:
    return (files("gpg_vl.report") / "static" / name).read_text(encoding="utf-8")


def _policy(css: str, scripts: Sequence[str], *, live: bool) -> str:
    """The content security policy: nothing is loaded, and only these scripts and styles run."""
    allowed = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(css)}; img-src data:; "
        f"connect-src {chr(39)}{'self' if live else 'none'}{chr(39)}; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
