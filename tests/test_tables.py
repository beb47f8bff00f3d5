"""Tables of numbers at 80 columns: no interval is broken over lines."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from runs import write_config
from test_cvbench import rows_with

from gpg_vl.config import load_config
from gpg_vl.console import fit_tables, wrap
from gpg_vl.eval.compare import compare
from gpg_vl.eval.display import comparison_tables, results_tables
from gpg_vl.eval.results import ScoredRow, summarise
from gpg_vl.eval.tasks import tasks
from gpg_vl.quickstart.run import SHOWN, summary_table
from gpg_vl.training.memory_fit import Choice, Fit, render_fits
from gpg_vl.training.plan_table import render_plan
from gpg_vl.training.prepare import prepare
from gpg_vl.training.speed import StepSeconds

TASK = tasks.get("cvbench")()
WHOLE = r"[+-]?\d+\.\d\d ± \d+\.\d\d \[[+-]?\d+\.\d\d, [+-]?\d+\.\d\d\]"
HALF = r"[+-]?\d+\.\d\d ± \d+\.\d\d"


def printed(tables: Sequence[Table], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return text


def scored(right: int, scorers: int) -> list[ScoredRow]:
    """Rows of three sources, under so many scorers of the same rule."""
    rows = rows_with([("COCO", "Count", 20, right), ("Omni3D", "Distance", 20, 20)])
    return [
        ScoredRow(
            doc=row.doc,
            prediction=row.prediction,
            scores={f"scorer {n}": row.scores["strict"] for n in range(scorers)},
        )
        for row in rows
    ]


@pytest.mark.parametrize(
    ("width", "scorers", "pattern", "tables"),
    [(80, 1, WHOLE, 1), (80, 2, HALF, 1), (80, 3, HALF, 1), (80, 7, HALF, 3), (160, 3, WHOLE, 1)],
)
def test_no_interval_of_an_evaluation_is_broken(
    width: int, scorers: int, pattern: str, tables: int
) -> None:
    rows, others = scored(10, scorers), scored(5, scorers)
    console = Console(width=width)
    results = summarise(TASK, rows, seed=0, draws=20)
    drawn = results_tables(results, console)
    known = [name for name in results.chance if results.chance[name] == results.chance[name]]
    assert len(drawn) == tables
    assert len(re.findall(pattern, printed(drawn, width))) == scorers * len(known)

    drawn = comparison_tables(compare(TASK, rows, others, seed=0, draws=20), console)
    text = printed(drawn, width)
    assert len(re.findall(pattern, text)) == scorers * len(known)
    assert "no rows" not in text, "what is not there has no row"


def tree(accuracy: float) -> dict[str, object]:
    """What the quickstart reads of results.json, every number as wide as it can be."""
    numbers: dict[str, object] = {"n": 1200}
    differences = {}
    for name in SHOWN:
        numbers |= {
            f"acc_{name},strict": accuracy,
            f"acc_{name}_ci95,strict": [accuracy, accuracy],
            f"chance_{name}": 0.5,
        }
        differences[f"diff_{name}"] = {"value": -1.0, "ci95": [-1.0, -1.0]}
    return {"results": {"cvbench": numbers}, "comparison": {"strict": differences}}


@pytest.mark.parametrize(
    ("accuracy", "cell", "difference"),
    [
        (0.517, "51.7 [51.7, 51.7]", "-100.0 [-100.0, -100.0]"),
        (1.0, " 100.0 ± 0.0", "-100.0 ± 0.0"),
    ],
)
def test_no_interval_of_the_quickstart_is_broken(
    accuracy: float, cell: str, difference: str
) -> None:
    make = partial(summary_table, tree(accuracy), tree(accuracy))
    drawn = fit_tables(Console(width=80), ("base", "trained", "difference"), make)
    text = printed(drawn, 80)
    assert text.count(cell) == 2 * len(SHOWN)
    assert text.count(difference) == len(SHOWN)
    assert "drawn scenes" in text


# ---- what a run is told before it starts


def test_a_line_is_broken_between_words_and_not_between_a_number_and_its_unit() -> None:
    assert wrap("needs 14 MiB now", 9) == ["needs", "14 MiB", "now"]
    assert wrap("choice x 0.5, 640 groups", 11) == ["choice", "x 0.5,", "640 groups"]
    assert wrap("a\n\nb", 9) == ["a", "", "b"]


UNITS = r"[\d.,]+ (?:[KMG]iB|[MGT]FLOP|%|s\b|minutes|answers|groups|steps|tokens|patches|epochs|parameters)"


@pytest.mark.parametrize("width", [80, 71])
def test_no_number_of_the_plan_is_broken(tiny_checkpoint: Path, tmp_path: Path, width: int) -> None:
    """What a wide terminal shows on a line, a narrow one does, too; several widths, so that lines end elsewhere."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    prepared = prepare(config, processes=1, console=None)
    plan = replace(prepared.plan, seconds=StepSeconds(answers=0.52, train=250.0))
    shown = []
    for columns in (2000, width):
        console = Console(file=io.StringIO(), width=columns)
        render_plan(plan, config, console)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= columns
        assert not re.search("…|\\.\\.\\.", text), "nothing is left out"
        shown.append(Counter(re.findall(UNITS, text)))
    assert shown[0] == shown[1]
    assert len(shown[0]) > 20


@pytest.mark.parametrize(("width", "times"), [(80, 2), (140, 1)])
@pytest.mark.parametrize("chosen", ["zero3", None])
def test_no_column_of_what_fits_is_cut(width: int, times: int, chosen: str | None) -> None:
    """Four shardings, numbers of hundreds: side by side where there is room, else below each other."""
    names = ("none", "fsdp2", "zero2", "zero3")
    fits = tuple(
        Fit(
            choice=Choice(
                sharding=name,
                dtype="bfloat16",
                weights="bfloat16",
                optimizer="adamw_8bit",
                lora_rank=rank,
                checkpointing=True,
            ),
            needed=(100.5 + number) * 2**30,
            fits=number == 3,
            is_chosen=name == chosen and rank == 0,
        )
        for rank in (0, 128)
        for number, name in enumerate(names)
    )
    console = Console(file=io.StringIO(), width=width)
    render_fits(fits, 80 * 2**30, console, devices=8)
    lines: list[str] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    table = [line for line in lines if line.startswith(("│", "╭", "╰"))]
    assert max(map(len, table)) <= width
    text = " ".join(" ".join(table).replace("│", " ").split())
    assert "…" not in text
    assert "8 of them, train.sharding none | fsdp2 | zero2 | zero3" in text
    assert text.count("dtype weights optimizer LoRA checkpointing") == times

    # each cell is whole, once for each of the two rows
    for number, cell in enumerate(("100.5 no", "101.5 no", "102.5 no", "103.5 fits")):
        wide = cell if number == 3 or width == 80 else cell.replace("no", "too large")
        assert len(re.findall(rf"{re.escape(wide)}(?: |$)", text)) == 2
    assert text.count("rank 128") == times
    marked = r"103\.5 fits \*(?!:)" if width == 80 else "103.5 fits this config"
    assert len(re.findall(marked, text)) == (chosen is not None)
