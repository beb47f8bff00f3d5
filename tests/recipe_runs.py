"""Recipes run for the tests: in this process, or in one that is killed at a chosen moment."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from gpg_vl.data.read import load_examples
from gpg_vl.data.recipe import Recipe, main
from gpg_vl.types import Example

ROOT = Path(__file__).parents[1]
KILLED = """
import os, pathlib, runpy, signal, sys
place, replace, calls = int(sys.argv[1]), pathlib.Path.replace, 0
def counted(self, target):
    global calls
    calls += 1
    if calls > place:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = counted
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that is killed when it is about to give a finished file its name, the place-th time."""


@cache
def script(name: str) -> ModuleType:
    """The module of data_recipes/NAME.py."""
    spec = importlib.util.spec_from_file_location(
        f"data_recipes_{name}", ROOT / "data_recipes" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str | Path) -> int:
    """The exit code of a recipe's command line."""
    module = script(name)
    recipe: Recipe | dict[str, Recipe] = (
        module.RECIPES if hasattr(module, "RECIPES") else module.RECIPE
    )
    return main(recipe, [str(argument) for argument in arguments])


def run_killed(name: str, place: int, *arguments: str | Path) -> int:
    """The return code of the recipe in a process of its own, killed at its `place`-th finished file."""
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(place),
        str(ROOT / "data_recipes" / f"{name}.py"),
        *map(str, arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, timeout=120
    ).returncode


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def examples(out: Path, split: str = "train") -> list[Example]:
    """A split as training reads it, without any column mapping."""
    return load_examples(out / split)


def card(out: Path) -> dict[str, Any]:
    return json.loads((out / "card.json").read_text())


def broken(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines()]
