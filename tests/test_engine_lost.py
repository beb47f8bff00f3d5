"""An engine that is lost ends the run with a checkpoint; resumed, it is the run that was never interrupted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import gpg_vl, metrics, write_config, write_scenes
from test_train import equal, last_checkpoint, weights
from test_train_algorithms import without_paths

from gpg_vl.rollout.engine import EngineLostError
from gpg_vl.training.failures import raise_lost

ENGINE = """
import os

from gpg_vl.rollout.engine import EngineLostError
from gpg_vl.rollout.native import NativeEngine


class Losing:
    \"\"\"The native engine, until the n-th call of a kind on some process: LOSE is kind:n:rank, or `none`.\"\"\"

    def __init__(self, setup):
        self._engine = NativeEngine(setup)
        self.counters, self.step = self._engine.counters, self._engine.step
        self.rest = self._engine.rest
        self._calls = {"generate": 0, "evaluate": 0, "sync": 0}

    def generate(self, requests, sampling, done=None):
        self._count("generate" if sampling.temperature else "evaluate")
        return self._engine.generate(requests, sampling, done)

    def sync(self, weights, version):
        self._count("sync")
        return self._engine.sync(weights, version)

    def _count(self, kind):
        self._calls[kind] += 1
        call = f"{kind}:{self._calls[kind]}:"
        if os.environ["LOSE"] in (call + os.environ.get("RANK", "0"), call + "all"):
            raise EngineLostError("The engine has gone away.")
"""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that was never interrupted, and where its like can be made."""

    checkpoint: Path
    run: Path
    processes: int

    def rows(self, *, without_evaluation: int | None = None) -> list[dict[str, Any]]:
        return [
            row
            for row in rows_of(self.run)
            if not (row["kind"] == "eval" and row["step"] == without_evaluation)
        ]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return without_paths(metrics(run)) if (run / "metrics.jsonl").exists() else []


def write_run(folder: Path, checkpoint: Path) -> Path:
    """Four steps that sample again and carry groups over, evaluated after the second and the last."""
    (folder / "losing.py").write_text(ENGINE)
    tests = folder / "test.parquet"
    write_scenes(tests, 8, seed=12)
    return write_config(
        folder,
        checkpoint,
        rollout={
            "engine": f"{folder / 'losing.py'}:Losing",
            "group_size": 2,
            "max_new_tokens": 2,
        },
        algorithm={"beta_th": 1.0},
        train={"prompts_per_step": 4},
        eval={"task": "cvbench", "data": str(tests), "every": 2},
        output={"folder": str(folder / "run"), "checkpoint_every": 0, "samples_every": 1},
    )


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """With as many processes as its parameter says."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSE", "none")
        result = gpg_vl("train", write_run(folder, tiny_checkpoint), processes=request.param)
    assert result.returncode == 0, result.stderr
    found = Whole(checkpoint=tiny_checkpoint, run=folder / "run", processes=request.param)
    trained = [row for row in found.rows() if row["kind"] == "train"]
    assert any(row["carried_groups"] for row in trained[:-1]), "surplus groups are to be resumed"
    assert any(row["rounds"] > 1 for row in trained), "engines are to be lost in later rounds too"
    return found


def lose_and_resume(
    whole: Whole, folder: Path, patch: pytest.MonkeyPatch, lose: str
) -> tuple[str, list[dict[str, Any]]]:
    """What the user is told, and the rows that are there by then. The resumed run is left in `folder`."""
    config = write_run(folder, whole.checkpoint)
    patch.setenv("LOSE", lose)
    result = gpg_vl("train", config, processes=whole.processes, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    told, rows = result.stderr, rows_of(folder / "run")
    assert whole.processes > 1 or "Traceback" not in told, "torchrun has one of its own"

    patch.setenv("LOSE", "none")
    result = gpg_vl("train", config, "--resume", processes=whole.processes, timeout=120)
    assert result.returncode == 0, result.stderr
    return told, rows


def samples_of(run: Path) -> dict[str, Any]:
    """Every dumped file by its name; rows without the path of the reward."""
    found: dict[str, Any] = {}
    for file in sorted((run / "samples").rglob("*.*")):
        content: Any = file.read_bytes()
        if file.suffix == ".jsonl":
            content = [json.loads(line) for line in content.decode().splitlines()]
            for row in content:
                row["completions"] = without_paths(row["completions"])
        found[str(file.relative_to(run))] = content
    return found


def same_end(whole: Whole, run: Path) -> bool:
    assert samples_of(run) == samples_of(whole.run)
    assert len(samples_of(run)) > 4
    return equal(weights(last_checkpoint(run)), weights(last_checkpoint(whole.run)))


def kept(run: Path, step: int) -> str:
    return f"The run has stopped after step {step}; the checkpoint {run / 'checkpoints' / f'step-{step:06d}'} was written."


@pytest.mark.parametrize("whole,call", [(1, 1), (2, 3)], indirect=["whole"])
def test_lost_while_answering(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """At once, and in a later round; of two processes the second loses its engine, and both stop."""
    rank = whole.processes - 1
    told, rows = lose_and_resume(whole, tmp_path, monkeypatch, f"generate:{call}:{rank}")
    run = tmp_path / "run"
    done = max((row["step"] for row in rows), default=0)
    where = "On process 1: " if rank else ""
    assert told.count(f"gpg-vl: {where}The engine has gone away. {kept(run, done)}") == 1
    assert "resume with --resume" in told
    assert "evaluation" not in told
    assert done < 4
    assert rows == [row for row in whole.rows() if row["step"] <= done]
    assert rows_of(run) == whole.rows()
    assert same_end(whole, run)


@pytest.mark.parametrize("whole,step", [(1, 1), (2, 2)], indirect=["whole"])
def test_lost_while_weights_are_handed_on(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The step is trained, logged and kept. After the second an evaluation was due: it is made up for."""
    told, rows = lose_and_resume(whole, tmp_path, monkeypatch, f"sync:{step + 1}:all")
    run, unscored = tmp_path / "run", 2 if step == 2 else None
    assert kept(run, step) in told
    assert (f"The evaluation after step {step} was due" in told) == (unscored == step)
    expected = whole.rows(without_evaluation=unscored)
    assert rows == [row for row in expected if row["step"] <= step]
    assert rows[-1]["step"] == step
    assert rows_of(run) == whole.rows()
    assert same_end(whole, run)


@pytest.mark.parametrize("whole,call,step", [(2, 1, 2), (1, 2, 4)], indirect=["whole"])
def test_lost_while_evaluating(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    """Within the run and after its last step; of two processes the second loses its engine."""
    lose = f"evaluate:{call}:{whole.processes - 1}"
    told, rows = lose_and_resume(whole, tmp_path, monkeypatch, lose)
    run = tmp_path / "run"
    assert kept(run, step) in told
    assert (
        f"The evaluation after step {step} was due; it will be made when the run is resumed" in told
    )
    assert ("eval", step) not in [(row["kind"], row["step"]) for row in rows]
    assert rows_of(run) == whole.rows()
    assert same_end(whole, run)


def test_lost_before_the_first_step_leaves_nothing_to_keep(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path, tiny_checkpoint)
    monkeypatch.setenv("LOSE", "sync:1:all")
    result = gpg_vl("train", config)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("gpg-vl: The engine has gone away.")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_all_processes_raise_what_the_first_one_lost_says() -> None:
    raise_lost([None, None])
    raise_lost([None])
    with pytest.raises(EngineLostError, match=r"^It is gone\.$"):
        raise_lost(["It is gone."])
    with pytest.raises(EngineLostError, match=r"^On process 1: It is gone\.$"):
        raise_lost([None, "It is gone."])
    with pytest.raises(EngineLostError, match=r"^On process 1 and 1 more: It is gone\.$"):
        raise_lost([None, "It is gone.", "It has left."])
