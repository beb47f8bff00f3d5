"""docs/new_task.md is carried out: its files are written, its commands run in its order, and what they print is compared."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pages import CONSOLE, carry_out, files, prints, steps, write_files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new_task.md").read_text()
MODEL = "models/Qwen2-VL-2B-Instruct"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, a model where it expects one, and programs called as it calls them."""
    folder = tmp_path_factory.mktemp("new_task")
    write_files(PAGE, folder)
    (folder / "models").mkdir()
    (folder / MODEL).symlink_to(tiny_checkpoint, target_is_directory=True)
    return folder


def test_the_page_runs_as_it_is_printed(folder: Path) -> None:
    carry_out(PAGE, folder)
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
