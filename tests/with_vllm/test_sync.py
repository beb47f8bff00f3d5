"""Weights from the trainer into vLLM: all of them, and nothing remembered of the old ones."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from bench import FAULT, Bench, make_bench
from torch import Tensor
from vllm.config import set_current_vllm_config

from gpg_vl.errors import RunError
from gpg_vl.models.adapters import add_adapters, merged_weights
from gpg_vl.rollout.vllm import engine as engine_module
from gpg_vl.rollout.vllm.inputs import Keys
from gpg_vl.rollout.vllm.weights import Reload

pytest_plugins = ("vllm_fixtures",)


def forget_the_version(monkeypatch: pytest.MonkeyPatch, *, images: bool, text: bool) -> None:
    """Keys without the version, as other toolkits write them."""
    if text:
        monkeypatch.setattr(Keys, "salt", "same")
    if images:
        monkeypatch.setattr(Keys, "of_images", lambda self, prompt: list(prompt.image_keys))


def keep_caches(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(bench.engine, "_forget", lambda features: None)


# ---- each fault planted, and the cure


def test_a_stale_prefix_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sync()
    bench.answer()
    with monkeypatch.context() as patch:
        keep_caches(patch, bench)
        forget_the_version(patch, images=True, text=True)
        bench.answer()
        bench.shake("language")
        bench.sync()
        assert bench.gap().mean > FAULT
    assert bench.gap().is_rounding()


def test_a_stale_tower_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of images that old weights have computed; the keys and values behind them are dropped."""
    bench.sync()
    with monkeypatch.context() as patch:
        patch.setattr(
            bench.engine, "_forget", lambda features: bench.engine._llm.reset_prefix_cache()
        )
        forget_the_version(patch, images=True, text=False)
        bench.answer()
        bench.shake("vision")
        bench.shake("merger")
        bench.sync()
        assert bench.gap().mean > FAULT
    assert bench.gap().is_rounding()


def test_a_stale_head_is_seen(bench: Bench) -> None:
    """What `named_parameters` would send: a tied head is not among them."""
    bench.sync()
    bench.shake("language")
    named = bench.model.policy.model.named_parameters
    bench.version += 1
    bench.engine.sync(lambda: iter(named()), bench.version)
    stale = bench.gap()
    bench.sync()
    assert bench.gap().is_rounding()
    assert stale.mean > FAULT


@pytest.mark.parametrize("cure", ["keys", "caches"])
@pytest.mark.parametrize("part", ["language", "vision", ""])
def test_either_cure_alone_is_enough(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, cure: str, part: str
) -> None:
    """The version in the keys, and dropping what was computed: each would do."""
    bench.sync()
    with monkeypatch.context() as patch:
        if cure == "keys":
            keep_caches(patch, bench)
        else:
            forget_the_version(patch, images=True, text=True)
        bench.answer()
        bench.shake(part)
        bench.sync()
        assert bench.gap().is_rounding()


def test_a_frozen_tower_keeps_its_features_over_steps(tiny_checkpoint: Path) -> None:
    from test_inputs import Work

    bench = make_bench(tiny_checkpoint, prepare=freeze_vision)
    bench.sync()
    bench.answer()
    bench.shake("language")
    bench.sync()
    work = Work(bench.engine)
    assert bench.gap().is_rounding()
    work.stop()
    assert work.patches == 0
    assert work.tokens > 0


def freeze_vision(model: Any, family: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part_of(name) == "language")


# ---- what goes where


def test_every_tensor_goes_somewhere_and_nothing_is_left_out(bench: Bench) -> None:
    report = bench.engine.sync(bench.weights, 50)
    sent = dict(bench.weights())
    assert report.tensors == len(sent)
    assert report.bytes == sum(t.numel() * t.element_size() for t in sent.values())
    assert report.version == 50
    bench.version = 50


def without(weights: Iterator[tuple[str, Tensor]], name: str) -> Iterator[tuple[str, Tensor]]:
    return ((n, t) for n, t in weights if n != name)


@pytest.mark.parametrize(
    "change,said",
    [
        (
            lambda w: without(w, "model.language_model.layers.1.mlp.down_proj.weight"),
            r"of vLLM that the trainer sends nothing for.*layers\.1\.mlp\.down_proj",
        ),
        (
            lambda w: iter([*w, ("model.visual.blocks.0.norm1.bias", torch.zeros(96))]),
            r"1 that were sent more than once.*norm1\.bias",
        ),
    ],
)
def test_weights_that_do_not_belong_are_refused_at_the_first_sync(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    monkeypatch.setattr(bench.engine, "_synced", False)
    with pytest.raises(RunError, match=said):
        bench.engine.sync(lambda: change(bench.weights()), bench.version + 1)
    bench.sync()
    assert bench.gap().is_rounding()


def test_adapters_arrive_merged(tiny_checkpoint: Path) -> None:
    def adapted(model: Any, family: Any) -> None:
        everywhere = ("language", "merger", "vision")
        add_adapters(model, family, rank=4, alpha=8.0, parts=everywhere, seed=1)

    bench = make_bench(tiny_checkpoint, prepare=adapted)
    model = bench.model
    with torch.no_grad():
        for name, parameter in model.policy.model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    assert bench.gap().mean > FAULT
    bench.engine.sync(lambda: merged_weights(model.policy.model), 1)
    assert bench.gap().is_rounding()


WATCHER = "Reload._watch.<locals>.watched"
"""The code of what notes that a loader was called; its own name is that of the loader."""


def test_a_reload_leaves_nothing_behind(bench: Bench) -> None:
    """Who watches a reload is gone after it, also after one that broke off in the middle."""
    bench.sync()
    engine: Any = bench.engine
    worker = engine._engine.model_executor.driver_worker.worker
    with set_current_vllm_config(worker.vllm_config):
        for number in (0, 3):
            broken = Reload(worker.model_runner.get_model(), worker.vllm_config.model_config)
            broken.begin()
            broken.load_weights(list(bench.weights())[:number])
            broken.finish()
    gc.collect()
    watchers = [
        made
        for made in gc.get_objects()
        if type(made) is FunctionType and made.__code__.co_qualname == WATCHER
    ]
    assert not watchers
    bench.sync()
    assert bench.gap().is_rounding()


# ---- features instead of pictures


def test_features_of_the_trainers_tower_serve_as_well_as_pictures(tiny_checkpoint: Path) -> None:
    bench = make_bench(tiny_checkpoint, images="features")
    engine: Any = bench.engine
    worker = engine._engine.model_executor.driver_worker.worker
    held = [name for name, _ in worker.model_runner.get_model().named_parameters()]
    assert not [name for name in held if "visual" in name], "the engine has no tower"

    assert bench.gap().is_rounding()
    for part in ("vision", "language", ""):
        bench.shake(part)
        bench.sync()
        gap = bench.gap()
        assert gap.is_rounding(), (part, gap)


def test_stale_features_are_seen(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tiny_checkpoint, images="features")
    bench.sync()
    keep_caches(monkeypatch, bench)
    forget_the_version(monkeypatch, images=True, text=False)
    bench.answer()
    bench.shake("vision")
    bench.sync()
    assert bench.gap().mean > FAULT


# ---- sleep


def test_rest_and_waking_are_asked_for_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU ignores sleep; the calls are made as on a GPU, and answers are right afterwards."""
    bench.sync()
    called: list[Any] = []
    llm = bench.engine._llm
    monkeypatch.setattr(bench.engine, "_sleeps", True)
    monkeypatch.setattr(llm, "sleep", lambda level: called.append(("sleep", level)))
    monkeypatch.setattr(llm, "wake_up", lambda tags: called.append(("wake", *tags)))

    bench.engine.rest()
    bench.engine.rest()
    with pytest.raises(AssertionError, match="needs a sync before it can answer"):
        bench.answer()
    bench.sync()
    assert bench.gap().is_rounding()
    assert called == [("sleep", 2), ("wake", "weights"), ("wake", "kv_cache")]


def test_a_cpu_takes_the_calls(bench: Bench) -> None:
    bench.engine._llm.sleep(level=2)
    bench.engine._llm.wake_up(tags=["weights"])
    bench.engine._llm.wake_up(tags=["kv_cache"])
    bench.sync()
    assert bench.gap().is_rounding()


def test_the_module_under_test_is_the_one_that_is_used() -> None:
    assert engine_module.VllmEngine.__module__ == "gpg_vl.rollout.vllm.engine"
