"""A run that is asked to stop loses nothing: resumed, it is the run that was never stopped."""

from pathlib import Path
from typing import Any

from runs import gpg_vl, metrics, write_config, write_scenes
from test_train import equal, last_checkpoint, weights
from test_train_algorithms import without_paths

STOPPING = '''
import os
import signal
from pathlib import Path


def luck(completion, example):
    """That of the other runs, which asks its run to stop if there is a file that wants it to."""
    if completion.text.startswith("<think>"):
        return 1.0
    wish = Path(__file__).with_name("stop")
    if wish.exists():
        wish.unlink()
        os.kill(os.getppid(), signal.SIGTERM)
    return sum(map(ord, completion.text)) % 5 / 4
'''


def write_run(folder: Path, checkpoint: Path) -> Path:
    """Two steps, evaluated after each."""
    folder.mkdir()
    tests = write_scenes(folder / "test.parquet", 8, seed=12)
    config = write_config(
        folder,
        checkpoint,
        train={"steps": 2},
        eval={"task": "cvbench", "data": str(tests), "every": 1},
        output={"folder": str(folder / "run"), "checkpoint_every": 0, "samples_every": 0},
    )
    (folder / "luck.py").write_text(STOPPING)
    return config


def rows(folder: Path) -> list[dict[str, Any]]:
    return without_paths(metrics(folder / "run"))


def kinds(folder: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["kind"]) for row in rows(folder)]


def test_a_stop_loses_no_evaluation(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Asked in the first step and again in the last one; what is due is made first thing afterwards."""
    config = write_run(tmp_path / "stopped", tiny_checkpoint)
    stopped = tmp_path / "stopped"
    (stopped / "stop").touch()
    result = gpg_vl("train", config)
    assert result.returncode == 143, result.stderr
    assert kinds(stopped) == [(1, "train")]

    (stopped / "stop").touch()
    result = gpg_vl("train", config, "--resume")
    assert result.returncode == 143, "its last evaluation is still to be made"
    assert kinds(stopped) == [(1, "train"), (1, "eval"), (2, "train")]

    result = gpg_vl("train", config, "--resume")
    assert result.returncode == 0, result.stderr
    assert kinds(stopped)[-1] == (2, "eval")

    whole = tmp_path / "whole"
    assert gpg_vl("train", write_run(whole, tiny_checkpoint)).returncode == 0
    assert rows(stopped) == rows(whole)
    ours, theirs = last_checkpoint(stopped / "run"), last_checkpoint(whole / "run")
    assert equal(weights(ours), weights(theirs))
    assert (ours / "state.json").read_bytes() == (theirs / "state.json").read_bytes()
