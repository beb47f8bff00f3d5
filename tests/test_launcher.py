"""What a launcher may ask for: processes, and nothing that wraps the model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from runs import gpg_vl, run_python, write_config

from gpg_vl.config import parse_config
from gpg_vl.errors import UserError
from gpg_vl.training import launcher


@pytest.mark.parametrize("kind", list(DistributedType), ids=str)
def test_only_launches_that_wrap_nothing_are_taken(
    kind: DistributedType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind that accelerate knows, as it would answer on a machine that has what the kind needs."""
    config = parse_config(
        {
            "model": {"path": "m"},
            "data": {"train": "d"},
            "rewards": {"weights": {"choice": 1.0}},
            "output": {"folder": str(tmp_path)},
            "train": {"deterministic": False},
        },
        "test",
    )
    monkeypatch.setattr(launcher, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind))
    if kind.value in ("NO", "MULTI_CPU", "MULTI_GPU"):
        assert launcher.make_accelerator(config).distributed_type is kind
        return
    with pytest.raises(
        UserError, match=rf"asks for {kind.value}, .* Start the processes with torchrun"
    ):
        launcher.make_accelerator(config)


@pytest.mark.parametrize(
    ("switch", "name"),
    [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")],
)
def test_a_wish_that_accelerate_forgets_is_refused_too(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    name: str,
) -> None:
    """On a CPU accelerate starts such a launch as if nothing had been asked for."""
    monkeypatch.setenv(switch, "true")
    result = gpg_vl("train", write_config(tmp_path, tiny_checkpoint), "--dry-run")
    assert result.returncode == 2
    assert f"The launcher asks for {name}, which would wrap the model" in result.stderr
    assert "Traceback" not in result.stderr


# ---- processes that were asked for and are not there


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "several"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "4"),
        ({"PMI_SIZE": "2"}, "2"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "8"),
        ({"WORLD_SIZE": "2"}, "2"),
    ],
)
def test_processes_that_do_not_meet_are_missed(environment: dict[str, str], number: str) -> None:
    said = launcher.describe_missing_processes(environment, 1)
    assert f"asked for {number} processes, but this run has one" in said
    assert "torchrun --nproc-per-node" in said
    assert launcher.describe_missing_processes(environment, 2) == ""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1(x2)"},
    ],
)
def test_a_process_that_was_meant_to_be_alone_is_not_remarked_on(
    environment: dict[str, str],
) -> None:
    assert launcher.describe_missing_processes(environment, 1) == ""


def test_the_plan_says_that_accelerate_has_started_one_process(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By the launcher itself, whose doing it is."""
    config = write_config(tmp_path, tiny_checkpoint, model={"lora_targets": ["q_proj"]})
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    result = run_python(*launch, "-m", "gpg_vl", "train", config, "--dry-run")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.replace("│", " ").split())
    assert "on 1 process(es)" in said
    assert "the launcher was asked for several processes, but this run has one" in said
    assert "model.lora_targets has no effect: model.lora_rank is 0" in said
