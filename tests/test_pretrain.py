"""How the quickstart's base model was made: the script itself, with few lessons and steps."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import environment, metrics

from gpg_vl.config import load_config
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.quickstart import lessons

ROOT = Path(__file__).parent.parent
SLOW = pytest.mark.slow
"""Each time the script is run it starts `gpg-vl train` twice, which takes a minute."""


def pretrain(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpg_vl.quickstart.pretrain", "--output", folder, "--share", "0.0015", *settings,
         "train.steps=3", "train.prompts_per_step=16", "output.checkpoint_every=1", "eval.limit=8"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "base" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    result = pretrain(folder)
    assert result.returncode == 0, result.stderr
    return folder


@SLOW
def test_two_runs_give_one_file_also_when_the_second_was_stopped(
    made: Path, tmp_path: Path
) -> None:
    """The second is ended after its first step by a folder that it cannot export to, and started again."""
    (tmp_path / "base").write_text("in the way")
    stopped = pretrain(tmp_path, "train.steps=3")
    assert stopped.returncode != 0
    (tmp_path / "base").unlink()
    again = pretrain(tmp_path)
    assert again.returncode == 0, again.stderr
    assert digest(made) == digest(tmp_path)


@SLOW
def test_every_step_learns_gold_answers_of_lessons(made: Path) -> None:
    steps = [row for row in metrics(made / "run_sight") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert steps[-1]["loss"] < steps[0]["loss"]
    rows = pq.read_table(made / "sight.parquet").to_pylist()
    drawn = list(lessons.lessons(lessons.SIGHT, lessons.SEED, len(rows)))
    assert [row["answer"] for row in rows] == [lesson.answer for lesson in drawn]
    assert [bytes(row["images"][0]) if row["images"] else None for row in rows] == [
        lesson.picture for lesson in drawn
    ]


@SLOW
def test_what_is_exported_is_an_ordinary_checkpoint_in_bfloat16(made: Path) -> None:
    weights = load_model(str(made / "base")).state_dict()
    assert len(weights) > 50
    assert (made / "base" / "model.safetensors").stat().st_size < 4_000_000
    assert load_processing(str(made / "base")).chat_template


def test_the_config_says_what_the_script_does() -> None:
    config = load_config(ROOT / "configs" / "quickstart_base.yaml")
    assert config.algorithm.name == "sft"
    assert re.fullmatch(r"runs/quickstart_base/sight.parquet", config.data.train)
