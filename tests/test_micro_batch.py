"""From groups to passes, without a model: the same gradient for every cut, and for every deal to ranks.

The policy here is a table of logits: log pi of a token given the token that predicts it. The rows say which token that
is, so a pass that is laid out wrongly changes the result.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from gpg_vl.training.batch import Objective, Pass, counts_of, idle_pass, make_passes
from torch import Tensor

from gpg_vl.algorithms.advantages import FNorm
from gpg_vl.algorithms.age import Age, StepCounts, age_factor
from gpg_vl.algorithms.losses import Aggregation
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
    "one rank without signal": [[0, 2, 4, 5, 7], [1, 3, 6]],
}
CUTS = (1, 30, 60, 10**6)
TOKEN = Objective(
    f_norm="one", age="inverse_valid_fraction", aggregation="token", max_new_tokens=LIMIT
)
OBJECTIVES = [
    Objective(f_norm=f_norm, age=age, aggregation=aggregation, max_new_tokens=LIMIT)
    for f_norm in get_args(FNorm)
    for age in get_args(Age)
    for aggregation in get_args(Aggregation)
    if age != "token" or aggregation == "token"
]


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


def passes_of(
    groups: Sequence[Group],
    *,
    objective: Objective = TOKEN,
    tokens_per_pass: int = 10**6,
    shared_prefix: bool = True,
    step: Sequence[Group] | None = None,
) -> list[Pass]:
    """This rank's passes; `step` are the groups of all ranks."""
    everyone = groups if step is None else step
    return make_passes(
        groups,
        objective=objective,
        counts=add([counts_of([g]) for g in everyone]),
        batch_std=deviation(everyone),
        tokens_per_pass=tokens_per_pass,
        shared_prefix=shared_prefix,
    )


def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator
    ).requires_grad_()


def gradient_of(passes: Sequence[Pass]) -> Tensor:
    """Each pass backward on its own, gradients added up, as an optimizer step does."""
    logits = table()
    for one in passes:
        at = 0
        for part in one.packed.suffixes:
            sources = torch.cat([one.packed.ids_S, part.ids_U])[part.source_K]
            logp_K = torch.log_softmax(logits[sources], dim=1)[
                torch.arange(len(sources)), part.targets_K
            ]
            (-(one.coefficients_K[at : at + len(sources)].double() * logp_K).sum()).backward()
            at += len(sources)
        assert at == len(one.coefficients_K)
    return torch.zeros_like(logits) if logits.grad is None else logits.grad


def formula(groups: Sequence[Group], objective: Objective) -> Tensor:
    """The gradient of the whole step from the specification's formulas, in plain loops over every completion."""
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
    }[objective.age]
    loss = torch.zeros((), dtype=torch.float64)
    for group, lengths in zip(groups, flat_lengths, strict=True):
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        divisor = {
            "one": 1.0,
            "group_std": float(rewards.std()) + 1e-4,
            "batch_std": deviation_of_step + 1e-4,
        }[objective.f_norm]
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
            }[objective.aggregation]
            if len(set(group.rewards)) > 1:
                loss = loss - age * mean * (reward - rewards.mean()) / divisor * logp
    loss.backward()
    assert logits.grad is not None
    return logits.grad


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.f_norm}-{o.age}-{o.aggregation}"
)
def test_the_gradient_is_that_of_the_formula(groups: list[Group], objective: Objective) -> None:
    """Coefficients travel as float32, hence the tolerance."""
    assert (
        relative(gradient_of(passes_of(groups, objective=objective)), formula(groups, objective))
        < 1e-6
    )


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("tokens_per_pass", CUTS)
@pytest.mark.parametrize("deal", DEALS.values(), ids=DEALS)
def test_the_gradient_is_the_same_for_every_cut_and_every_deal(
    groups: list[Group], deal: list[list[int]], tokens_per_pass: int, shared_prefix: bool
) -> None:
    """Bit-equal coefficients: only the order of the sum differs."""
    for objective in (
        TOKEN,
        replace(TOKEN, aggregation="sequence", f_norm="group_std"),
        replace(TOKEN, f_norm="batch_std", age="token"),
    ):
        dealt = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
        for rank in deal:
            dealt += gradient_of(
                passes_of(
                    [groups[i] for i in rank],
                    objective=objective,
                    step=groups,
                    tokens_per_pass=tokens_per_pass,
                    shared_prefix=shared_prefix,
                )
            )
        whole = gradient_of(passes_of(groups, objective=objective))
        assert whole.norm() > 1e-2
        assert relative(dealt, whole) < 1e-12


def test_counting_per_rank_would_be_wrong(groups: list[Group]) -> None:
    """That the test above can fail: with each rank's own counts the step is another one."""
    per_rank = sum(gradient_of(passes_of([groups[i] for i in rank])) for rank in DEALS["2x4"])
    assert relative(per_rank, gradient_of(passes_of(groups))) > 0.1


@pytest.mark.parametrize("turned", [False, True], ids=["longest last", "longest first"])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_a_pass_holds_as_much_as_it_may(
    groups: list[Group], shared_prefix: bool, turned: bool
) -> None:
    """No pass is above the limit unless it is one group, and the first of the next pass would not have fitted."""
    by_length = sorted((g for g in groups if g.is_valid), key=row_length, reverse=turned)
    trained = [
        (g, c)
        for g in by_length
        for c, r in zip(g.completions, g.rewards, strict=True)
        if r != mean(g.rewards)
    ]
    for limit in range(1, 220, 6):
        passes = passes_of(by_length, tokens_per_pass=limit, shared_prefix=shared_prefix)
        assert sum(len(one.packed.counts) for one in passes) == len(trained)
        for one, following in zip(passes, [*passes[1:], None], strict=True):
            alone = len(one.packed.prefix_lengths) == 1
            assert alone or one.packed.tokens <= limit
            assert (len(one.packed.suffixes) > 1) <= (shared_prefix and one.packed.tokens > limit)
            if following is not None:
                first = following.packed.prefix_lengths[0]
                first += sum(
                    n
                    for part in following.packed.suffixes
                    for n, p in zip(part.lengths, part.prefixes, strict=True)
                    if not p
                )
                assert one.packed.tokens + first > limit, (
                    "the first group of the next pass would have fitted"
                )


def test_a_group_above_the_limit_is_cut_into_pieces_that_keep_it(groups: list[Group]) -> None:
    """The prompt stands in the pass once; each piece holds as many completions as fit beside it, at least one."""
    for limit in range(1, 60, 3):
        for one in passes_of([groups[0]], tokens_per_pass=limit):
            (prompt,) = one.packed.prefix_lengths
            held = [sum(part.lengths) for part in one.packed.suffixes]
            assert all(
                prompt + n <= limit or len(part.lengths) == 1
                for n, part in zip(held, one.packed.suffixes, strict=True)
            )
            firsts = [part.lengths[0] for part in one.packed.suffixes[1:]]
            assert all(prompt + n + more > limit for n, more in zip(held, firsts, strict=False))


def test_completions_with_the_mean_reward_cost_nothing(groups: list[Group]) -> None:
    """Rewards 0, 1/2, 1: the middle one has advantage 0, is not run, and still counts in the denominator."""
    group = replace(groups[0], rewards=(0.0, 0.5, 1.0))
    (one,) = passes_of([group])
    lengths = [len(c.token_ids) for c in group.completions]
    assert one.packed.counts == (lengths[0], lengths[2])
    assert one.coefficients_K[0].item() == pytest.approx(-0.5 / sum(lengths))
    assert one.coefficients_K[-1].item() == pytest.approx(0.5 / sum(lengths))


def test_groups_with_the_same_images_share_a_pass_and_the_image(groups: list[Group]) -> None:
    """Whatever stands between them, and also if they do not fit."""
    pictured = [g for g in groups if g.is_valid and g.prompt.image_keys]
    other = next(g for g in groups if g.is_valid and not g.prompt.image_keys)
    twin = replace(pictured[0], prompt=replace(pictured[0].prompt, example_id="twin"))
    for limit in (2 * sum(g.prompt.length for g in (pictured[0], twin)), 10**6):
        passes = passes_of([pictured[0], other, twin], tokens_per_pass=limit)
        (holding,) = [one for one in passes if one.packed.image_keys]
        assert holding.packed.image_keys == pictured[0].prompt.image_keys
        assert len(holding.packed.image_places) == 2
        assert holding.packed.patches == 4


def test_groups_without_signal_are_counted_and_cost_no_pass(groups: list[Group]) -> None:
    passes = passes_of(groups, tokens_per_pass=1)
    assert len(passes) == 5
    assert all(torch.count_nonzero(one.coefficients_K) > 0 for one in passes)
    assert passes_of([groups[1], groups[3]], step=groups) == []
    assert passes_of([], step=groups) == []
    assert passes_of([groups[1], groups[3], groups[6]]) == [], "a whole step without signal"


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("tokens_per_pass", CUTS)
def test_tokens_log_probs_and_pictures_stay_in_the_order_of_the_groups(
    groups: list[Group], tokens_per_pass: int, shared_prefix: bool
) -> None:
    passes = passes_of(groups, tokens_per_pass=tokens_per_pass, shared_prefix=shared_prefix)
    trained = [
        (g, c)
        for g in groups
        if g.is_valid
        for c, r in zip(g.completions, g.rewards, strict=True)
        if r != mean(g.rewards)
    ]
    completions = [c for _, c in trained]
    assert torch.cat([one.sampled_logp_K for one in passes]).tolist() == [
        p for c in completions for p in c.logprobs
    ]
    targets = [part.targets_K for one in passes for part in one.packed.suffixes]
    assert torch.cat(targets).tolist() == [t for c in completions for t in c.token_ids]
    for one in passes:
        assert len(one.coefficients_K) == len(one.sampled_logp_K) == sum(one.packed.counts)
    rows = (
        [g.prompt for g, _ in trained]
        if not shared_prefix
        else list({g.draw: g.prompt for g, _ in trained}.values())
    )
    expected = torch.cat([p.pixel_values_N for p in rows if p.pixel_values_N is not None])
    found = [one.packed.pixel_values_N for one in passes if one.packed.pixel_values_N is not None]
    assert torch.equal(torch.cat(found), expected)
    if shared_prefix:
        assert [e for one in passes for e in one.examples] == list(
            dict.fromkeys(g.example.id for g, _ in trained)
        )


def test_an_idle_pass_adds_exactly_nothing() -> None:
    one = idle_pass()
    assert torch.count_nonzero(gradient_of([one])) == 0
    assert one.packed.tokens == 1
    assert len(one.coefficients_K) == len(one.packed.suffixes[0].targets_K) == 1
    assert len(one.sampled_logp_K) == 0, "nothing was sampled, so nothing is compared"


def test_counts_are_those_of_the_used_groups(groups: list[Group]) -> None:
    """Rewards [1,0] [1,1], lengths 2, 4 | 3, 1, as the specification has it."""
    first, second = (
        replace(make_group(i), rewards=r) for i, r in ((0, (1.0, 0.0)), (1, (1.0, 1.0)))
    )
    first = replace(first, completions=tuple(completion(n) for n in (2, 4)))
    second = replace(second, completions=tuple(completion(n) for n in (3, 1)))
    assert counts_of([first, second]) == StepCounts(
        groups=2, valid_groups=1, completions=4, tokens=10, valid_tokens=6
    )
    assert counts_of([]) == StepCounts(
        groups=0, valid_groups=0, completions=0, tokens=0, valid_tokens=0
    )
    assert add([counts_of(groups[:3]), counts_of(groups[3:])]) == counts_of(groups)


def test_alpha_of_the_running_example_is_two_not_sixteen_sevenths() -> None:
    """[1,1,0,0] [1,1,1,1] [0,0,0,0] [1,0,0,0]: two of four groups are valid; seven of sixteen rewards are not zero."""
    rewards = [(1.0, 1.0, 0.0, 0.0), (1.0,) * 4, (0.0,) * 4, (1.0, 0.0, 0.0, 0.0)]
    made = [replace(make_group(0), completions=(completion(1),) * 4, rewards=r) for r in rewards]
    alpha = age_factor(counts_of(made), "inverse_valid_fraction")
    assert alpha == 2.0
    assert alpha != pytest.approx(16 / 7, rel=0.05)


def test_an_unscored_group_carries_no_signal() -> None:
    assert counts_of([replace(make_group(0), rewards=())]).valid_groups == 0


def mean(rewards: Sequence[float]) -> float:
    return sum(rewards) / len(rewards)


def row_length(group: Group) -> int:
    return group.prompt.length + sum(len(c.token_ids) for c in group.completions)


def completion(length: int) -> Completion:
    return Completion(
        token_ids=(1,) * length, logprobs=(-1.0,) * length, text="", finish_reason="stop"
    )
