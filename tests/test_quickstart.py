"""The quickstart, made small: the same commands, a few rows and steps."""

import re
from pathlib import Path

import pytest
import yaml
from runs import gpg_vl, metrics

from gpg_vl.models.load import load_model, load_processing
from gpg_vl.quickstart import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quick")
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["train"].update(steps=2, prompts_per_step=4)
    config["eval"].update(every=0, limit=8)
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    result = gpg_vl(
        "quickstart",
        "--folder",
        folder / "q",
        "--config",
        folder / "small.yaml",
        "--train-rows",
        "16",
        "--test-rows",
        "48",
        "--seed",
        "2",
    )
    assert result.returncode == 0, result.stderr
    assert "Loading weights" not in result.stderr, "a bar of a library"
    return folder / "q", result.stdout


def test_the_base_is_written_without_a_word_of_other_libraries(tmp_path: Path) -> None:
    rows = ("--train-rows", "4", "--test-rows", "4")
    result = gpg_vl("quickstart", "--folder", tmp_path / "q", "--prepare-only", *rows)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_the_end_says_where_to_look_and_what_to_type(quick: tuple[Path, str]) -> None:
    folder, said = quick
    told = said[said.rindex("run folder: ") :]
    named = re.findall(r": (/[^\s;]+)", told)
    assert [Path(name).relative_to(folder / "run").parts[0] for name in named[1:]] == [
        "report.html",
        "samples",
        "metrics.jsonl",
        "config.yaml",
        "checkpoints",
    ]
    assert all(Path(name).exists() for name in named)
    assert "gpg-vl train my.yaml --dry-run" in told


def test_the_last_line_can_be_read_by_a_machine(quick: tuple[Path, str]) -> None:
    number = r"-?\d+\.\d"
    last = quick[1].strip().splitlines()[-1]
    match = re.fullmatch(
        rf"quickstart: base ({number}) trained ({number}) gain ({number}) \[{number}, {number}\] seconds \d+ run (\S+)",
        last,
    )
    assert match, last
    assert abs(float(match[2]) - float(match[1]) - float(match[3])) < 0.11
    assert Path(match[4]) == quick[0] / "run"


def test_the_table_shows_every_task_with_chance(quick: tuple[Path, str]) -> None:
    for text in (
        "official",
        "Count",
        "Relation",
        "Depth",
        "Distance",
        "base",
        "trained",
        "difference",
        "chance",
        "43.8",
        "25.0",
        "50.0",
    ):
        assert text in quick[1], text


def test_it_is_the_real_program_that_ran(quick: tuple[Path, str]) -> None:
    folder, out = quick
    assert "python -m gpg_vl train" in out
    assert "python -m gpg_vl.eval cvbench" in out
    assert [row["step"] for row in metrics(folder / "run") if row["kind"] == "train"] == [1, 2]
    assert len((folder / "eval-base" / "predictions.jsonl").read_text().splitlines()) == 48


def test_what_takes_a_while_says_what_it_is(quick: tuple[Path, str]) -> None:
    folder, said = quick
    for what in (
        "writing the tiny base model",
        "drawing 16 scenes for train.parquet",
        "drawing 48 scenes for test.parquet",
        f"checking rows of {folder / 'train.parquet'}",
        "checking that the rewards (choice) accept the gold answers of 16 rows",
        f"checking 8 rows of {folder / 'test.parquet'} for evaluation",
        f"loading the weights of {folder / 'base'}",
        "starting the engine native",
    ):
        assert what in said, what


def test_a_second_quickstart_in_the_same_folder_is_refused(quick: tuple[Path, str]) -> None:
    result = gpg_vl("quickstart", "--folder", quick[0])
    assert result.returncode == 2
    assert "already holds a quickstart" in result.stderr


def test_the_shipped_base_model_is_small_and_ordinary(quick: tuple[Path, str]) -> None:
    shipped = Path(run.__file__).parent / "base"
    assert sum(p.stat().st_size for p in shipped.iterdir()) < 4_000_000
    assert load_processing(str(shipped)).chat_template
    weights = load_model(str(quick[0] / "base")).state_dict()
    assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}
    from transformers import Qwen2VLForConditionalGeneration

    assert Qwen2VLForConditionalGeneration.from_pretrained(quick[0] / "base")
