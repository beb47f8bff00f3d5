"""A micro-batch in phases: the gradient of one joined call, one chunk's activations at a time, nothing left behind."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_head import GAPS, SequenceInputs, sequence_ratio_loss
from test_policy import (
    COMPLETIONS,
    PROMPTS,
    gradients,
    keep,
    new_policy,
    prompts,
    relative,
    score,
    train,
    weighted,
)
from torch import Tensor, nn

from gpg_vl.algorithms.clipped import Inputs as GrpoInputs
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.model import Model
from gpg_vl.models.adapters import add_adapters
from gpg_vl.models.families import Family
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed, pack
from gpg_vl.models.phases import forward_backward
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.requests import Prefill, Prefix, Score, ScoreOutput

# ---- the same gradient


def everything(model: Any, family: Family) -> None:
    pass


def with_adapters(model: Any, family: Family) -> None:
    add_adapters(model, family, rank=2, alpha=4.0, targets=("q_proj", "v_proj", "up_proj"), seed=0)
    fill_adapters(model)


def adapters_on(*parts: str) -> Callable[[Any, Family], None]:
    def add(model: Any, family: Family) -> None:
        add_adapters(model, family, rank=2, alpha=4.0, parts=parts, seed=0)
        fill_adapters(model)

    return add


adapters_everywhere = adapters_on("language", "merger", "vision")


def fill_adapters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:  # they start at zero, under which the other half has no gradient
            generator = torch.Generator().manual_seed(len(name))
            nn.init.normal_(parameter, std=0.1, generator=generator)


def only(word: str) -> Callable[[Any, Family], None]:
    def freeze_the_rest(model: Any, family: Family) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(word in name)

    return freeze_the_rest


def checkpointed(model: Any, family: Family) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def checkpointed_adapters(model: Any, family: Family) -> None:
    with_adapters(model, family)
    checkpointed(model, family)


def checkpointed_adapters_everywhere(model: Any, family: Family) -> None:
    adapters_everywhere(model, family)
    checkpointed(model, family)


TRAINED = {
    "everything": everything,
    "adapters": with_adapters,
    "adapters everywhere": adapters_everywhere,
    "adapters on vision": adapters_on("vision"),
    "adapters on the merger": adapters_on("merger"),
    "vision alone": only(".visual."),
    "merger alone": only(".visual.merger."),
    "last layer alone": only("language_model.layers.1"),
    "first layer alone": only("language_model.layers.0"),
    "head and embedding alone": only("embed_tokens"),
    "gradient checkpointing": checkpointed,
    "adapters and gradient checkpointing": checkpointed_adapters,
    "adapters everywhere and gradient checkpointing": checkpointed_adapters_everywhere,
}


def objective_of(kind: str, logp_K: Tensor, counts: tuple[int, ...]) -> Objective:
    """Losses that are not linear in log pi, with ratios beyond their clips."""
    tokens = len(logp_K)
    weight_K = torch.linspace(0.2, 1.0, tokens).double()
    advantage_K = torch.linspace(-1.5, 1.1, len(counts)).double()
    advantage_K = advantage_K.repeat_interleave(torch.tensor(counts))
    old_K = logp_K.double() - GAPS.repeat(2)[:tokens]
    if kind == "grpo":
        inputs = GrpoInputs(advantage_K, weight_K, old_K, logp_K.double() + 0.3)
        return Objective(inputs, grpo(kl_beta=0.2, updates=2).token_loss)
    answer_K = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    whole = SequenceInputs(advantage_K, weight_K, old_K, answer_K)
    return Objective(whole, sequence_ratio_loss, whole_completions=True)


def load(checkpoint: Path, prepare: Callable[[Any, Family], None]) -> Policy:
    model = Model.load(checkpoint, device="cpu", temperature=0.7, prepare=prepare)
    return model.policy.double().train()


@pytest.mark.parametrize("kind", ["grpo", "sequence ratio"])
@pytest.mark.parametrize("name", TRAINED)
def test_chunks_and_kept_prefixes_have_the_gradient_of_one_call(
    tiny_checkpoint: Path, name: str, kind: str
) -> None:
    """Loss, log-probs, entropies and gradients in float64; no weight that is frozen gets one."""
    two = prompts(tiny_checkpoint)
    joined = pack(two, COMPLETIONS)
    results = {}
    for way in ("joined", "a chunk each", "two chunks", "kept", "kept, a chunk each"):
        policy = load(tiny_checkpoint, TRAINED[name])
        objective = objective_of(kind, score(policy, joined).logp_K, joined.counts)
        limit = {"a chunk each": 1, "kept, a chunk each": 1, "two chunks": len(joined.ids_S) + 5}
        packed = pack(two, COMPLETIONS, tokens_per_pass=limit.get(way))
        assert (len(packed.chunks) > 1) == (way in limit)
        prefix = None
        if way.startswith("kept"):
            store = PrefixStore()
            with store.open():
                keep(policy, store, two)
                prefix = store.take(packed)
                assert prefix is not None
        *output, values = train(policy, packed, objective, prefix=prefix)
        results[way] = (output, gradients(policy))
        assert values is None, "there is no critic"
        assert not any(tensor.requires_grad for tensor in output)
        for parameter in policy.parameters():
            assert parameter.grad is None or parameter.requires_grad

    first, expected = results.pop("joined")
    assert expected.norm() > 1e-3
    for way, (output, gradient) in results.items():
        for ours, theirs in zip(output, first, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-9, rtol=0), way
        assert relative(gradient, expected) < 1e-6, way


def test_the_gradients_of_many_chunks_are_added_in_float32() -> None:
    """300 chunks that each give a bfloat16 prefix the gradient 1: in bfloat16 the sum would stay at 256."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.bfloat16))

        def forward(self, request: Prefill | Score) -> Prefix | ScoreOutput:
            if isinstance(request, Prefill):
                return Prefix(self.weight * 1, [])
            assert request.prefix is not None
            nothing = torch.zeros(0)
            return ScoreOutput(request.prefix.states_S_H.sum(), nothing, nothing)

    line, (prompt,) = Line(), text_only()
    packed = pack([prompt], [[(1,)] * 300], tokens_per_pass=1)
    assert len(packed.chunks) == 300
    train(line, packed, weighted(torch.ones(300)))
    assert line.weight.grad.item() == 300


def text_only() -> list[Any]:
    from test_layout import SECOND

    return [SECOND]


# ---- one chunk at a time


def flags_of(policy: Policy, packed: Packed, prefix: Prefix | None = None) -> list[bool]:
    flags: list[bool] = []

    def backward(loss: Tensor, last: bool) -> None:
        flags.append(last)
        loss.backward()

    forward_backward(
        policy,
        packed,
        weighted(torch.ones(sum(packed.counts))),
        backward=backward,
        autocast=torch.enable_grad,
        prefix=prefix,
    )
    return flags


def test_the_last_backward_says_so(tiny_checkpoint: Path) -> None:
    two = prompts(tiny_checkpoint)
    joined, chunked = pack(two, COMPLETIONS), pack(two, COMPLETIONS, tokens_per_pass=1)
    policy = new_policy(tiny_checkpoint)
    assert flags_of(policy, joined) == [True]
    assert flags_of(policy, chunked) == [False] * 6 + [True], "the prefixes come last"
    store = PrefixStore()
    with store.open():
        keep(policy, store, two)
        assert flags_of(policy, joined, store.take(joined)) == [False, True]

    # a head of its own that alone is trained: nothing goes back into the prefixes
    policy.model.set_output_embeddings(nn.Linear(64, 384, bias=False))
    policy.requires_grad_(False)
    policy.model.get_output_embeddings().requires_grad_(True)
    assert flags_of(policy, chunked) == [False] * 5 + [True]


def test_only_one_chunk_is_held_at_a_time(tiny_checkpoint: Path) -> None:
    """Weak references to what a layer keeps of each chunk for its gradient: dead before the next chunk is computed."""
    policy, two = new_policy(tiny_checkpoint), prompts(tiny_checkpoint)
    tower = policy.model.model.language_model
    kept: list[weakref.ref[Tensor]] = []
    alive_at_start: list[int] = []

    def count(module: Any, arguments: Any) -> None:
        alive_at_start.append(sum(reference() is not None for reference in kept))

    def remember(module: Any, arguments: Any) -> None:
        kept.append(weakref.ref(arguments[0]))

    tower.layers[0].register_forward_pre_hook(count)
    tower.layers[1].mlp.up_proj.register_forward_pre_hook(remember)
    train(policy, pack(two, COMPLETIONS, tokens_per_pass=1))
    # the prefixes are held until the end; of six completions two have a single token and run nothing
    assert alive_at_start == [0, 1, 1, 1, 1]
    gc.collect()
    assert not any(reference() is not None for reference in kept)


def test_a_chunk_that_is_trained_needs_its_phases(tiny_checkpoint: Path) -> None:
    """All chunks in one graph would hold the activations that chunks are there to avoid."""
    policy, two = new_policy(tiny_checkpoint), prompts(tiny_checkpoint)
    with pytest.raises(AssertionError, match=r"is trained by models\.phases"):
        policy(Score(packed=pack(two, COMPLETIONS, tokens_per_pass=1)))


# ---- keys on the modules


class Seen(NamedTuple):
    request: str
    recomputed: bool
    has_keys: bool


@contextmanager
def watching(policy: Policy) -> Iterator[list[Seen]]:
    """What each attention module holds while it computes, and for which request."""
    seen: list[Seen] = []
    current = [""]

    def begin(module: Any, arguments: Any) -> None:
        current[0] = type(arguments[0]).__name__

    def end(module: Any, arguments: Any, output: Any) -> None:
        current[0] = ""

    def look(module: Any, arguments: Any, named: Any) -> None:
        seen.append(Seen(current[0], not current[0], hasattr(module, "kept_keys")))

    hooks = [policy.register_forward_pre_hook(begin), policy.register_forward_hook(end)]
    for module in policy.family.attentions(policy.model):
        hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", list(PROMPTS))
def test_keys_stand_on_the_modules_during_a_prefill_and_never_else(
    family: str, checkpointing: bool, request: pytest.FixtureRequest
) -> None:
    """Nor when gradient checkpointing computes the layers of a prefill once more, in the backward pass."""
    checkpoint: Path = request.getfixturevalue(family)
    policy = new_policy(checkpoint, checkpointing=checkpointing)
    packed = pack(PROMPTS[family](checkpoint), COMPLETIONS, tokens_per_pass=1)
    attentions = policy.family.attentions(policy.model)
    before = [set(vars(module)) for module in attentions]
    with watching(policy) as seen:
        train(policy, packed)
    assert {one.request for one in seen} == {"Prefill", "Score"} | (
        {""} if checkpointing else set()
    )
    assert any(one.recomputed for one in seen) == checkpointing
    for one in seen:
        assert one.has_keys == (one.request == "Prefill"), one
    assert [set(vars(module)) for module in attentions] == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_the_keys_lives_on(tiny_checkpoint: Path, checkpointing: bool) -> None:
    policy, two = new_policy(tiny_checkpoint, checkpointing=checkpointing), prompts(tiny_checkpoint)
    references: list[weakref.ref[Tensor]] = []

    def remember(module: Any, arguments: Any, output: Any) -> None:
        if isinstance(output, Prefix):
            references.extend(weakref.ref(tensor) for tensor in output.tensors)

    policy.register_forward_hook(remember)
    train(policy, pack(two, COMPLETIONS, tokens_per_pass=1))
    gc.collect()
    assert len(references) == 1 + 2 * 2
    assert all(reference() is None for reference in references)


def test_a_prefill_that_breaks_leaves_nothing_behind(tiny_checkpoint: Path) -> None:
    policy, two = new_policy(tiny_checkpoint), prompts(tiny_checkpoint)
    attentions = policy.family.attentions(policy.model)

    def break_off(module: Any, arguments: Any, output: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    hook = policy.model.model.language_model.layers[1].register_forward_hook(break_off)
    with pytest.raises(torch.OutOfMemoryError):
        policy(Prefill(packed=pack(two, COMPLETIONS)))
    hook.remove()
    assert not any(hasattr(module, "kept_keys") for module in attentions)
