"""From groups to micro-batches, without a model: the same gradient for every cut, and for every deal to processes.

The policy here is a table of logits: log pi of a token given the token that predicts it. The rows say which token that
is, so a micro-batch that is laid out wrongly changes the result.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts, age_factor
from gpg_vl.algorithms.algorithm import Algorithm, Credit
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.option_types import Age, Aggregation, FNorm
from gpg_vl.training.micro_batch import (
    Layout,
    MicroBatch,
    count_groups,
    make_idle_micro_batch,
    make_micro_batches,
    make_step_batch,
)
from gpg_vl.types import Completion, Example, Group, Prompt

VOCABULARY = 11
LIMIT = 9
REWARDS = [
    (1.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (0.2, 0.7, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, 1.0, 1.0),
    (1.0, 0.0, 1.2),
    (2.9, 2.9, 2.9),
    (0.0, 0.0, 1.0),
]
LENGTHS = [(2, 5, 1), (4, 3, 7), (6, 1, 2), (1, 1, 9), (3, 3, 4), (9, 1, 1), (2, 2, 2), (1, 8, 5)]
DEALS = {
    "1x8": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "2x4": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "8x1": [[i] for i in range(8)],
    "one process without signal": [[0, 2, 4, 5, 7], [1, 3, 6]],
}
CUTS = (1, 30, 60, 10**6)
Switches = tuple[FNorm, Age, Aggregation]
TOKEN: Switches = ("one", "inverse_valid_fraction", "token")
SWITCHES: list[Switches] = [
    (f_norm, age, aggregation)
    for f_norm in get_args(FNorm)
    for age in get_args(Age)
    for aggregation in get_args(Aggregation)
    if age != "token" or aggregation == "token"
]


def gpg_of(switches: Switches) -> Algorithm:
    f_norm, age, aggregation = switches
    return gpg(f_norm=f_norm, age=age, aggregation=aggregation)


def make_prompt(number: int) -> Prompt:
    """Three to six tokens; every third one has a picture of four patches, which is one image token."""
    length = 3 + number % 4
    ids = (torch.arange(length) * 3 + number) % (VOCABULARY - 1) + 1
    pictured = number % 3 == 0
    return Prompt(
        example_id=str(number),
        text="",
        input_ids_T=ids,
        positions_3_T=torch.arange(length).expand(3, -1),
        next_position=length,
        image_mask_T=torch.arange(length) == (1 if pictured else -1),
        pixel_values_N=torch.full((4, 2), float(number)) if pictured else None,
        grid_thw_I_3=torch.tensor([[1, 2, 2]]) if pictured else None,
        image_keys=(f"picture {number}",) if pictured else (),
    )


def make_group(number: int) -> Group:
    completions = []
    for member, length in enumerate(LENGTHS[number]):
        ids = tuple(1 + (7 * number + 3 * member + 5 * t) % (VOCABULARY - 1) for t in range(length))
        logps = tuple(
            -float(100 * number + 10 * member + t) for t in range(length)
        )  # a name for each token
        completions.append(Completion(token_ids=ids, logprobs=logps, text="", finish_reason="stop"))
    return Group(
        example=Example(id=str(number), prompt="", answer=""),
        prompt=make_prompt(number),
        completions=tuple(completions),
        rewards=REWARDS[number],
        draw=number,
    )


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return [make_group(number) for number in range(8)]


def add(parts: Sequence[StepCounts]) -> StepCounts:
    return StepCounts(
        **{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(StepCounts)}
    )


def deviation(groups: Sequence[Group]) -> float:
    return float(torch.tensor([r for g in groups for r in g.rewards], dtype=torch.float64).std())


def credit_of(
    groups: Sequence[Group],
    algorithm: Algorithm,
    step: Sequence[Group],
    old_logp_K: Tensor | None = None,
) -> Credit:
    batch = make_step_batch(
        groups,
        counts=add([count_groups([g]) for g in step]),
        reward_std=deviation(step),
        max_new_tokens=LIMIT,
        old_logp_K=old_logp_K,
    )
    return algorithm.credit(batch)


def cut(
    groups: Sequence[Group],
    *,
    switches: Switches = TOKEN,
    tokens_per_pass: int = 10**6,
    shared_prefix: bool = True,
    step: Sequence[Group] | None = None,
) -> list[MicroBatch]:
    """This process's micro-batches; `step` are the groups of all processes."""
    return make_micro_batches(
        groups,
        credit_of(groups, gpg_of(switches), groups if step is None else step),
        Layout(tokens_per_pass=tokens_per_pass, shared_prefix=shared_prefix),
    )


def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator
    ).requires_grad_()


def logps_of(micro_batch: MicroBatch, logits: Tensor) -> Tensor:
    """log pi of its completion tokens, read off the table."""
    logps = []
    for chunk in micro_batch.packed.chunks:
        sources = torch.cat([micro_batch.packed.ids_S, chunk.ids_U])[chunk.source_K]
        rows = torch.log_softmax(logits[sources], dim=1)
        logps.append(rows[torch.arange(len(sources)), chunk.targets_K])
    return torch.cat(logps)


def gradient_of(micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Each micro-batch backward on its own, gradients added up, as an optimizer step does."""
    logits = table()
    for one in micro_batches:
        logp_K = logps_of(one, logits)
        assert len(logp_K) == len(one.inputs.weight_K) == len(one.index_K)
        inputs = one.inputs._replace(weight_K=one.inputs.weight_K.double())
        gpg().token_loss(logp_K, inputs).sum().backward()
    return torch.zeros_like(logits) if logits.grad is None else logits.grad


def formula(groups: Sequence[Group], switches: Switches) -> Tensor:
    """The gradient of the whole step from the specification's formulas, in plain loops over every completion."""
    f_norm, age_name, aggregation = switches
    logits = table()
    deviation_of_step = deviation(groups)
    flat_lengths = [[len(c.token_ids) for c in g.completions] for g in groups]
    tokens, number = sum(map(sum, flat_lengths)), sum(map(len, flat_lengths))
    valid = [len(set(g.rewards)) > 1 for g in groups]
    valid_tokens = sum(sum(lengths) for lengths, ok in zip(flat_lengths, valid, strict=True) if ok)
    age = {
        "off": 1.0,
        "inverse_valid_fraction": len(groups) / sum(valid),
        "valid_fraction": sum(valid) / len(groups),
        "token": tokens / valid_tokens,
    }[age_name]
    loss = torch.zeros((), dtype=torch.float64)
    for group, lengths in zip(groups, flat_lengths, strict=True):
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        divisor = {
            "one": 1.0,
            "group_std": float(rewards.std()) + 1e-4,
            "batch_std": deviation_of_step + 1e-4,
        }[f_norm]
        for completion, reward in zip(group.completions, rewards, strict=True):
            ids = torch.tensor([int(group.prompt.input_ids_T[-1]), *completion.token_ids])
            logp = torch.log_softmax(logits[ids[:-1]], dim=1)[
                torch.arange(len(ids) - 1), ids[1:]
            ].sum()
            mean = {
                "token": 1 / tokens,
                "sequence": 1 / len(completion.token_ids) / number,
                "constant": 1 / (number * LIMIT),
                "group": 1 / sum(lengths) / len(groups),
            }[aggregation]
            if len(set(group.rewards)) > 1:
                loss = loss - age * mean * (reward - rewards.mean()) / divisor * logp
    loss.backward()
    assert logits.grad is not None
    return logits.grad


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("switches", SWITCHES, ids="-".join)
def test_the_gradient_is_that_of_the_formula(groups: list[Group], switches: Switches) -> None:
    """Weights travel as float32, hence the tolerance."""
    ours = gradient_of(cut(groups, switches=switches))
    assert relative(ours, formula(groups, switches)) < 1e-6


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("tokens_per_pass", CUTS)
@pytest.mark.parametrize("deal", DEALS.values(), ids=DEALS)
def test_the_gradient_is_the_same_for_every_cut_and_every_deal(
    groups: list[Group], deal: list[list[int]], tokens_per_pass: int, shared_prefix: bool
) -> None:
    """Bit-equal weights: only the order of the sum differs."""
    for switches in (
        TOKEN,
        ("group_std", "inverse_valid_fraction", "sequence"),
        ("batch_std", "token", "token"),
    ):
        dealt = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
        for process in deal:
            dealt += gradient_of(
                cut(
                    [groups[i] for i in process],
                    switches=switches,
                    step=groups,
                    tokens_per_pass=tokens_per_pass,
                    shared_prefix=shared_prefix,
                )
            )
        whole = gradient_of(cut(groups, switches=switches))
        assert whole.norm() > 1e-2
        assert relative(dealt, whole) < 1e-12


def test_counting_per_process_would_be_wrong(groups: list[Group]) -> None:
    """That the test above can fail: with each process's own counts the step is another one."""
    alone = sum(gradient_of(cut([groups[i] for i in process])) for process in DEALS["2x4"])
    assert relative(alone, gradient_of(cut(groups))) > 0.1


@pytest.mark.parametrize("turned", [False, True], ids=["longest last", "longest first"])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_a_micro_batch_holds_as_much_as_it_may(
    groups: list[Group], shared_prefix: bool, turned: bool
) -> None:
    """None is above the limit unless it is one group, and the first group of the next one would not have fitted."""
    by_length = sorted((g for g in groups if g.is_valid), key=row_length, reverse=turned)
    trained = [
        (g, c)
        for g in by_length
        for c, r in zip(g.completions, g.rewards, strict=True)
        if r != mean(g.rewards)
    ]
    for limit in range(1, 220, 6):
        made = cut(by_length, tokens_per_pass=limit, shared_prefix=shared_prefix)
        assert sum(len(one.packed.counts) for one in made) == len(trained)
        for one, following in zip(made, [*made[1:], None], strict=True):
            alone = len(one.packed.prefix_lengths) == 1
            assert alone or one.packed.tokens <= limit
            assert (len(one.packed.chunks) > 1) <= (shared_prefix and one.packed.tokens > limit)
            if following is not None:
                first = following.packed.prefix_lengths[0]
                first += sum(
                    n
                    for chunk in following.packed.chunks
                    for n, p in zip(chunk.lengths, chunk.prefixes, strict=True)
                    if not p
                )
                assert one.packed.tokens + first > limit, (
                    "the first group of the next one would have fitted"
                )


def test_a_group_above_the_limit_is_cut_into_chunks_that_keep_it(groups: list[Group]) -> None:
    """The prompt stands there once; each chunk holds as many completions as fit beside it, at least one."""
    for limit in range(1, 60, 3):
        for one in cut([groups[0]], tokens_per_pass=limit):
            (prompt,) = one.packed.prefix_lengths
            held = [sum(chunk.lengths) for chunk in one.packed.chunks]
            assert all(
                prompt + n <= limit or len(chunk.lengths) == 1
                for n, chunk in zip(held, one.packed.chunks, strict=True)
            )
            firsts = [chunk.lengths[0] for chunk in one.packed.chunks[1:]]
            assert all(prompt + n + more > limit for n, more in zip(held, firsts, strict=False))


def test_completions_with_the_mean_reward_cost_nothing(groups: list[Group]) -> None:
    """Rewards 0, 1/2, 1: the middle one has advantage 0, is not run, and still counts in the denominator."""
    group = replace(groups[0], rewards=(0.0, 0.5, 1.0))
    (one,) = cut([group])
    lengths = [len(c.token_ids) for c in group.completions]
    assert one.packed.counts == (lengths[0], lengths[2])
    assert one.inputs.weight_K[0].item() == pytest.approx(-0.5 / sum(lengths))
    assert one.inputs.weight_K[-1].item() == pytest.approx(0.5 / sum(lengths))


def test_groups_with_the_same_images_share_a_micro_batch_and_the_image(groups: list[Group]) -> None:
    """Whatever stands between them, and also if they do not fit."""
    pictured = [g for g in groups if g.is_valid and g.prompt.image_keys]
    other = next(g for g in groups if g.is_valid and not g.prompt.image_keys)
    twin = replace(pictured[0], prompt=replace(pictured[0].prompt, example_id="twin"))
    for limit in (2 * sum(g.prompt.length for g in (pictured[0], twin)), 10**6):
        made = cut([pictured[0], other, twin], tokens_per_pass=limit)
        (holding,) = [one for one in made if one.packed.image_keys]
        assert holding.packed.image_keys == pictured[0].prompt.image_keys
        assert len(holding.packed.image_places) == 2
        assert holding.packed.patches == 4


def test_groups_without_signal_are_counted_and_cost_nothing(groups: list[Group]) -> None:
    made = cut(groups, tokens_per_pass=1)
    assert len(made) == 5
    assert all(torch.count_nonzero(one.inputs.weight_K) > 0 for one in made)
    assert cut([groups[1], groups[3]], step=groups) == []
    assert cut([], step=groups) == []
    assert cut([groups[1], groups[3], groups[6]]) == [], "a whole step without signal"


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("tokens_per_pass", CUTS)
def test_tokens_log_probs_and_pictures_stay_in_the_order_of_the_groups(
    groups: list[Group], tokens_per_pass: int, shared_prefix: bool
) -> None:
    made = cut(groups, tokens_per_pass=tokens_per_pass, shared_prefix=shared_prefix)
    trained = [
        (g, c)
        for g in groups
        if g.is_valid
        for c, r in zip(g.completions, g.rewards, strict=True)
        if r != mean(g.rewards)
    ]
    completions = [c for _, c in trained]
    assert torch.cat([one.sampled_logp_K for one in made]).tolist() == [
        p for c in completions for p in c.logprobs
    ]
    targets = [chunk.targets_K for one in made for chunk in one.packed.chunks]
    assert torch.cat(targets).tolist() == [t for c in completions for t in c.token_ids]
    for one in made:
        assert len(one.inputs.weight_K) == len(one.sampled_logp_K) == sum(one.packed.counts)
    rows = (
        [g.prompt for g, _ in trained]
        if not shared_prefix
        else list({g.draw: g.prompt for g, _ in trained}.values())
    )
    expected = torch.cat([p.pixel_values_N for p in rows if p.pixel_values_N is not None])
    found = [one.packed.pixel_values_N for one in made if one.packed.pixel_values_N is not None]
    assert torch.equal(torch.cat(found), expected)
    if shared_prefix:
        assert [e for one in made for e in one.examples] == list(
            dict.fromkeys(g.example.id for g, _ in trained)
        )


def test_tokens_know_their_place_among_those_of_the_step(groups: list[Group]) -> None:
    """`index_K` counts the tokens of all groups, those without signal included."""
    start: dict[tuple[str, int], int] = {}
    at = 0
    for group in groups:
        for member, completion in enumerate(group.completions):
            start[group.example.id, member] = at
            at += len(completion.token_ids)
    for limit in CUTS:
        index = torch.cat([one.index_K for one in cut(groups, tokens_per_pass=limit)]).tolist()
        sampled = torch.cat([one.sampled_logp_K for one in cut(groups, tokens_per_pass=limit)])
        names = [-float(p) for p in sampled]  # 100 * group + 10 * member + token
        expected = [start[str(int(n) // 100), int(n) % 100 // 10] + int(n) % 10 for n in names]
        assert index == expected


def test_without_credit_every_completion_is_there_to_be_scored(groups: list[Group]) -> None:
    for limit in CUTS:
        made = make_micro_batches(groups, None, Layout(tokens_per_pass=limit, shared_prefix=True))
        index = torch.cat([one.index_K for one in made])
        everything = sum(len(c.token_ids) for g in groups for c in g.completions)
        assert sorted(index.tolist()) == list(range(everything))
        assert all(one.inputs is None for one in made)


def test_inputs_of_a_token_travel_with_it(groups: list[Group]) -> None:
    """Old log-probs that name the place of their token: in every micro-batch they are those of its tokens."""
    everything = sum(len(c.token_ids) for g in groups for c in g.completions)
    old_K = torch.arange(everything, dtype=torch.float64)
    credit = credit_of(groups, grpo(kl_beta=0.0), groups, old_K)
    for limit in CUTS:
        made = make_micro_batches(groups, credit, Layout(tokens_per_pass=limit, shared_prefix=True))
        for one in made:
            assert torch.equal(one.inputs.old_logp_K, one.index_K.double())


def test_what_was_not_sampled_has_no_recorded_log_prob(groups: list[Group]) -> None:
    gold = replace(groups[0].completions[0], logprobs=())
    mixed = replace(groups[0], completions=(gold, *groups[0].completions[1:]))
    (one,) = cut([mixed])
    assert one.sampled_logp_K[:2].isnan().all()
    assert not one.sampled_logp_K[2:].isnan().any()


def test_an_idle_micro_batch_adds_exactly_nothing(groups: list[Group]) -> None:
    """Whatever the algorithm: its inputs are those of no token."""
    nan_K = torch.full((sum(map(sum, LENGTHS)),), torch.nan, dtype=torch.float64)
    for algorithm in (gpg(), grpo(kl_beta=0.0)):
        idle = make_idle_micro_batch(credit_of(groups, algorithm, groups, nan_K))
        logp_K = logps_of(idle, table())
        loss_K = algorithm.token_loss(logp_K, idle.inputs)
        assert len(loss_K) == len(idle.index_K) == len(idle.sampled_logp_K) == 0
        assert idle.packed.tokens == 1
        assert idle.examples == ()


def test_counts_are_those_of_the_used_groups(groups: list[Group]) -> None:
    """Rewards [1,0] [1,1], lengths 2, 4 | 3, 1, as the specification has it."""
    first, second = (
        replace(make_group(i), rewards=r) for i, r in ((0, (1.0, 0.0)), (1, (1.0, 1.0)))
    )
    first = replace(first, completions=tuple(completion(n) for n in (2, 4)))
    second = replace(second, completions=tuple(completion(n) for n in (3, 1)))
    assert count_groups([first, second]) == StepCounts(
        groups=2, valid_groups=1, completions=4, tokens=10, valid_tokens=6
    )
    assert count_groups([]) == StepCounts(
        groups=0, valid_groups=0, completions=0, tokens=0, valid_tokens=0
    )
    assert add([count_groups(groups[:3]), count_groups(groups[3:])]) == count_groups(groups)


def test_alpha_of_the_running_example_is_two_not_sixteen_sevenths() -> None:
    """[1,1,0,0] [1,1,1,1] [0,0,0,0] [1,0,0,0]: two of four groups are valid; seven of sixteen rewards are not zero."""
    rewards = [(1.0, 1.0, 0.0, 0.0), (1.0,) * 4, (0.0,) * 4, (1.0, 0.0, 0.0, 0.0)]
    made = [replace(make_group(0), completions=(completion(1),) * 4, rewards=r) for r in rewards]
    alpha = age_factor(count_groups(made), "inverse_valid_fraction")
    assert alpha == 2.0
    assert alpha != pytest.approx(16 / 7, rel=0.05)


def test_an_unscored_group_carries_no_signal() -> None:
    assert count_groups([replace(make_group(0), rewards=())]).valid_groups == 0


def mean(rewards: Sequence[float]) -> float:
    return sum(rewards) / len(rewards)


def row_length(group: Group) -> int:
    return group.prompt.length + sum(len(c.token_ids) for c in group.completions)


def completion(length: int) -> Completion:
    return Completion(
        token_ids=(1,) * length, logprobs=(-1.0,) * length, text="", finish_reason="stop"
    )
