"""A checkpoint that is written tensor by tensor: the bytes that transformers would write of the whole."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_phases import with_adapters
from torch import Tensor

from gpg_vl.model import Model
from gpg_vl.models import save
from gpg_vl.models.adapters import merged_weights, plain_weights
from gpg_vl.models.load import load_model, quiet
from gpg_vl.models.save import save_model
from gpg_vl.training import checkpoint


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("size", ["50GB", "100KB"])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize(
    "family",
    [
        "tiny_checkpoint",
        "newer_checkpoint",
        "deep_checkpoint",
        "tiled_checkpoint",
        "marked_checkpoint",
        "text_checkpoint",
    ],
)
def test_the_files_are_those_of_transformers(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    family: str,
    adapters: bool,
    size: str,
) -> None:
    """In one file and in several, which have an index."""
    checkpoint = request.getfixturevalue(family)
    prepare: Any = with_adapters if adapters else None
    model = Model.load(checkpoint, device="cpu", prepare=prepare).policy.model
    monkeypatch.setattr(save, "LARGEST_FILE", size)
    with quiet():
        model.save_pretrained(
            tmp_path / "theirs", state_dict=dict(merged_weights(model)), max_shard_size=size
        )
    save_model(model, merged_weights(model), tmp_path / "ours")

    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "theirs")
    assert (len(ours) > 5) == (size == "100KB")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
    saved = load_model(str(tmp_path / "ours")).state_dict()
    for name, tensor in merged_weights(model):
        assert torch.equal(saved[name], tensor), name


def test_tensors_are_asked_for_one_by_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each is written before the next one comes, whatever order they come in."""
    model = Model.load(tiny_checkpoint, device="cpu").policy.model
    names = list(plain_weights(model))
    alive: list[str] = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name in reversed(names):
            alive.append(name)
            yield name, plain_weights(model)[name].detach() + 1
            written = (tmp_path / "model" / "model.safetensors").read_bytes()
            probe = (plain_weights(model)[name].detach() + 1).flatten()[:16].numpy().tobytes()
            if name != "lm_head.weight":  # tied
                assert probe in written, name

    save_model(model, weights(), tmp_path / "model")
    assert alive == names[::-1]


def test_a_tensor_that_does_not_come_is_missed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Model.load(tiny_checkpoint, device="cpu").policy.model
    with pytest.raises(AssertionError, match="no weights came for"):
        save_model(model, list(merged_weights(model))[1:-2], tmp_path / "model")


@pytest.mark.parametrize(
    "error,free,expected",
    [
        (RuntimeError("unexpected pos 64 vs 0"), 4096, "no space left on device (unexpected pos 64 vs 0)"),
        (RuntimeError("unexpected pos 64 vs 0"), 2**30, "unexpected pos 64 vs 0"),
        (OSError("No space left on device"), 4096, "No space left on device"),
    ],
)  # fmt: skip
def test_a_full_disk_is_named_where_torch_names_its_own_insides(
    error: Exception, free: int, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room = SimpleNamespace(total=2**40, used=0, free=free)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: room)
    assert checkpoint._describe_refusal(error, tmp_path) == expected
