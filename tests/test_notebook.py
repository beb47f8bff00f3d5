"""notebooks/quickstart.ipynb: its code cells run from top to bottom in a process of their own, in an empty folder."""

import json
from pathlib import Path

import pytest
from runs import run_python

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())
SIZES = "TRAIN_ROWS, TEST_ROWS, STEPS = 2000, 240, 60"

RUNNER = '''
"""Run code cells as a notebook does: in one namespace, the value of a last expression shown."""
import ast, json, sys
import matplotlib
matplotlib.use("Agg")
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(open(sys.argv[1]))):
    *statements, last = ast.parse(source).body
    expression = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
    body = statements if expression else [*statements, last]
    where = f"cell {number}"
    exec(compile(ast.Module(body, []), where, "exec"), names)
    if expression:
        value = eval(compile(expression, where, "eval"), names)
        if value is not None:
            print(repr(value))
'''


def code_cells() -> list[str]:
    return ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def run_cells(cells: list[str], folder: Path) -> str:
    (folder / "runner.py").write_text(RUNNER)
    (folder / "cells.json").write_text(json.dumps(cells))
    result = run_python("runner.py", "cells.json", cwd=folder, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "%|" not in result.stderr, "a bar of a library"
    return result.stdout


def test_the_notebook_holds_no_output_and_says_what_each_step_is() -> None:
    kinds = [cell["cell_type"] for cell in NOTEBOOK["cells"]]
    assert NOTEBOOK["nbformat"] == 4
    assert all(not cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    assert kinds[0] == "markdown"
    assert SIZES in code_cells()[0]


def test_the_notebook_runs_in_small(tmp_path: Path) -> None:
    cells = code_cells()
    cells[0] = cells[0].replace(SIZES, "TRAIN_ROWS, TEST_ROWS, STEPS = 64, 48, 1")
    said = run_cells(cells, tmp_path)
    assert (tmp_path / "runs/notebook/run/report.html").is_file()
    for text in ("right: (", "advantage +", "step     1/1", "trained "):
        assert text in said


@pytest.mark.slow  # two minutes of training
def test_the_notebook_as_it_is_learns_something(tmp_path: Path) -> None:
    said = run_cells(code_cells(), tmp_path)
    base, trained = (
        float(line.split()[1].rstrip("%"))
        for line in said.splitlines()
        if line.startswith(("base  ", "trained "))
    )
    assert trained > base + 3, said
