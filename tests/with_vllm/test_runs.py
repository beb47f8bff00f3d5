"""Whole runs with vLLM through the command line: one process, two with an engine each, two that share one.

Starting vLLM takes most of their time, so each run is made once and several tests look at it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gpg_vl, kill_when, metrics, write_config, write_scenes
from safetensors.torch import load_file

pytest_plugins = ("vllm_fixtures",)


def write_run(folder: Path, checkpoint: Path, **sections: dict[str, Any]) -> Path:
    """Four steps that show the same four pictures each, and an evaluation after every second."""
    folder.mkdir()
    write_scenes(folder / "test.parquet", 24, seed=12)
    given: dict[str, dict[str, Any]] = {
        "data": {"limit": 4},
        "rollout": {"engine": "vllm"},
        "train": {"prompts_per_step": 4},
        "output": {"samples_every": 1},
        "eval": {"task": "cvbench", "data": str(folder / "test.parquet"), "every": 2},
    }
    for name, keys in sections.items():
        given[name] = {**given.get(name, {}), **keys}
    return write_config(folder, checkpoint, **given)


def finish(config: Path, *more: str, processes: int = 1) -> Path:
    """Run it to its end, which must be a quiet one. Returns its folder."""
    result = gpg_vl("train", config, *more, processes=processes)
    assert result.returncode == 0, result.stderr
    for word in ("Traceback", "leaked", "process group"):
        assert word not in result.stderr, result.stderr
    return config.parent / "run"


def trained(run: Path) -> list[dict[str, Any]]:
    """The rows of the steps, without the name of the reward: it is a path."""
    rows = [row for row in metrics(run) if row["kind"] == "train"]
    return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in rows]


def evaluated(run: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(run) if row["kind"] == "eval"]


def samples(run: Path) -> list[list[dict[str, Any]]]:
    """What was sampled, by step; of several processes, by the first of them."""
    files = sorted((run / "samples").glob("step-*/samples.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def texts(run: Path) -> list[list[str]]:
    """The answers of each step."""
    return [
        [completion["text"] for group in step for completion in group["completions"]]
        for step in samples(run)
    ]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = sorted((run / "checkpoints").glob("step-*"))[-1]
    return load_file(checkpoint / "model" / "model.safetensors")


def assert_gap_is_rounding(run: Path) -> None:
    """Wherever everything was sampled by the weights that are trained, which is somewhere."""
    fresh = [row for row in trained(run) if not row["stale_groups"] and not row["step_skipped"]]
    assert fresh
    for row in fresh:
        assert row["logp_gap_mean"] <= 2e-6, row
        assert row["logp_gap_max"] <= 5e-5, row


def assert_it_learns(run: Path) -> None:
    """A step that changes nothing would leave nothing to be synced."""
    applied = [row for row in trained(run) if not row["step_skipped"]]
    assert len(applied) >= 2
    assert all(row["grad_norm"] > 0 for row in applied)


# ---- one process


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never stopped; everything is trained, the vision tower as well."""
    folder = tmp_path_factory.mktemp("vllm") / "whole"
    return finish(write_run(folder, tiny_checkpoint))


def test_a_run_trains_on_what_vllm_has_sampled(whole: Path) -> None:
    assert [row["step"] for row in trained(whole)] == [1, 2, 3, 4]
    assert_it_learns(whole)
    assert_gap_is_rounding(whole)
    shown = [{group["id"] for group in step} for step in samples(whole)]
    assert all(ids == shown[0] and len(ids) == 4 for ids in shown), "the same pictures each time"


def test_the_vision_tower_was_trained(whole: Path, tiny_checkpoint: Path) -> None:
    """That the pictures of a later step are not those of an earlier one to the model."""
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = last_weights(whole)
    assert any("visual" in name and not torch.equal(before[name], after[name]) for name in before)


def test_what_vllm_has_done_is_counted(whole: Path) -> None:
    for row in trained(whole):
        assert row["rollout_prompts"] == row["groups_seen"]
        answers = [c for group in samples(whole)[row["step"] - 1] for c in group["completions"]]
        assert len(answers) <= row["rollout_decoded_tokens"] <= 4 * len(answers)


def test_an_evaluation_during_training_asks_vllm(whole: Path) -> None:
    rows = evaluated(whole)
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["rows"] == 24 for row in rows)


def test_greedy_answers_of_an_evaluation_are_those_of_the_native_engine(
    whole: Path, tmp_path: Path
) -> None:
    """The trained checkpoint; 24 scenes, all of them the same to the letter."""
    checkpoint = sorted((whole / "checkpoints").glob("step-*"))[-1] / "model"
    rows = {}
    for engine in ("native", "vllm"):
        result = gpg_vl(
            "eval",
            "cvbench",
            *("--model", checkpoint, "--data", whole.parent / "test.parquet"),
            *("--output", tmp_path / engine, "--engine", engine),
            *("--prompt", "plain", "--max-new-tokens", "8"),
        )
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        log = (tmp_path / engine / "predictions.jsonl").read_text().splitlines()
        rows[engine] = [json.loads(line) for line in log]
        assert json.loads((tmp_path / engine / "results.json").read_text())["config"]["engine"] == (
            engine
        )
    said = {
        engine: [(row["doc_id"], row["response"], row["finish_reason"]) for row in of_engine]
        for engine, of_engine in rows.items()
    }
    assert len(said["vllm"]) == 24
    assert len({response for _, response, _ in said["vllm"]}) > 1, "answers that could differ"
    assert said["vllm"] == said["native"]


def test_killed_and_resumed_is_never_stopped(
    whole: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A request's seed is made of the run's and of its draw, so even what is sampled again is the same."""
    config = write_run(tmp_path / "killed", tiny_checkpoint)
    kill_when(config, lambda run: (run / "checkpoints" / "step-000002").exists())
    run = finish(config, "--resume")
    assert trained(run) == trained(whole)
    assert evaluated(run) == evaluated(whole)
    assert texts(run) == texts(whole)
    before, after = last_weights(whole), last_weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"lora_rank": 4, "lora_on": ["language", "merger", "vision"]}},
        {
            "rollout": {"images": "features"},
            "model": {"freeze": ["vision", "merger"]},
        },
    ],
    ids=["adapters", "features"],
)
def test_other_ways_of_training_are_sampled_as_exactly(
    tiny_checkpoint: Path, tmp_path: Path, sections: dict[str, dict[str, Any]]
) -> None:
    run = finish(write_run(tmp_path / "run", tiny_checkpoint, **sections))
    assert_it_learns(run)
    assert_gap_is_rounding(run)
    assert [row["rows"] for row in evaluated(run)] == [24, 24]


def test_weights_in_bfloat16_are_sampled_to_their_rounding(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The engine rounds what it is given as the policy does, and adds up in another order."""
    model = {"dtype": "bfloat16", "weights": "bfloat16"}
    run = finish(write_run(tmp_path / "run", tiny_checkpoint, model=model))
    assert_it_learns(run)
    gaps = [row["logp_gap_mean"] for row in trained(run) if row["logp_gap_mean"] is not None]
    assert gaps
    assert 0 < max(gaps) < 0.01


# ---- two processes

UNEVEN: dict[str, dict[str, Any]] = {
    "rollout": {"group_size": 2, "max_new_tokens": 2, "prompts_per_batch": 4},
    "algorithm": {"beta_th": 1.0},
    "train": {"prompts_per_step": 4, "steps": 3},
    "data": {"limit": None},
    "eval": {"limit": 9},
}
"""Rounds in which one process has no room, and an evaluation of which it has a batch less: 5 rows and 4, in batches of 4."""


@pytest.fixture(scope="module")
def apart(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes with an engine each."""
    folder = tmp_path_factory.mktemp("two") / "apart"
    return finish(write_run(folder, tiny_checkpoint, **UNEVEN), processes=2)


@pytest.fixture(scope="module")
def together(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that share one, killed in its midst and resumed."""
    folder = tmp_path_factory.mktemp("two") / "together"
    sections = {**UNEVEN, "rollout": {**UNEVEN["rollout"], "vllm_tensor_parallel": 2}}
    config = write_run(folder, tiny_checkpoint, **sections)
    kill_when(config, lambda run: (run / "checkpoints" / "step-000001").exists(), processes=2)
    return finish(config, "--resume", processes=2)


def test_two_processes_have_an_engine_each(apart: Path) -> None:
    assert [row["step"] for row in trained(apart)] == [1, 2, 3]
    assert_it_learns(apart)
    assert_gap_is_rounding(apart)
    assert [row["rows"] for row in evaluated(apart)] == [9, 9]


def test_a_run_that_was_killed_leaves_no_file_in_memory(together: Path) -> None:
    """vLLM's processes on a CPU talk through files there, and would take up those of an earlier launch."""
    assert not list(Path("/dev/shm").glob("*cpushm*"))


def test_processes_that_differ_in_what_they_ask_share_an_engine(
    apart: Path, together: Path
) -> None:
    assert_gap_is_rounding(together)
    assert [row["rows"] for row in evaluated(together)] == [9, 9]

    rows = trained(together)
    assert any(row["groups_seen"] < 4 * row["rounds"] for row in rows), (
        "without a round in which one process has no room this would not test its way"
    )
    assert texts(together) == texts(apart)
    for ours, theirs in zip(rows, trained(apart), strict=True):
        for name in ("loss", "grad_norm", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)
        for name in ("rollout_prompts", "rollout_prompt_tokens", "rollout_decoded_tokens"):
            assert ours[name] == theirs[name], "each process counts what it has asked itself"


def test_weights_that_are_spread_reach_vllm(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each sync gathers whole tensors on both processes, each of which fills its own engine."""
    sections = {**UNEVEN, "train": {**UNEVEN["train"], "sharding": "fsdp2"}}
    run = finish(write_run(tmp_path / "spread", tiny_checkpoint, **sections), processes=2)
    assert_it_learns(run)
    assert_gap_is_rounding(run)
    assert [row["rows"] for row in evaluated(run)] == [9, 9]
