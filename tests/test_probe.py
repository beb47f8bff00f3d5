"""The probe of a device: that an outline stands for its model is counted, with operations in the place of seconds."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import metrics, write_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gpg_vl
from gpg_vl.config import load_config
from gpg_vl.models import tiny
from gpg_vl.quickstart import scenes
from gpg_vl.rollout import native
from gpg_vl.training import estimate, outline, probe, start
from gpg_vl.training.estimate import with_seconds
from gpg_vl.training.prepare import Prepared, prepare
from gpg_vl.training.speed import Pass, StepSeconds

CPU = torch.device("cpu")
CLOCK = 1e9
"""Operations that take a second on the clock of these tests."""


@contextmanager
def count_as_seconds(add: Callable[[float], None], device: torch.device) -> Iterator[None]:
    """In the place of `clock.timed`: the operations of the block, counted by torch."""
    # the counter knows no fused attention of a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield
    add(counter.get_total_flops() / CLOCK)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "timed", count_as_seconds)
    monkeypatch.setattr(native, "timed", count_as_seconds)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def deep_checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six layers and two blocks: what a third of them stands for."""
    folder = tmp_path_factory.mktemp("deep") / "checkpoint"
    corpus = [row["prompt"] for row in scenes.rows(3, 40)] + list("ABCD0123456789")
    tokenizer = tiny.tiny_tokenizer(corpus, 384, model_type=request.param)
    config = tiny.tiny_config(
        tokenizer,
        384,
        model_type=request.param,
        num_hidden_layers=6,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    processor = tiny.tiny_processor(tokenizer, model_type=request.param)
    tiny.save_checkpoint(tiny.tiny_model(config, seed=0), processor, folder)
    return folder


def prepared_run(folder: Path, checkpoint: Path, **sections: dict[str, Any]) -> Prepared:
    config = load_config(write_config(folder, checkpoint, **sections))
    return prepare(config, processes=1, console=None)


def seconds_of(prepared: Prepared) -> StepSeconds:
    seconds = with_seconds(prepared, CPU).seconds
    assert seconds is not None
    return seconds


def predicted(prepared: Prepared) -> StepSeconds:
    """What the cost model says of the step, on the clock of these tests; of the optimizer it counts nothing."""
    plan = prepared.plan
    groups, work = plan.prompts_per_step, plan.work
    return StepSeconds(
        answers=groups * (plan.cost.prefill + plan.cost.decode) / CLOCK,
        train=work.train / CLOCK,
    )


# ---- counted


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model": {"lora_rank": 4}},
        {"model": {"freeze": ["vision", "merger"], "vision_cache_mb": 8}},
    ],
)
def test_an_outline_takes_the_operations_of_its_model(
    deep_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """Within a fifth of the cost model, whole or with a third of the layers."""
    prepared = prepared_run(tmp_path, deep_checkpoint, **keys)
    expected = predicted(prepared)
    whole = seconds_of(prepared)
    # the cost model leaves out the products of adapters, which are many beside layers of 64
    slack = 0.45 if "lora_rank" in keys.get("model", {}) else 0.2
    assert whole.train == pytest.approx(expected.train, rel=slack)
    assert whole.answers == pytest.approx(expected.answers, rel=slack)

    weights = 6 * 64 * (2 * 64 + 2 * 32 + 3 * 96) + 64 * 384
    monkeypatch.setitem(outline.MOST_WEIGHTS, "cpu", weights // 3 + 1)
    third = seconds_of(prepared)
    assert third.train == pytest.approx(whole.train, rel=0.2)
    assert third.answers == pytest.approx(whole.answers, rel=0.2)


@pytest.mark.usefixtures("counting")
def test_no_call_is_larger_than_it_may_be(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many groups of long answers in one micro-batch: some of them stand for all, and the seconds are those of all."""
    prepared = prepared_run(
        tmp_path,
        tiny_checkpoint,
        rollout={"group_size": 4, "max_new_tokens": 24},
        train={"prompts_per_step": 16, "tokens_per_pass": 10**6},
    )
    expected = predicted(prepared)
    most = 5e7
    monkeypatch.setitem(probe.MOST_OPERATIONS, "cpu", most)
    counted: list[float] = []

    @contextmanager
    def watched(add: Callable[[float], None], device: torch.device) -> Iterator[None]:
        with count_as_seconds(lambda seconds: (counted.append(seconds), add(seconds))[1], device):
            yield

    monkeypatch.setattr(probe, "timed", watched)
    seconds = seconds_of(prepared)
    # a call of another size has a few tokens more, and the cost model is good to a tenth
    assert 0 < max(counted) < 2 * most / CLOCK < expected.train / 4
    assert seconds.train == pytest.approx(expected.train, rel=0.3)
    assert seconds.answers == pytest.approx(expected.answers, rel=0.3)


# making inputs is quick, but not on a machine that does ten other things
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        Pass,
        groups=st.integers(1, 64),
        members=st.integers(1, 32),
        prompt=st.integers(2, 4000),
        image=st.integers(0, 1000),
        completion=st.integers(1, 2000),
    ),
    st.floats(1, 1e9),
)
def test_a_pass_is_halved_until_it_is_small_enough_and_no_further(one: Pass, most: float) -> None:
    def operations(of: Pass) -> float:
        return of.groups * (of.prompt + of.members * of.completion)

    small = probe.shrink(one, operations, most)
    assert operations(small) <= most or small.halved() == small
    if small != one:
        # fewer groups, of the same ones, as long as there are several
        assert small.groups == 1 or small == replace(one, groups=small.groups)
        assert operations(small) <= operations(one)


def test_passes_of_a_run_differ_in_size() -> None:
    """Images of 4 x 4, 4 x 5 and 4 x 6 tokens; each pass with a token of text more."""
    one = Pass(groups=2, members=3, prompt=30, image=16, completion=5)
    assert [(p.prompt, p.image) for p in one.varied(3)] == [(30, 16), (35, 20), (40, 24)]


# ---- what it leaves alone


def states() -> tuple[Any, ...]:
    numbers = np.random.get_state()[1].tobytes()  # type: ignore[union-attr]  # the legacy state is a tuple
    return random.getstate(), numbers, torch.get_rng_state().numpy().tobytes()


def test_no_random_state_and_no_mode_changes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path, tiny_checkpoint, model={"lora_rank": 4, "dtype": "bfloat16"})
    before = states()
    torch.use_deterministic_algorithms(True)
    try:
        seconds = seconds_of(prepared)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert states() == before
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert 0 < min(seconds.answers, seconds.train) < 1e4


def test_a_run_is_the_same_bit_for_bit_without_the_probe(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_config(tmp_path, tiny_checkpoint)
    gpg_vl.train(file, output={"folder": str(tmp_path / "with")})
    monkeypatch.setattr(start, "with_seconds", lambda prepared, device: prepared.plan)
    gpg_vl.train(file, output={"folder": str(tmp_path / "without")})

    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    weights = [
        (tmp_path / name / "checkpoints/step-000004/model/model.safetensors").read_bytes()
        for name in ("with", "without")
    ]
    assert weights[0] == weights[1]


def test_adapters_on_a_layer_by_its_number_are_timed_too(
    deep_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outline may lack that layer."""
    monkeypatch.setitem(outline.MOST_WEIGHTS, "cpu", 1)
    keys = {"lora_rank": 2, "lora_targets": ["layers.5.self_attn.q_proj"]}
    assert seconds_of(prepared_run(tmp_path, deep_checkpoint, model=keys)).train > 0


def test_supervised_training_samples_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path, tiny_checkpoint, algorithm={"name": "sft"})
    seconds = estimate.with_seconds(prepared, CPU).seconds
    assert seconds is not None
    assert seconds.answers == 0.0 < seconds.train
