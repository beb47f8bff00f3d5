"""What vLLM is given and what it answers: the policy's own numbers, once per group, and nothing that may not be sampled."""

import gc
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import FAULT, SAMPLING, Bench, assert_beside, compare, make_bench
from oracle import naive_logits

from gpg_vl.errors import RunError
from gpg_vl.models.load import load_model
from gpg_vl.rollout.sampling import truncate
from gpg_vl.rollout.vllm import engine as engine_module
from gpg_vl.rollout.vllm import options as options_module
from gpg_vl.rollout.vllm.engine import VllmEngine

pytest_plugins = ("vllm_fixtures",)


@pytest.mark.proves("vLLM")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
def test_log_probs_are_the_policys_before_and_after_training(
    checkpoints: dict[str, Path], family: str
) -> None:
    """0, 1, 2 and 5 images, a picture shown twice, the vision tower trained."""
    bench = make_bench(checkpoints[family])
    assert bench.gap().is_rounding(), bench.gap()
    for _ in range(3):
        bench.train()
        bench.sync()
        gap = bench.gap()
        assert gap.is_rounding(), gap


def test_a_step_changes_more_than_rounding(bench: Bench) -> None:
    """That the test above could fail: without the sync the gap is that of an optimizer step."""
    bench.train()
    assert bench.gap().mean > FAULT
    bench.sync()
    assert bench.gap().is_rounding()


def test_patches_that_are_normalised_twice_are_seen(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own default normalises in the engine; nothing but the gap says so."""

    def with_default(*given: Any, **named: Any) -> dict[str, Any]:
        arguments = options_module.engine_arguments(*given, **named)
        arguments["mm_device_do_normalize"] = True
        return arguments

    monkeypatch.setattr(engine_module, "engine_arguments", with_default)
    broken = make_bench(tiny_checkpoint)
    assert broken.gap().mean > FAULT


def test_an_engine_leaves_random_numbers_and_the_collector_as_they_were(
    tiny_checkpoint: Path,
) -> None:
    """vLLM seeds every generator of its process when it starts, and freezes what the garbage collector looks at."""

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    def seed() -> None:
        random.seed(4)
        np.random.seed(4)
        torch.manual_seed(4)

    seed()
    expected = drawn()
    seed()
    make_bench(tiny_checkpoint)
    assert drawn() == expected
    assert gc.get_freeze_count() == 0


# ---- once per group


class Work:
    """Tokens through vLLM's first text layer and patches through its vision tower."""

    def __init__(self, engine: Any) -> None:
        self.tokens = self.patches = 0
        worker = engine._engine.model_executor.driver_worker.worker
        model = worker.model_runner.get_model()
        self._hooks = [
            model.language_model.model.layers[0].register_forward_pre_hook(
                self._text, with_kwargs=True
            ),
            model.visual.register_forward_pre_hook(self._vision, with_kwargs=True),
        ]

    def _text(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens += named.get("positions", given[0] if given else None).shape[-1]

    def _vision(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.patches += (given[0] if given else named["x"]).shape[0]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def test_an_image_and_the_full_blocks_of_a_prompt_are_computed_once(bench: Bench) -> None:
    bench.sync()
    block, members = options_module.BLOCK["cpu"], 8
    work = Work(bench.engine)
    bench.answer(replace(SAMPLING, group_size=members, max_new_tokens=1))
    work.stop()

    distinct = {
        key: patches
        for prompt in bench.prompts
        if prompt.grid_thw_I_3 is not None
        for key, patches in zip(
            prompt.image_keys, prompt.grid_thw_I_3.prod(dim=1).tolist(), strict=True
        )
    }
    assert work.patches == sum(distinct.values())

    # each sibling computes again what lies behind the last full block; prompts here share no block with one another
    # except for the common beginning, which the bound leaves out
    once = sum(prompt.length for prompt in bench.prompts)
    again = sum((prompt.length - 1) % block + 1 for prompt in bench.prompts) * (members - 1)
    assert work.tokens <= once + again
    assert work.tokens < members * once / 2


def test_a_greedy_answer_shares_the_prompt_of_its_group(bench: Bench) -> None:
    """The group is drawn as without it, it is that of temperature 0, and it costs what one more member would."""
    bench.sync()
    block, members = options_module.BLOCK["cpu"], SAMPLING.group_size + 1
    work = Work(bench.engine)
    bench.answer(replace(SAMPLING, max_new_tokens=1, with_greedy=True))
    work.stop()
    once = sum(prompt.length for prompt in bench.prompts)
    again = sum((prompt.length - 1) % block + 1 for prompt in bench.prompts) * (members - 1)
    assert work.tokens <= once + again
    assert work.tokens < members * once / 2

    before = bench.engine.counters()
    told: list[int] = []
    both = bench.answer(replace(SAMPLING, with_greedy=True), done=told.append)
    counted = bench.engine.counters()
    assert sum(told) == members * len(bench.prompts)
    assert counted["prompt_tokens"] - before["prompt_tokens"] == once
    assert counted["decoded_tokens"] - before["decoded_tokens"] == sum(
        len(completion.token_ids) for group in both for completion in group
    )
    assert_beside(bench, both)


# ---- the sampling law


def test_greedy_answers_are_those_of_the_native_engine(bench: Bench) -> None:
    """60 rows: equal, or the two log-probs at the first token that differs are nearly the same."""
    bench.sync()
    greedy = replace(SAMPLING, group_size=1, temperature=0.0, max_new_tokens=10)
    native = replace_engine(bench)
    compared = 0
    for _ in range(10):
        theirs, ours = bench.answer(greedy), native.answer(greedy)
        for (a,), (b,) in zip(theirs, ours, strict=True):
            compared += 1
            for place, (left, right) in enumerate(zip(a.token_ids, b.token_ids, strict=False)):
                if left != right:
                    assert abs(a.logprobs[place] - b.logprobs[place]) < 1e-5
                    break
            else:
                assert a.token_ids == b.token_ids
                assert a.text == b.text
                assert a.finish_reason == b.finish_reason
        bench.shake("")
        bench.sync()
    assert compared == 60


def replace_engine(bench: Bench) -> Bench:
    return Bench(model=bench.model, engine=bench.model.engine("native"), prompts=bench.prompts)


def test_answers_depend_on_seed_and_draw_alone(bench: Bench) -> None:
    bench.sync()
    once = bench.answer(draws=[7, 8, 9, 10, 11, 12])
    again = Bench(model=bench.model, engine=bench.engine, prompts=bench.prompts[::-1]).answer(
        draws=[12, 11, 10, 9, 8, 7]
    )
    assert [[c.token_ids for c in group] for group in once] == [
        [c.token_ids for c in group] for group in again[::-1]
    ]
    members = Counter(completion.token_ids for completion in once[0])
    assert len(members) == SAMPLING.group_size, "the members of a group differ"
    other = bench.answer(replace(SAMPLING, seed=6), draws=[7, 8, 9, 10, 11, 12])
    assert other != once


def test_log_probs_are_those_of_the_tempered_distribution(bench: Bench) -> None:
    bench.sync()
    answers = bench.answer(replace(SAMPLING, temperature=0.7))
    assert compare(bench.model, bench.prompts, answers).mean > FAULT

    bench.model.policy.temperature = 0.7
    try:
        assert compare(bench.model, bench.prompts, answers).is_rounding()
    finally:
        bench.model.policy.temperature = 1.0


def test_every_end_token_ends_an_answer_and_belongs_to_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sync()
    processing = bench.model.processing
    first = bench.answer(replace(SAMPLING, max_new_tokens=1))
    ends = (first[0][0].token_ids[0], first[1][0].token_ids[0])
    several = replace(processing, tokens=replace(processing.tokens, ends=ends))
    monkeypatch.setattr(bench.engine, "_setup", replace(bench.engine._setup, processing=several))

    for group in bench.answer():
        for completion in group:
            held = [token in ends for token in completion.token_ids]
            assert not any(held[:-1])
            assert completion.finish_reason == ("stop" if held[-1] else "length")
    assert bench.answer()[0][0].token_ids == ends[:1]
    assert bench.answer()[1][0].token_ids == ends[1:]


def test_a_vision_id_is_not_sampled_even_where_the_model_would(bench: Bench) -> None:
    """Their rows of the head are made the likeliest by far less than the bias takes away."""
    bench.sync()
    forbidden = list(bench.model.processing.tokens.never_sampled)
    assert forbidden
    (settings,) = engine_module.sampling_settings(SAMPLING, bench.model.processing.tokens, 0)
    assert set(settings["logit_bias"]) == {str(token) for token in forbidden}
    said = {token for group in bench.answer() for c in group for token in c.token_ids}
    assert not said & set(forbidden)


def test_a_vision_id_that_was_sampled_stops_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bias, and with vision ids that are what the model says anyway."""
    bench.sync()
    said = bench.answer()[0][0].token_ids[0]
    processing = bench.model.processing
    claimed = replace(processing, tokens=replace(processing.tokens, never_sampled=(said,)))
    monkeypatch.setattr(bench.engine, "_setup", replace(bench.engine._setup, processing=claimed))
    monkeypatch.setattr(
        engine_module,
        "sampling_settings",
        lambda *given: [{**settings, "logit_bias": {}} for settings in settings_of(*given)],
    )
    with pytest.raises(RunError, match=rf"vision ids \[{said}\].*native"):
        bench.answer()


settings_of = engine_module.sampling_settings


@pytest.mark.parametrize("whole", [True, False])
def test_more_prompts_than_fit_into_a_call_wait_for_the_next(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A prompt that is cut into parts ends vLLM on a CPU, so none is, however small the calls are."""
    narrow = {"max_num_batched_tokens": 600, "max_model_len": 600}
    made = options_module.on_a_cpu
    monkeypatch.setattr(
        options_module,
        "on_a_cpu",
        lambda *given: {**made(*given), **narrow, "enable_chunked_prefill": not whole},
    )
    bench = make_bench(tiny_checkpoint)
    many = [prompt for _ in range(5) for prompt in bench.prompts]
    asked = Bench(model=bench.model, engine=bench.engine, prompts=many)
    if whole:
        assert compare(bench.model, many, asked.answer()).is_rounding()
    else:
        with pytest.raises(RuntimeError, match="does not use offset"):
            asked.answer()


def test_nothing_is_asked_of_nobody(bench: Bench) -> None:
    assert isinstance(bench.engine, VllmEngine)
    assert bench.engine.generate([], SAMPLING) == []


def test_a_narrowed_draw_is_that_of_the_native_engine(bench: Bench, tiny_checkpoint: Path) -> None:
    """top_k and top_p of an evaluation: tokens outside are not drawn, and log-probs are those of what is left."""
    bench.sync()
    stock = load_model(str(tiny_checkpoint))
    stock.load_state_dict(dict(bench.weights()))
    tokens = bench.model.processing.tokens

    narrow = replace(SAMPLING, top_k=5, top_p=0.9, group_size=8)
    drawn = set()
    for prompt, group in zip(bench.prompts, bench.answer(narrow), strict=True):
        for completion in group:
            logits_T_V = naive_logits(stock, tokens, prompt, completion.token_ids)
            logp_T_V = torch.log_softmax(logits_T_V.detach(), dim=-1)
            kept_T_V = torch.log_softmax(truncate(logp_T_V, top_k=5, top_p=0.9), dim=-1)
            for place, token in enumerate(completion.token_ids):
                drawn.add(token)
                assert abs(kept_T_V[place, token].item() - completion.logprobs[place]) < 1e-5
    assert len(drawn) > 5
