"""docs/new_task.md is carried out: its files are written, its commands run in its order, and what they print is compared.

A file is a fenced block under a line that holds its name alone. In a `console` block a line after `$ ` is a command, and
those below it are what it prints: blanks count as one, a line `...` stands for any lines, `...` in a line for any text.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from runs import environment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new_task.md").read_text()
MODEL = "models/Qwen2-VL-2B-Instruct"
FILE = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """A command and the lines that it is said to print."""

    command: str
    expected: list[str]


def files(page: str) -> dict[str, str]:
    return dict(FILE.findall(page))


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for line in "".join(CONSOLE.findall(page)).splitlines():
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ "), []))
        else:
            found[-1].expected.append(line)
    return found


def prints(expected: list[str], output: str) -> bool:
    """True if the output is what is expected, or less than that is expected of it where there is `...`."""
    parts = [r"(?:[^\n]*\n)*?" if line == "..." else pattern(line) + "\n" for line in expected]
    text = "".join(f"{' '.join(line.split())}\n" for line in output.splitlines() if line.strip())
    return re.fullmatch("".join(parts), text) is not None


def pattern(line: str) -> str:
    return r"[^\n]*".join(re.escape(part) for part in line.split("..."))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, a model where it expects one, and programs called as it calls them."""
    folder = tmp_path_factory.mktemp("new_task")
    for name, text in files(PAGE).items():
        (folder / name).write_text(text)
    (folder / "models").mkdir()
    (folder / MODEL).symlink_to(tiny_checkpoint, target_is_directory=True)
    (folder / "bin").mkdir()
    # An installed program does not import from the folder it is started in; -P is that.
    for name, start in {"python": "", "gpg-vl": "-P -m gpg_vl"}.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        program.chmod(0o755)
    return folder


def test_the_page_runs_as_it_is_printed(folder: Path) -> None:
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for step in steps(PAGE):
        done = subprocess.run(
            step.command,
            shell=True,
            cwd=folder,
            env=environment() | paths,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{step.command}\n{done.stdout}\n{done.stderr}"
        assert prints(step.expected, done.stdout), f"$ {step.command}\n{done.stdout}"
    rows = [
        json.loads(line) for line in (folder / "runs/try/metrics.jsonl").read_text().splitlines()
    ]
    assert [(row["step"], row["kind"]) for row in rows] == [(1, "train"), (2, "train"), (2, "eval")]
    assert "reward/corners_reward.py:corner" in rows[0]
    pictures = {
        split: {p.name for p in (folder / "data/corners" / split).rglob("*.png")}
        for split in ("train", "test")
    }
    assert (len(pictures["train"]), len(pictures["test"])) == (60, 20)
    assert not pictures["train"] & pictures["test"], "the page says that they share none"


def test_all_of_the_page_is_looked_at() -> None:
    """No block is overlooked, every file is used by a command or a file, and every path that is linked is there."""
    assert list(files(PAGE)) == [
        "corners_recipe.py",
        "corners_reward.py",
        "completions.jsonl",
        "corners.yaml",
        "corners_task.py",
    ]
    assert PAGE.count("\n```") == 2 * (len(files(PAGE)) + len(CONSOLE.findall(PAGE)))
    programs = [" ".join(step.command.split()[:3]) for step in steps(PAGE)]
    for start in (
        "python corners_recipe.py",
        "gpg-vl rewards test",
        "gpg-vl data check",
        "gpg-vl train corners.yaml",
    ):
        assert any(program.startswith(start) for program in programs), start
    assert MODEL in PAGE
    for path in re.findall(r"`((?:gpg_vl|tests|data_recipes)/[\w./]*)`", PAGE) + re.findall(
        r"\]\(\.\./([\w.]+)\)", PAGE
    ):
        assert (ROOT / path).exists(), path


def test_training_and_evaluation_ask_alike() -> None:
    template = yaml.safe_load(files(PAGE)["corners.yaml"])["prompt"]["template"]
    assert f'"{template}"' in files(PAGE)["corners_task.py"]


@pytest.mark.parametrize(
    "expected,output,same",
    [
        (["a b"], "a   b \n", True),
        (["a b"], "a c\n", False),
        (["a"], "a\nb\n", False),
        (["a", "b"], "a\n", False),
        (["a", "..."], "a\nb\nc\n", True),
        (["...", "c"], "a\nb\nc\n", True),
        (["...", "d"], "a\nb\nc\n", False),
        (["n ... s"], "n = 1 s\n", True),
        (["n ... s"], "n = 1 t\n", False),
        (["1.5"], "125\n", False),
        ([], "a\n", False),
    ],
)
def test_what_counts_as_printed(expected: list[str], output: str, same: bool) -> None:
    assert prints(expected, output) is same
