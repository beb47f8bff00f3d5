"""The native engine: sampling law, seeds, suppressed tokens, end tokens, one prefill per prompt, versions, counters."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scene_example
from oracle import naive_logp
from scipy import stats
from test_policy import COMPLETIONS, PROMPTS, encoder, prompts
from torch.utils._python_dispatch import TorchDispatchMode

from gpg_vl.model import Model
from gpg_vl.models.layout import pack
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.requests import CastHead, CastMatrices, Decode, Predict, Prefill
from gpg_vl.registry import UnknownNameError
from gpg_vl.rollout import engines
from gpg_vl.rollout.decode import decode_with
from gpg_vl.rollout.engine import Engine, EngineOptions, EngineSetup, RolloutRequest
from gpg_vl.rollout.sampling import Sampling, choose, truncate, uniforms
from gpg_vl.rollout.slots import Slots
from gpg_vl.types import Completion, Example, Prompt

SAMPLING = Sampling(group_size=4, temperature=1.0, max_new_tokens=10, seed=7)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    return Model.load(tiny_checkpoint, device="cpu").policy


@pytest.fixture(params=["copied", "shared"])
def keys_of_prompts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The keys of a prompt in each slot or once for its answers, however short the prompt is."""
    monkeypatch.setattr(
        "gpg_vl.models.key_sharing.WORTH", 0 if request.param == "shared" else math.inf
    )
    return str(request.param)


def engine(
    policy: Policy, checkpoint: Path, prompts_per_batch: int = 8, slots: int = 128
) -> Engine:
    return engines.get("native")(
        EngineSetup(
            path=str(checkpoint),
            policy=lambda: policy,
            processing=load_processing(str(checkpoint)),
            options=EngineOptions(prompts_per_batch=prompts_per_batch, slots=slots),
        )
    )


def answer(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, draws: Sequence[int]
) -> list[tuple[Completion, ...]]:
    requests = [RolloutRequest(prompt=p, draw=d) for p, d in zip(prompts, draws, strict=True)]
    return engine.generate(requests, sampling)


class Constant(torch.nn.Module):
    """In the place of the last norm: the same hidden state everywhere, so that the head alone decides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)


def preferring(checkpoint: Path, tokens: list[int], *, by: float) -> Policy:
    """A policy whose logits are `by` for these tokens and 0 for all others."""
    processing = load_processing(str(checkpoint))
    model = load_model(str(checkpoint))
    head = torch.nn.Linear(64, 384, bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[tokens] = by / 64
    model.set_output_embeddings(head)
    model.model.language_model.norm = Constant()
    return Policy(model, processing.family, processing.tokens)


def some_prompts(checkpoint: Path) -> list:
    encode = encoder(checkpoint).encode
    return [
        *prompts(checkpoint),
        encode(Example(id="t", prompt="How many balls?", answer="2")),
        encode(scene_example(6)),
    ]


@pytest.mark.parametrize("family", list(PROMPTS))
@pytest.mark.usefixtures("keys_of_prompts")
def test_recorded_log_probs_are_those_of_the_stock_model(
    family: str, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    policy = Model.load(checkpoint, device="cpu").policy
    tokens = load_processing(str(checkpoint)).tokens
    two = PROMPTS[family](checkpoint)
    for prompt, group in zip(
        two, answer(engine(policy, checkpoint), two, SAMPLING, [0, 1]), strict=True
    ):
        for completion in group:
            expected = naive_logp(policy.model, tokens, prompt, completion.token_ids)
            assert torch.allclose(
                torch.tensor(completion.logprobs), expected.detach(), atol=1e-4, rtol=0
            )


@pytest.mark.usefixtures("keys_of_prompts")
def test_the_same_answers_whatever_the_cut_the_slots_and_the_order(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    four = some_prompts(tiny_checkpoint)
    whole = answer(engine(policy, tiny_checkpoint, 8), four, SAMPLING, [10, 11, 12, 13])
    assert len({len(c.token_ids) for g in whole for c in g}) > 1, (
        "slots must become free at different times"
    )
    for cut, slots in ((1, 128), (2, 1), (3, 3), (4, 5), (1, 15)):
        again = answer(
            engine(policy, tiny_checkpoint, cut, slots), four, SAMPLING, [10, 11, 12, 13]
        )
        for a, b in zip([c for g in again for c in g], [c for g in whole for c in g], strict=True):
            assert np.allclose(a.logprobs, b.logprobs, atol=1e-5, rtol=0)
        assert [[c.token_ids for c in g] for g in again] == [
            [c.token_ids for c in g] for g in whole
        ]
    backwards = answer(engine(policy, tiny_checkpoint, 3), four[::-1], SAMPLING, [13, 12, 11, 10])[
        ::-1
    ]
    assert [[c.token_ids for c in g] for g in backwards] == [
        [c.token_ids for c in g] for g in whole
    ]


def test_the_same_call_repeats_itself_bit_for_bit(policy: Policy, tiny_checkpoint: Path) -> None:
    four = some_prompts(tiny_checkpoint)
    runs = [
        answer(engine(policy, tiny_checkpoint, 2), four, SAMPLING, [0, 1, 2, 3]) for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_answers_are_the_same_whether_the_keys_of_their_prompt_are_copied_or_shared(
    policy: Policy, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few slots, so that groups share them with the next ones; log-probs differ by rounding."""
    four = some_prompts(tiny_checkpoint)
    given: list[list[Completion]] = []
    kinds: set[str] = set()

    def look(module: Any, arguments: Any) -> None:
        if isinstance(arguments[0], Decode):
            kinds.add(type(arguments[0].attention).__name__)

    hook = policy.register_forward_pre_hook(look)
    for worth in (math.inf, 0):
        monkeypatch.setattr("gpg_vl.models.key_sharing.WORTH", worth)
        run = engine(policy, tiny_checkpoint, prompts_per_batch=3, slots=6)
        groups = answer(run, four, SAMPLING, [10, 11, 12, 13])
        given.append([completion for group in groups for completion in group])
    hook.remove()
    assert kinds == {"Slots", "SharedSlots"}
    for a, b in zip(*given, strict=True):
        assert a.token_ids == b.token_ids
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-5, rtol=0)


def test_members_draws_and_seeds_differ(policy: Policy, tiny_checkpoint: Path) -> None:
    """Guards against near-greedy sampling out of the checkpoint's own generation config, which says top_k 1."""
    one = prompts(tiny_checkpoint)[:1]
    run = engine(policy, tiny_checkpoint)
    first = [c.token_ids for c in answer(run, one, SAMPLING, [0])[0]]
    assert len(set(first)) == 4
    assert [c.token_ids for c in answer(run, one, SAMPLING, [1])[0]] != first
    assert [c.token_ids for c in answer(run, one, replace(SAMPLING, seed=8), [0])[0]] != first


def test_vision_tokens_are_never_sampled(tiny_checkpoint: Path) -> None:
    """Also if the model likes nothing better."""
    processing = load_processing(str(tiny_checkpoint))
    assert len(processing.tokens.never_sampled) == 5
    assert processing.tokens.image in processing.tokens.never_sampled
    policy = preferring(tiny_checkpoint, list(processing.tokens.never_sampled), by=100.0)
    for temperature in (0.0, 1.0):
        out = answer(
            engine(policy, tiny_checkpoint),
            prompts(tiny_checkpoint),
            replace(SAMPLING, temperature=temperature),
            [0, 1],
        )
        sampled = {t for group in out for c in group for t in c.token_ids}
        assert sampled
        assert not sampled & set(processing.tokens.never_sampled)


def test_every_end_token_ends_an_answer(tiny_checkpoint: Path) -> None:
    processing = load_processing(str(tiny_checkpoint))
    assert len(processing.tokens.ends) == 2
    for end in processing.tokens.ends:
        policy = preferring(tiny_checkpoint, [end], by=50.0)
        (group,) = answer(
            engine(policy, tiny_checkpoint), prompts(tiny_checkpoint)[:1], SAMPLING, [0]
        )
        assert {(c.token_ids, c.finish_reason, c.text) for c in group} == {((end,), "stop", "")}


def test_an_answer_cut_off_by_the_limit_says_so(policy: Policy, tiny_checkpoint: Path) -> None:
    (group,) = answer(
        engine(policy, tiny_checkpoint),
        prompts(tiny_checkpoint)[:1],
        replace(SAMPLING, max_new_tokens=2),
        [0],
    )
    ends = load_processing(str(tiny_checkpoint)).tokens.ends
    for completion in group:
        assert completion.finish_reason == (
            "stop" if completion.token_ids[-1] in ends else "length"
        )
    assert any(c.finish_reason == "length" for c in group)


def test_image_and_prompt_are_computed_once_per_prompt(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """Counted by hooks on the modules, and told by the engine."""
    patches, prefilled = [], []
    hooks = [
        policy.model.model.visual.register_forward_pre_hook(lambda m, a: patches.append(len(a[0]))),
        policy.model.model.language_model.register_forward_pre_hook(
            lambda m, a, k: prefilled.append(k["inputs_embeds"].shape[:2]), with_kwargs=True
        ),
    ]
    two = prompts(tiny_checkpoint)
    run = engine(policy, tiny_checkpoint)
    answer(run, two, SAMPLING, [0, 1])
    for hook in hooks:
        hook.remove()
    assert (
        sum(patches) == sum(len(p.pixel_values_N) for p in two) == run.counters()["vision_patches"]
    )
    assert tuple(prefilled[0]) == (1, sum(p.length for p in two))
    assert all(shape[1] == 1 for shape in prefilled[1:]), (
        "after the prefill only single tokens are decoded"
    )
    assert run.counters()["prefilled_tokens"] == sum(p.length for p in two)
    assert run.counters()["slot_steps"] == sum(shape[0] for shape in prefilled[1:])
    assert run.counters()["decode_calls"] == len(prefilled) - 1


def test_an_image_that_is_asked_about_twice_is_computed_once_per_call(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """Also in another batch of prompts; and again in the next call, when the weights may be others."""
    encode = encoder(tiny_checkpoint).encode
    picture = scene_example(1)
    twice = [
        encode(replace(picture, id=q, prompt=f"<image>{q}"))
        for q in ("How many?", "Which is nearer?")
    ]
    run = engine(policy, tiny_checkpoint, prompts_per_batch=1)
    first = answer(run, twice, SAMPLING, [0, 1])
    assert run.counters()["vision_patches"] == len(twice[0].pixel_values_N)
    assert answer(run, twice, SAMPLING, [0, 1]) == first
    assert run.counters()["vision_patches"] == 2 * len(twice[0].pixel_values_N)


@pytest.mark.usefixtures("keys_of_prompts")
def test_a_finished_slot_takes_the_next_answer(policy: Policy, tiny_checkpoint: Path) -> None:
    """16 answers in 3 slots: as many calls as a slot at most needs, not as the longest answer of each three in turn."""
    four = some_prompts(tiny_checkpoint)
    run = engine(policy, tiny_checkpoint, slots=3)
    lengths = [
        len(c.token_ids) - 1 for g in answer(run, four, SAMPLING, [10, 11, 12, 13]) for c in g
    ]
    busy, calls = [0, 0, 0], 0
    waiting = list(lengths)
    while True:  # the schedule by hand: an answer of n tokens occupies its slot for n - 1 calls
        for s in range(3):
            while not busy[s] and waiting:
                busy[s] = waiting.pop(0)
        if not any(busy):
            break
        busy, calls = [max(0, b - 1) for b in busy], calls + 1
    in_turns = sum(max(lengths[i : i + 3]) for i in range(0, len(lengths), 3))
    assert run.counters()["decode_calls"] == calls < in_turns
    assert run.counters()["decoded_tokens"] == sum(lengths) + len(lengths)


@pytest.mark.usefixtures("keys_of_prompts")
def test_slots_that_nobody_waits_for_are_given_up(tiny_checkpoint: Path) -> None:
    """Answers end with about one chance in ten per token: half of the 16 slots are empty soon."""
    ends = load_processing(str(tiny_checkpoint)).tokens.ends
    run = engine(preferring(tiny_checkpoint, list(ends), by=3.0), tiny_checkpoint, slots=16)
    sampling = replace(SAMPLING, max_new_tokens=40)
    groups = answer(run, some_prompts(tiny_checkpoint), sampling, [10, 11, 12, 13])
    lengths = [len(c.token_ids) for g in groups for c in g]
    assert max(lengths) > 10
    assert (
        sum(n - 1 for n in lengths) <= run.counters()["slot_steps"] < 0.6 * 16 * (max(lengths) - 1)
    )


def test_matrices_are_cast_for_the_call_and_back_in_their_place_afterwards(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """The linear layers of the text tower, and of these all: what decoding on CUDA computes with."""
    layer = policy.model.model.language_model.layers[0].mlp.up_proj
    with torch.no_grad():
        matrices = policy(CastMatrices(dtype=torch.bfloat16))
    names = {name.rpartition(".")[0].rpartition(".")[2] for name in matrices}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    parameters = dict(policy.named_parameters())
    for name, matrix in matrices.items():
        assert ".language_model." in name
        assert torch.equal(matrix, parameters[name].to(torch.bfloat16))

    seen: list[torch.dtype] = []
    hook = layer.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
    for given in ({}, matrices, {}):
        decode_one(policy, tiny_checkpoint, given)
    hook.remove()
    assert seen == [torch.float32, torch.float32, torch.float32, torch.bfloat16] + (
        [torch.float32] * 2
    ), "a prefill and a call of each"
    assert layer.weight is parameters["model.model.language_model.layers.0.mlp.up_proj.weight"]


def decode_one(
    policy: Policy, checkpoint: Path, matrices: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of two sequences after one more token, under autocast, and the slots they are in."""
    one = prompts(checkpoint)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prefix = policy(Prefill(packed=pack([one], [[]])))
        keys = torch.stack([torch.cat(pair) for pair in prefix.keys])
        slots = Slots(keys, slots=2, width=one.length + 3)
        slots.admit(keys, [0, 1])
        position = torch.full((2,), one.next_position)
        states = decode_with(matrices, policy, slots, torch.tensor([5, 9]), position)
    return states, slots.cache


def test_decoding_with_matrices_cast_once_is_decoding_under_autocast(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """A whole call, bit for bit. The embedding shares the head's weights and must not be rounded with them."""
    assert policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight
    with torch.no_grad():
        matrices = policy(CastMatrices(dtype=torch.bfloat16))
    expected, ours = (decode_one(policy, tiny_checkpoint, given) for given in ({}, matrices))
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


class CastsOf(TorchDispatchMode):
    """Counts the casts of a weight, or of a view of it, to another dtype."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.place, self.number = weight.data_ptr(), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        named = kwargs or {}
        if func is torch.ops.aten._to_copy.default and "dtype" in named:
            self.number += args[0].data_ptr() == self.place and args[0].dim() == 2
        return func(*args, **named)


@pytest.mark.parametrize("by_copy", [False, True], ids=["itself", "a copy"])
def test_the_head_is_cast_once_per_call_whoever_answers(
    by_copy: bool, tiny_checkpoint: Path
) -> None:
    model = Model.load(tiny_checkpoint, dtype="bfloat16", device="cpu")
    policy = model.copy() if by_copy else model.policy
    run = replace(model, policy=policy).engine()
    for _ in range(2):
        with CastsOf(policy.model.get_output_embeddings().weight) as casts:
            (group, _) = answer(run, prompts(tiny_checkpoint), SAMPLING, [0, 1])
        assert max(len(completion.token_ids) for completion in group) > 2, "several tokens"
        assert casts.number == 1


def test_logits_of_the_cast_head_are_those_of_autocast(
    policy: Policy, tiny_checkpoint: Path
) -> None:
    """Bit for bit, for one row and for many; without autocast it is the weight itself."""
    weight = policy.model.get_output_embeddings().weight
    assert policy(CastHead()).data_ptr() == weight.data_ptr()
    for rows in (1, 3, 130):
        hidden = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = (hidden @ weight.T).float()
            request = Predict(hidden_B_H=hidden, head_V_H=policy(CastHead()), temperature=1.0)
            ours = policy(request)
        reachable = ~policy.never_sampled_V
        assert torch.equal(ours[:, reachable], expected[:, reachable])


# ---- what an engine promises


@pytest.mark.parametrize(
    "name,told",
    [
        (
            "nativ",
            "There is no rollout engine called 'nativ'. Did you mean 'native'? Known: native, vllm, vllm_server.",
        ),
        ("xy", "There is no rollout engine called 'xy'. Known: native, vllm, vllm_server."),
    ],
)
def test_an_unknown_engine_is_told_the_known_ones(
    tiny_checkpoint: Path, name: str, told: str
) -> None:
    with pytest.raises(UnknownNameError, match=told.replace("?", r"\?")):
        Model.load(tiny_checkpoint, device="cpu").engine(name)


def test_answers_have_the_version_of_the_last_sync(policy: Policy, tiny_checkpoint: Path) -> None:
    """0 before the first; the native engine copies nothing, and asks for no weights."""
    run, one = engine(policy, tiny_checkpoint), prompts(tiny_checkpoint)[:1]
    assert {c.version for c in answer(run, one, SAMPLING, [0])[0]} == {0}

    def weights() -> Any:
        raise AssertionError("the engine reads the weights that are trained")

    for version in (3, 4):
        report = run.sync(weights, version)
        assert (report.version, report.tensors, report.bytes) == (version, 0, 0)
        assert {c.version for c in answer(run, one, SAMPLING, [0])[0]} == {version}


def test_a_sync_answers_with_the_weights_of_now(tiny_checkpoint: Path) -> None:
    policy, one = Model.load(tiny_checkpoint, device="cpu").policy, prompts(tiny_checkpoint)[:1]
    run = engine(policy, tiny_checkpoint)
    before = answer(run, one, SAMPLING, [0])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    run.sync(lambda: iter(()), 1)
    (after,) = answer(run, one, SAMPLING, [0])
    assert [c.token_ids for c in after] != [c.token_ids for c in before[0]]
    tokens = load_processing(str(tiny_checkpoint)).tokens
    for completion in after:
        expected = naive_logp(policy.model, tokens, one[0], completion.token_ids).detach()
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_counters_count_on_from_call_to_call(policy: Policy, tiny_checkpoint: Path) -> None:
    """By hand from the answers: the first token of each comes from its prompt, every other one from a call."""
    run, two = engine(policy, tiny_checkpoint), prompts(tiny_checkpoint)
    assert set(run.counters().values()) == {0}
    assert answer(run, [], SAMPLING, []) == []
    assert set(run.counters().values()) == {0}
    tokens = 0
    for times in (1, 2):
        said = [c for group in answer(run, two, SAMPLING, [0, 1]) for c in group]
        tokens += sum(len(c.token_ids) for c in said)
        now = run.counters()
        assert now["decoded_tokens"] == tokens
        assert now["prefilled_tokens"] == times * sum(p.length for p in two)
        assert now["vision_patches"] == times * sum(len(p.pixel_values_N) for p in two)
        assert now["decode_calls"] == times * (max(len(c.token_ids) for c in said) - 1)
        assert now["prefill_seconds"] > 0
        assert now["decode_seconds"] > 0


def test_every_answer_that_ends_is_reported(policy: Policy, tiny_checkpoint: Path) -> None:
    told: list[int] = []
    requests = [RolloutRequest(prompt=p, draw=0) for p in prompts(tiny_checkpoint)]
    engine(policy, tiny_checkpoint, slots=3).generate(requests, SAMPLING, told.append)
    assert sum(told) == 2 * SAMPLING.group_size
    assert min(told) > 0


@pytest.mark.parametrize("slots", [128, 3])
def test_a_greedy_answer_comes_beside_the_group(
    policy: Policy, tiny_checkpoint: Path, slots: int
) -> None:
    """The group is drawn as without it, it is that of temperature 0, and all of them share one computation of the prompt."""
    four = some_prompts(tiny_checkpoint)
    alone = replace(SAMPLING, temperature=0.0, group_size=1)
    for warm in (1.0, 0.7):
        drawn = replace(SAMPLING, temperature=warm)
        run = engine(policy, tiny_checkpoint, slots=slots)
        told: list[int] = []
        requests = [RolloutRequest(prompt=p, draw=n) for n, p in enumerate(four)]
        both = run.generate(requests, replace(drawn, with_greedy=True), told.append)

        plain = answer(engine(policy, tiny_checkpoint, slots=slots), four, drawn, range(4))
        likeliest = answer(engine(policy, tiny_checkpoint), four, alone, range(4))
        for (*group, last), sampled, (greedy,) in zip(both, plain, likeliest, strict=True):
            assert [c.token_ids for c in group] == [c.token_ids for c in sampled]
            assert last.token_ids == greedy.token_ids
            assert last.text == greedy.text
            assert last.finish_reason == greedy.finish_reason

        counted = run.counters()
        assert counted["prefilled_tokens"] == sum(p.length for p in four)
        assert counted["decoded_tokens"] == sum(len(c.token_ids) for g in both for c in g)
        assert sum(told) == 4 * (SAMPLING.group_size + 1)


def test_a_step_opens_and_closes_the_store_of_prefixes(tiny_checkpoint: Path) -> None:
    """Outside of a step, as in an evaluation, nothing is kept; in one, the same answers, computed prompt by prompt."""
    model, two = Model.load(tiny_checkpoint, device="cpu"), prompts(tiny_checkpoint)
    store = PrefixStore()
    run = model.engine(options=EngineOptions(prompts_per_batch=1), prefixes=store)
    packed = pack(two, COMPLETIONS)
    plain = answer(run, two, SAMPLING, [0, 1])
    assert not store.is_open
    assert store.take(packed) is None
    with run.step():
        assert store.is_open
        assert answer(run, two, SAMPLING, [0, 1]) == plain
        kept = store.take(packed)
        assert kept is not None
        assert all(tensor.requires_grad for tensor in kept.tensors)
        answer(run, two, SAMPLING, [0, 1])
    assert not store.is_open
    with run.step():
        assert store.take(packed) is None, "what was kept is of the weights of the step before"
    with model.engine().step():
        assert not store.is_open


def test_answers_are_decoded_without_the_graph_of_their_prompts(tiny_checkpoint: Path) -> None:
    """Prompts that are kept have one; what is sampled from them must not hold it."""
    model, two = Model.load(tiny_checkpoint, device="cpu"), prompts(tiny_checkpoint)
    run = model.engine(prefixes=PrefixStore())
    seen: dict[str, list[bool]] = {}

    def look(module: Any, arguments: Any, output: Any) -> None:
        (request,) = arguments
        match request:
            case Decode(attention=Slots(cache=tensor)) | Predict(hidden_B_H=tensor):
                graph = tensor.requires_grad or output.requires_grad
                seen.setdefault(type(request).__name__, []).append(graph)

    model.policy.register_forward_hook(look)
    with run.step():
        answer(run, two, SAMPLING, [0, 1])
    assert seen.keys() == {"Decode", "Predict"}
    assert not any(graph for graphs in seen.values() for graph in graphs)


def test_answering_leaves_the_policy_in_its_mode(policy: Policy, tiny_checkpoint: Path) -> None:
    for training in (True, False):
        policy.train(training)
        answer(engine(policy, tiny_checkpoint), prompts(tiny_checkpoint)[:1], SAMPLING, [0])
        assert policy.training == training


# ---- the law


def test_greedy_is_the_argmax_of_the_stock_model(policy: Policy, tiny_checkpoint: Path) -> None:
    prompt = prompts(tiny_checkpoint)[0]
    (group,) = answer(
        engine(policy, tiny_checkpoint),
        [prompt],
        replace(SAMPLING, group_size=1, temperature=0.0),
        [0],
    )
    tokens = load_processing(str(tiny_checkpoint)).tokens
    so_far: tuple[int, ...] = ()
    for token in group[0].token_ids:
        options = [
            float(naive_logp(policy.model, tokens, prompt, (*so_far, t))[-1].detach())
            for t in (token, *range(0, 380, 7))
            if t not in tokens.never_sampled
        ]
        assert max(options) == options[0]
        so_far += (token,)


def test_choose_follows_the_distribution_and_never_takes_the_impossible() -> None:
    p = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    u = torch.from_numpy(np.random.default_rng(0).random(20000))
    drawn = choose(p.log().expand(20000, 6), u)
    counts = torch.bincount(drawn, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert (
        stats.chisquare(counts[[1, 3, 4]].numpy(), 20000 * np.array([0.2, 0.5, 0.3])).pvalue > 1e-3
    )
    assert choose(p.log()[None], torch.tensor([0.0], dtype=torch.float64)).item() == 1
    assert choose(p.log()[None], torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 4


@pytest.mark.parametrize("top_k,top_p", [(3, 1.0), (0, 0.6), (4, 0.5), (0, 1.0), (1, 1.0)])
def test_truncation_keeps_what_the_warpers_of_transformers_keep(top_k: int, top_p: float) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logp = torch.randn(16, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = TopKLogitsWarper(top_k)(None, logp) if top_k else logp
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(truncate(logp, top_k=top_k, top_p=top_p).isneginf(), expected.isneginf())


def test_uniforms_are_keyed_by_seed_draw_and_member() -> None:
    base = uniforms(SAMPLING, 3, 1)
    assert base.shape == (10,)
    assert ((base >= 0) & (base < 1)).all()
    assert np.array_equal(base, uniforms(SAMPLING, 3, 1))
    others = [
        uniforms(SAMPLING, 3, 2),
        uniforms(SAMPLING, 4, 1),
        uniforms(replace(SAMPLING, seed=8), 3, 1),
    ]
    assert not any(np.array_equal(base, other) for other in others)
    longer = uniforms(replace(SAMPLING, max_new_tokens=20), 3, 1)
    assert np.array_equal(longer[:10], base), (
        "a longer limit must not change the start of an answer"
    )
