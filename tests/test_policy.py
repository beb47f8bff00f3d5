"""The policy against the stock model: same log-probs, same gradient, whatever the layout and the cut."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import scene_example
from oracle import naive_logp
from PIL import Image

from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.adapters import add_adapters
from gpg_vl.models.encode import Encoder
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed, pack
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.phases import forward_backward
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.requests import Features, Prefill, Prefix, Score, ScoreOutput
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.rollout.engine import RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Example, Prompt

COMPLETIONS = [[(5, 9, 300, 7), (11,), (12, 13)], [(40, 41, 42, 43, 44), (50, 51), (60,)]]


def encoder(checkpoint: Path, **style: str) -> Encoder:
    return Encoder(
        processing=load_processing(str(checkpoint)),
        style=PromptStyle(**style),
        limits=PixelLimits(),
        root=None,
    )


def prompts(checkpoint: Path) -> list[Prompt]:
    """One prompt with one picture, one with two of other sizes."""
    pictures = tuple(
        scenes.png(Image.effect_noise(size, 90).convert("RGB")) for size in ((140, 84), (56, 112))
    )
    two = Example(
        id="two", images=pictures, prompt="<image>Count the balls here, and<image>here.", answer="3"
    )
    encode = encoder(checkpoint).encode
    return [encode(scene_example(1)), encode(two)]


def text_prompts(checkpoint: Path) -> list[Prompt]:
    encode = encoder(checkpoint).encode
    return [
        encode(Example(id=t, prompt=t, answer="2"))
        for t in ("How many balls? Two.", "Which is nearer to the wall?")
    ]


PROMPTS = {
    "tiny_checkpoint": prompts,
    "newer_checkpoint": prompts,
    "deep_checkpoint": prompts,
    "tiled_checkpoint": prompts,
    "tiled_qwen3_checkpoint": prompts,
    "marked_checkpoint": prompts,
    "text_checkpoint": text_prompts,
    "normed_checkpoint": text_prompts,
}
"""Every family: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL with two text towers, SmolVLM, text-only Qwen2 and Qwen3."""


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    return new_policy(tiny_checkpoint)


def new_policy(checkpoint: Path, *, checkpointing: bool = False, **arguments: Any) -> Policy:
    processing = load_processing(str(checkpoint))
    model = load_model(str(checkpoint))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model, processing.family, processing.tokens, **arguments).train(checkpointing)


def gradients(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [
            p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=p.dtype)
            for p in policy.parameters()
        ]
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def weights_of(packed: Packed) -> torch.Tensor:
    """Weights that differ from completion to completion."""
    return torch.linspace(-1.3, 0.9, len(packed.counts)).repeat_interleave(
        torch.tensor(packed.counts)
    )


class Weights(NamedTuple):
    weight_K: torch.Tensor


def weighted(weights_K: torch.Tensor) -> Objective:
    """The sum of -weight * log pi, the loss of GPG."""
    return Objective(Weights(weights_K), lambda logp_K, inputs: -(inputs.weight_K * logp_K))


def train(
    policy: torch.nn.Module,
    packed: Packed,
    objective: Objective | None = None,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    prefix: Prefix | None = None,
) -> ScoreOutput:
    """Forward and backward of a micro-batch, in one call or in phases."""
    return forward_backward(
        policy,
        packed,
        objective or weighted(weights_of(packed)),
        backward=lambda loss, last: loss.backward(),
        autocast=autocast,
        prefix=prefix,
    )


def score(policy: torch.nn.Module, packed: Packed) -> ScoreOutput:
    with torch.no_grad():
        output: ScoreOutput = policy(Score(packed=packed))
    return output


def keep(policy: Policy, store: PrefixStore, prompts: Sequence[Prompt]) -> None:
    """Compute prompts one by one with their graph, as an engine does."""
    for prompt in prompts:
        packed = pack([prompt], [[]])
        store.put(packed, policy(Prefill(packed=packed)))


def naive(
    checkpoint: Path,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[tuple[int, ...]]],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and gradient of the stock model, every completion in a forward pass of its own."""
    stock = load_model(str(checkpoint)).to(dtype)
    tokens = load_processing(str(checkpoint)).tokens
    flat = [(prompt, c) for prompt, group in zip(prompts, completions, strict=True) for c in group]
    logps = [naive_logp(stock, tokens, prompt, c, temperature=0.7) for prompt, c in flat]
    (-torch.dot(weights_of(pack(prompts, completions)).to(dtype), torch.cat(logps))).backward()
    return torch.cat(logps).detach(), gradients(stock)


@pytest.mark.proves("log-probs", "gradients")
@pytest.mark.parametrize("family", list(PROMPTS))
@pytest.mark.parametrize(
    "dtype,tolerance,gradient_tolerance",
    [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-12, 1e-6)],
)
def test_every_way_of_computing_a_micro_batch_has_the_gradient_of_the_stock_model(
    request: pytest.FixtureRequest,
    family: str,
    dtype: torch.dtype,
    tolerance: float,
    gradient_tolerance: float,
) -> None:
    """Kernels, one call or chunks, with and without checkpointing, naive layout; vision tower trained."""
    checkpoint: Path = request.getfixturevalue(family)
    two = PROMPTS[family](checkpoint)
    logp_K, gradient = naive(checkpoint, two, COMPLETIONS, dtype)
    assert gradient.norm() > 0.1, "the comparison of two zero gradients would prove nothing"
    for kernel, shared, limit, checkpointing in (
        ("dense", True, None, False),
        ("split", True, None, False),
        ("split", True, 1, False),
        ("dense", True, 1, False),
        ("split", True, two[0].length + two[1].length + 5, True),
        ("split", True, None, True),
        ("split", False, None, False),
    ):
        policy = new_policy(
            checkpoint, kernel=kernel, temperature=0.7, checkpointing=checkpointing
        ).to(dtype)
        packed = pack(two, COMPLETIONS, shared_prefix=shared, tokens_per_pass=limit)
        assert (len(packed.chunks) > 1) == (limit is not None)
        output = train(policy, packed)
        case = f"{kernel} {shared=} {limit=} {checkpointing=}"
        assert torch.allclose(output.logp_K, logp_K, atol=tolerance, rtol=0), case
        assert relative(gradients(policy.model), gradient) < gradient_tolerance, case
        if PROMPTS[family] is prompts:
            seen = [
                n
                for n, p in policy.model.named_parameters()
                if policy.family.part_of(n) != "language" and p.grad is not None and p.grad.any()
            ]
            assert len(seen) > 10, "the vision tower must be part of what is compared"


def test_in_bfloat16_sharing_is_as_near_to_float32_as_separate_rows_are(
    tiny_checkpoint: Path,
) -> None:
    """Rounding noise is compared with that of the naive layout, not with zero."""
    two = prompts(tiny_checkpoint)
    _, exact = naive(tiny_checkpoint, two, COMPLETIONS, torch.float64)
    errors = {}
    for name, shared, limit in (
        ("naive", False, None),
        ("shared", True, None),
        ("chunks", True, 1),
    ):
        policy = new_policy(tiny_checkpoint, temperature=0.7)
        packed = pack(two, COMPLETIONS, shared_prefix=shared, tokens_per_pass=limit)
        train(policy, packed, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
        errors[name] = relative(gradients(policy.model).double(), exact)
    assert 1e-4 < errors["naive"] < 0.1
    assert max(errors.values()) < 2 * errors["naive"]


@pytest.mark.proves("isolation")
@pytest.mark.parametrize("family", PROMPTS)
def test_a_sibling_cannot_be_seen(request: pytest.FixtureRequest, family: str) -> None:
    """Bit-equal log-probs; and the gradient of one completion's log-prob reaches no sibling's embedding."""
    checkpoint = request.getfixturevalue(family)
    policy, one = new_policy(checkpoint), PROMPTS[family](checkpoint)[:1]
    for kernel in ("split", "dense"):
        policy.kernel = kernel
        for limit in (None, 1):
            both = [[(5, 6, 7), (8, 9, 10)]], [[(200, 201, 202), (8, 9, 10)]]
            before, after = (
                score(policy, pack(one, completions, tokens_per_pass=limit)).logp_K
                for completions in both
            )
            assert torch.equal(before[3:], after[3:])
            assert not torch.equal(before[:3], after[:3])
    policy.kernel = "split"
    leaves: list[torch.Tensor] = []
    watch = policy.model.get_input_embeddings().register_forward_hook(
        lambda m, a, out: leaves.append(out)
    )
    second = weighted(torch.tensor([0.0, 0, 0, 1, 1, 1]))
    packed = pack(one, [[(5, 6, 7), (8, 9, 10)]])
    loss = policy(Score(packed=packed, objective=second)).loss
    watch.remove()
    (slope,) = torch.autograd.grad(loss, leaves)
    suffixes = slope[one[0].length :]
    assert torch.count_nonzero(suffixes[:2]) == 0
    assert torch.count_nonzero(suffixes[2:]) > 0


@pytest.mark.proves("text-only")
@pytest.mark.parametrize("family", PROMPTS)
def test_log_probs_do_not_depend_on_the_neighbours_in_a_micro_batch(
    request: pytest.FixtureRequest, family: str
) -> None:
    """Images of different size and a prompt without one in a micro-batch: each completion as if it were alone."""
    checkpoint = request.getfixturevalue(family)
    policy, (first, second) = new_policy(checkpoint), PROMPTS[family](checkpoint)
    mixed = [first, text_prompts(checkpoint)[0], second]
    completions = [COMPLETIONS[0], [(7, 8, 9), (10,)], COMPLETIONS[1]]
    together = score(policy, pack(mixed, completions)).logp_K
    alone = torch.cat(
        [score(policy, pack([p], [c])).logp_K for p, c in zip(mixed, completions, strict=True)]
    )
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


def test_scores_are_those_of_training_and_need_no_gradient(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """Joined and in chunks; asked without an objective there is no loss, with one there is its value."""
    two = prompts(tiny_checkpoint)
    for limit in (None, 1):
        packed = pack(two, COMPLETIONS, tokens_per_pass=limit)
        trained = train(policy, packed)
        scored = score(policy, packed)
        with torch.no_grad():
            valued = policy(Score(packed=packed, objective=weighted(weights_of(packed))))
        assert torch.equal(scored.logp_K, trained.logp_K)
        assert torch.equal(scored.entropy_K, trained.entropy_K)
        assert scored.loss == 0
        assert torch.allclose(valued.loss, trained.loss, atol=1e-6)
        expected = -(weights_of(packed) * trained.logp_K).sum()
        assert torch.allclose(valued.loss, expected, atol=1e-5)
        assert not any(x.requires_grad for x in (*scored[:3], *valued[:3], *trained[:3]))
    policy.zero_grad(set_to_none=True)


def test_features_of_a_micro_batch_are_those_of_the_stock_tower(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    two = prompts(tiny_checkpoint)
    packed = pack([two[0], two[1], two[0]], [[(5,)]] * 3)
    with torch.no_grad():
        features = policy(Features(packed=packed))
        expected = []
        for prompt in two:
            stock = policy.model.model.get_image_features(
                prompt.pixel_values_N, prompt.grid_thw_I_3
            )
            expected += list(getattr(stock, "pooler_output", stock))
    assert len(features) == len(expected) == 3, "each distinct picture once"
    for ours, theirs in zip(features, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_image_and_prompt_go_through_the_model_once(tiny_checkpoint: Path) -> None:
    """Counted by hooks: two groups of three, in one call and in chunks, and the naive layout beside them."""
    two = prompts(tiny_checkpoint)
    patches = sum(len(p.pixel_values_N) for p in two)
    prompt_tokens = sum(p.length for p in two)
    run = sum(len(c) - 1 for group in COMPLETIONS for c in group)
    for shared, limit, expected in (
        (True, None, (patches, prompt_tokens + run)),
        (True, 1, (patches, prompt_tokens + run)),
        (False, None, (3 * patches, 3 * prompt_tokens + run)),
    ):
        policy = new_policy(tiny_checkpoint)
        seen = {"patches": 0, "tokens": 0}

        def count_patches(module: Any, arguments: Any, seen: dict[str, int] = seen) -> None:
            seen["patches"] += len(arguments[0])

        def count_tokens(
            module: Any, arguments: Any, named: Any, seen: dict[str, int] = seen
        ) -> None:
            seen["tokens"] += named["inputs_embeds"].shape[:2].numel()

        policy.model.model.visual.register_forward_pre_hook(count_patches)
        policy.model.model.language_model.register_forward_pre_hook(count_tokens, with_kwargs=True)
        packed = pack(two, COMPLETIONS, shared_prefix=shared, tokens_per_pass=limit)
        train(policy, packed)
        assert (seen["patches"], seen["tokens"]) == expected
        assert (policy.work.vision_patches, policy.work.tower_tokens) == expected


def test_two_questions_about_one_image_encode_it_once(tiny_checkpoint: Path) -> None:
    encode = encoder(tiny_checkpoint).encode
    picture = scene_example(1)
    two = [
        encode(replace(picture, id=q, prompt=f"<image>{q}"))
        for q in ("How many?", "Which is nearer?")
    ]
    logp_K, gradient = naive(tiny_checkpoint, two, COMPLETIONS, torch.float64)
    policy = new_policy(tiny_checkpoint, temperature=0.7).double()
    packed = pack(two, COMPLETIONS)
    output = train(policy, packed)
    assert policy.work.vision_patches == len(two[0].pixel_values_N)
    assert torch.allclose(output.logp_K, logp_K, atol=1e-12, rtol=0)
    assert relative(gradients(policy.model), gradient) < 1e-6


@pytest.mark.proves("frozen tower")
@pytest.mark.parametrize("family", [name for name in PROMPTS if PROMPTS[name] is prompts])
def test_features_of_a_frozen_tower_are_computed_once_in_a_run(
    request: pytest.FixtureRequest, family: str
) -> None:
    """And never kept while the tower or its merger is trained."""
    checkpoint: Path = request.getfixturevalue(family)
    two = prompts(checkpoint)
    packed = pack(two, COMPLETIONS)
    plain = score(new_policy(checkpoint), packed).logp_K
    for trained in (("language",), ("language", "merger")):
        policy = new_policy(checkpoint, features=FeatureCache(2**20))
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_(policy.family.part_of(name) in trained)
        for step in range(3):
            output = train(policy, packed)
            assert torch.allclose(output.logp_K, plain, atol=1e-5)
            seen = 1 if "merger" not in trained else step + 1
            assert policy.work.vision_patches == seen * packed.patches


def test_frozen_weights_get_no_gradient_in_chunks_either(tiny_checkpoint: Path) -> None:
    """Only some layers trained: the rest of the gradient is as it is in one call."""
    two = prompts(tiny_checkpoint)
    results = []
    for limit in (None, 1):
        policy = new_policy(tiny_checkpoint)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("language_model.layers.1" in name)
        packed = pack(two, COMPLETIONS, tokens_per_pass=limit)
        train(policy, packed)
        results.append(gradients(policy))
        assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())
    assert relative(results[1], results[0]) < 1e-6


def test_adapters_have_the_same_gradient_in_one_call_and_in_chunks(tiny_checkpoint: Path) -> None:
    two = prompts(tiny_checkpoint)
    results = []
    for shared, limit in ((False, None), (True, None), (True, 1)):
        processing = load_processing(str(tiny_checkpoint))
        model = load_model(str(tiny_checkpoint))
        add_adapters(
            model,
            processing.family,
            rank=2,
            alpha=4.0,
            targets=("q_proj", "v_proj", "down_proj"),
            seed=0,
        )
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:  # they start at zero, under which the other half has no gradient
                torch.nn.init.normal_(
                    parameter, std=0.1, generator=torch.Generator().manual_seed(len(name))
                )
        policy = Policy(model, processing.family, processing.tokens)
        packed = pack(two, COMPLETIONS, shared_prefix=shared, tokens_per_pass=limit)
        train(policy, packed)
        results.append(gradients(policy))
        assert results[-1].norm() > 1e-2
    assert relative(results[1], results[0]) < 1e-5
    assert relative(results[2], results[0]) < 1e-5


def test_swapping_the_image_changes_the_log_probs(policy: Policy, tiny_checkpoint: Path) -> None:
    encode = encoder(tiny_checkpoint).encode
    first, other = scene_example(1), scene_example(5)
    mixed = Example(
        id="mixed",
        images=other.images,
        prompt=first.prompt,
        answer=first.answer,
        choices=first.choices,
    )
    a, b = (score(policy, pack([encode(e)], [[(5, 6)]])).logp_K for e in (first, mixed))
    assert (a - b).abs().max() > 1e-4


def test_a_vision_model_reads_rows_with_and_without_image_in_one_call(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    tokens = load_processing(str(tiny_checkpoint)).tokens
    plain = encoder(tiny_checkpoint).encode(
        Example(id="t", prompt="How many balls? Two.", answer="2")
    )
    two = [plain, prompts(tiny_checkpoint)[0]]
    output = score(policy, pack(two, [[(5, 6)], [(7,)]]))
    naive = torch.cat(
        [
            naive_logp(policy.model, tokens, two[0], (5, 6)),
            naive_logp(policy.model, tokens, two[1], (7,)),
        ]
    )
    assert torch.allclose(output.logp_K, naive.detach(), atol=1e-5)


def test_entropy_is_that_of_the_sampling_distribution(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """On a vocabulary of V equal logits the entropy is log of the number of tokens that may be sampled."""
    policy_flat = Policy(
        load_model(str(tiny_checkpoint)),
        policy.family,
        load_processing(str(tiny_checkpoint)).tokens,
    )
    with torch.no_grad():
        policy_flat.model.get_output_embeddings().weight.zero_()
    output = score(policy_flat, pack(prompts(tiny_checkpoint)[:1], [[(5, 6)]]))
    allowed = int((~policy_flat.never_sampled_V).sum())
    assert torch.allclose(
        output.entropy_K, torch.log(torch.tensor(float(allowed))).expand(2), atol=1e-5
    )


def test_a_model_with_dropout_is_refused(tiny_checkpoint: Path) -> None:
    processing = load_processing(str(tiny_checkpoint))
    model = load_model(str(tiny_checkpoint))
    model.config.get_text_config().attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout 0\.1; only 0 is allowed"):
        Policy(model, processing.family, processing.tokens)


def test_a_model_or_adapter_with_dropout_is_refused(tiny_checkpoint: Path) -> None:
    processing = load_processing(str(tiny_checkpoint))
    model = load_model(str(tiny_checkpoint))
    model.model.language_model.layers[0].mlp.lora_dropout = torch.nn.Dropout(0.05)
    with pytest.raises(
        UserError,
        match=r"layers\.0\.mlp\.lora_dropout has dropout probability 0\.05; only 0 is allowed",
    ):
        Policy(model, processing.family, processing.tokens)
    vision = load_model(str(tiny_checkpoint))
    vision.config.vision_config.attention_dropout = 0.1
    with pytest.raises(
        UserError, match=r"vision config has attention_dropout 0\.1; only 0 is allowed"
    ):
        Policy(vision, processing.family, processing.tokens)


def test_padded_batches_and_generation_of_the_stock_model_are_left_alone(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """The attention that is installed passes an ordinary call on: same numbers as in a model that was never touched."""
    ids = torch.tensor([[287, 5, 6, 7], [8, 9, 10, 11]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    untouched = load_model(str(tiny_checkpoint))

    def stock(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        model.model.rope_deltas = None
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
            model.model.rope_deltas = None
            said = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=5,
                min_new_tokens=5,
                do_sample=False,
                top_k=None,
                top_p=None,
            )
        return logits[mask.bool()], said

    score(policy, pack(prompts(tiny_checkpoint), COMPLETIONS))
    for ours, theirs in zip(stock(policy.model), stock(untouched), strict=True):
        assert torch.equal(ours, theirs)


# ---- prefixes that were kept


@pytest.mark.parametrize("family", list(PROMPTS))
def test_training_on_from_the_rollouts_prefixes_has_the_gradient_of_the_stock_model(
    family: str, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    two = PROMPTS[family](checkpoint)
    logp_K, gradient = naive(checkpoint, two, COMPLETIONS, torch.float64)
    for limit in (None, 1):
        policy = new_policy(checkpoint, temperature=0.7).to(torch.float64)
        packed, store = pack(two, COMPLETIONS, tokens_per_pass=limit), PrefixStore()
        with store.open():
            keep(policy, store, two)
            patches = policy.work.vision_patches
            output = train(policy, packed, prefix=store.take(packed))
        assert policy.work.vision_patches == patches, "no picture is computed again"
        assert torch.allclose(output.logp_K, logp_K, atol=1e-9, rtol=0)
        assert relative(gradients(policy.model), gradient) < 1e-6


def test_kept_prefixes_are_used_once_and_only_for_what_they_are_of(tiny_checkpoint: Path) -> None:
    """A micro-batch that needs another prompt too, and the same prompt a second time, are computed as ever."""
    policy, (first, second) = new_policy(tiny_checkpoint), prompts(tiny_checkpoint)
    alone, both = pack([first], COMPLETIONS[:1]), pack([first, second], COMPLETIONS)
    twice = pack([first, first], COMPLETIONS)
    store = PrefixStore()

    def trained_tokens(packed: Packed) -> int:
        before = policy.work.tower_tokens
        train(policy, packed, prefix=store.take(packed))
        return policy.work.tower_tokens - before

    with store.open():
        keep(policy, store, [first])
        assert trained_tokens(both) == both.tokens
        assert trained_tokens(twice) == twice.tokens
        assert trained_tokens(alone) == alone.tokens - first.length
        assert trained_tokens(alone) == alone.tokens
        keep(policy, store, [second])
    assert trained_tokens(pack([second], COMPLETIONS[1:])) == second.length + 4 + 1, (
        "weights may have changed since"
    )


def test_a_store_keeps_single_prompts_and_only_while_it_is_open(tiny_checkpoint: Path) -> None:
    policy, two = new_policy(tiny_checkpoint), prompts(tiny_checkpoint)
    both = pack(two, COMPLETIONS)
    store = PrefixStore()
    assert not store.is_open
    keep(policy, store, two)
    assert store.take(both) is None, "it was closed"
    with store.open():
        assert store.is_open
        store.put(pack(two, [[], []]), policy(Prefill(packed=pack(two, [[], []]))))
        assert store.take(both) is None, "two prompts in one prefix cannot be told apart"
        keep(policy, store, two[::-1])
        taken = store.take(both)
        assert taken is not None
        with torch.no_grad():
            expected = policy(Prefill(packed=both))
        for ours, theirs in zip(taken.tensors, expected.tensors, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5), "in the order of the micro-batch"
    assert not store.is_open


def test_kept_prefixes_have_their_gradient_under_autocast_too(tiny_checkpoint: Path) -> None:
    """Autocast keeps its copies of the weights; one that was made without gradient would cut the graph in silence."""
    two = prompts(tiny_checkpoint)
    requests = [RolloutRequest(prompt=prompt, draw=n) for n, prompt in enumerate(two)]
    sampling = Sampling(group_size=2, temperature=1.0, max_new_tokens=3, seed=0)
    packed = pack(two, COMPLETIONS)
    found = {}
    for kept in (False, True):
        model = Model.load(tiny_checkpoint, dtype="bfloat16", device="cpu", temperature=0.7)
        store = PrefixStore()
        engine = model.engine(prefixes=store)
        with engine.step():
            engine.generate(requests, sampling)
            prefix = store.take(packed)
            assert prefix is not None
            train(
                model.policy,
                packed,
                autocast=lambda: torch.autocast("cpu", torch.bfloat16),
                prefix=prefix if kept else None,
            )
        found[kept] = gradients(model.policy.model).double()
    assert 0 < relative(found[True], found[False]) < 0.02
