"""Schedules, weight decay, freezing, adapters, data order: small rules, checked by hand."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from test_policy import encoder

from gpg_vl.data.order import index_at
from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.adapters import add_adapters, merged_weights
from gpg_vl.models.families import families
from gpg_vl.models.load import load_model
from gpg_vl.training.checkpoint import Checkpoints
from gpg_vl.training.identity import Identity
from gpg_vl.training.optimizer import freeze, learning_rate, make_adamw
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.training.state import RunState
from gpg_vl.types import Example


def rates(schedule: str, steps: int = 5, warmup: int = 2, final: float = 0.0) -> list[float]:
    return [
        learning_rate(
            s, peak=1.0, schedule=schedule, warmup_steps=warmup, steps=steps, final_fraction=final
        )
        for s in range(steps)
    ]


def test_schedules_by_hand() -> None:
    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert rates("linear", final=0.2) == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2])
    assert rates("cosine", steps=4, warmup=0) == pytest.approx([1.0, 0.75, 0.25, 0.0])
    assert rates("linear", steps=1, warmup=0) == [1.0]
    assert rates("linear", steps=2, warmup=5) == [0.2, 0.4]


def test_decay_falls_on_matrices_only(tiny_checkpoint: Path) -> None:
    policy = Model.load(tiny_checkpoint, device="cpu").policy
    decayed, free = make_adamw(policy, betas=(0.9, 0.99), weight_decay=0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(policy.parameters()))
    assert [decayed["part"], free["part"]] == ["", ""]


def test_parts_with_a_rate_of_their_own_are_groups_of_their_own(tiny_checkpoint: Path) -> None:
    """Every trained weight stands in one group, under its part or under "", and decay is as ever."""
    policy = Model.load(tiny_checkpoint, device="cpu").policy
    names = {id(p): name for name, p in policy.named_parameters()}
    optimizer = make_adamw(
        policy, betas=(0.9, 0.99), weight_decay=0.1, parts=("vision", "language")
    )
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_vision, is_merger = ".visual." in name, ".visual.merger." in name
            expected = "" if is_merger else "vision" if is_vision else "language"
            assert group["part"] == expected, name
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0), name
            seen.append(name)
    assert sorted(seen) == sorted(names.values())


def test_a_policy_that_is_frozen_as_a_whole_is_refused(tiny_checkpoint: Path) -> None:
    policy = Model.load(tiny_checkpoint, device="cpu").policy.requires_grad_(False)
    with pytest.raises(UserError, match=r"model\.freeze freezes every weight"):
        make_adamw(policy, betas=(0.9, 0.99), weight_decay=0.1)


def test_freezing_by_part(tiny_checkpoint: Path) -> None:
    for parts in (["vision"], ["merger"], ["language"], ["vision", "language"]):
        model = load_model(str(tiny_checkpoint))
        freeze(model, families.get("qwen2_vl"), parts)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        expected = {
            n
            for n, _ in model.named_parameters()
            if ("merger" if "visual.merger" in n else "vision" if "visual" in n else "language")
            in parts
        }
        assert frozen == expected
        assert expected


def test_a_text_model_has_no_vision_to_freeze(text_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="names vision, but qwen2 has no vision"):
        freeze(load_model(str(text_checkpoint)), families.get("qwen2"), ["vision"])


@given(size=st.integers(1, 50), seed=st.integers(0, 10**6), epoch=st.integers(0, 5))
def test_every_epoch_draws_every_example_once(size: int, seed: int, epoch: int) -> None:
    drawn = [index_at(epoch * size + i, size=size, seed=seed) for i in range(size)]
    assert Counter(drawn) == Counter(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(index_at(e * 40 + i, size=40, seed=s) for i in range(40))
        for e, s in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(orders)) == 3


TARGETS = ("q_proj", "v_proj", "down_proj")


def add(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    add_adapters(model, families.get("qwen2_vl"), rank=2, alpha=4.0, targets=TARGETS, seed=seed)
    return model


def adapted(checkpoint: Path, seed: int = 0) -> torch.nn.Module:
    return add(load_model(str(checkpoint)), seed)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def logits(model: torch.nn.Module, checkpoint: Path) -> torch.Tensor:
    prompt = encoder(checkpoint).encode(Example(id="x", prompt="How many?", answer="1"))
    with torch.no_grad():
        return model(input_ids=prompt.input_ids_T[None]).logits


def test_adapters_start_as_the_model_and_only_they_are_trained(tiny_checkpoint: Path) -> None:
    model = adapted(tiny_checkpoint)
    assert torch.equal(
        logits(model, tiny_checkpoint), logits(load_model(str(tiny_checkpoint)), tiny_checkpoint)
    )
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * len(TARGETS)
    assert all(".lora_" in n and ".language_model." in n for n in trained)


def test_a_merged_checkpoint_computes_what_the_adapters_compute(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The model of a checkpoint that a run with adapters has written."""
    model = Model.load(
        tiny_checkpoint, device="cpu", prepare=lambda inner, family: randomise(add(inner))
    )
    inner = model.policy.model
    before = logits(inner, tiny_checkpoint)
    assert (before - logits(load_model(str(tiny_checkpoint)), tiny_checkpoint)).abs().max() > 1e-3

    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    sharding = shardings.get("none")(setup)
    sharding.wrap(model.policy, partial(make_adamw, betas=(0.9, 0.99), weight_decay=0.0))
    Checkpoints(
        tmp_path,
        metrics=tmp_path / "metrics.jsonl",
        keep=1,
        identity=Identity(
            settings={}, rows=RowDigests(texts=b"", pictures=b""), steps=1, base={}, code={}
        ),
        model=model,
        sharding=sharding,
        source=PromptSource(examples=(), encoder=model.encoder(), seed=0),
        accelerator=Accelerator(cpu=True),
    ).save(RunState(step=1))

    merged = load_model(str(tmp_path / "step-000001" / "model"))
    assert torch.allclose(logits(merged, tiny_checkpoint), before, atol=1e-5)
    assert torch.equal(logits(inner, tiny_checkpoint), before), (
        "merging leaves the model itself alone"
    )
    names = {name for name, _ in merged_weights(inner)}
    assert names == load_model(str(tiny_checkpoint)).state_dict().keys()
