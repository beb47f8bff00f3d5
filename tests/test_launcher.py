"""What a launcher may ask for: processes, and nothing that wraps the model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from runs import gpg_vl, write_config

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
