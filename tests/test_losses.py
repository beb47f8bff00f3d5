"""The GPG loss: the specification's table and gradients, and the published losses of other algorithms written out here.

Everything is float64 and differentiated by autograd with respect to the log-probs themselves.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from gpg_vl.algorithms import losses as module
from gpg_vl.algorithms.advantages import FNorm, advantages
from gpg_vl.algorithms.age import Age, StepCounts, age_factor
from gpg_vl.algorithms.losses import Aggregation, LossOutput, denominator

coefficients = jaxtyped(typechecker=beartype)(module.coefficients)
gpg_loss = jaxtyped(typechecker=beartype)(module.gpg_loss)

AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "constant", "group")
EXACT: tuple[tuple[Aggregation, Age], ...] = (
    ("sequence", "inverse_valid_fraction"),
    ("constant", "inverse_valid_fraction"),
    ("group", "inverse_valid_fraction"),
    ("token", "token"),
)
"""Where the corrected mean is the mean over valid groups alone."""
LIMIT = 8


class Step(NamedTuple):
    """Rewards and lengths of one optimizer step, the log-probs of its tokens, and what there is of them."""

    rewards_P_G: Tensor
    lengths_P_G: Tensor
    logp_PG_T: Tensor
    mask_PG_T: Tensor


def make_step(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    logps: Sequence[float] | None = None,
) -> Step:
    """A step with one log-prob per completion, or with different ones everywhere. Under the mask stands nonsense."""
    lengths_PG = [n for row in lengths for n in row]
    mask = torch.arange(max(1, *lengths_PG))[None] < torch.tensor(lengths_PG)[:, None]
    values = (
        -0.1 - (torch.arange(mask.numel(), dtype=torch.float64).reshape(mask.shape) * 0.37) % 2.0
    )
    if logps is not None:
        values = torch.tensor(logps, dtype=torch.float64)[:, None].expand(mask.shape)
    logp = torch.where(mask, values, torch.nan).requires_grad_()
    return Step(torch.tensor(rewards, dtype=torch.float64), torch.tensor(lengths), logp, mask)


def counts(step: Step) -> StepCounts:
    valid = [len(set(row)) > 1 for row in step.rewards_P_G.tolist()]
    tokens = step.lengths_P_G.sum(dim=1).tolist()
    return StepCounts(
        groups=len(valid),
        valid_groups=sum(valid),
        completions=step.rewards_P_G.numel(),
        tokens=sum(tokens),
        valid_tokens=sum(t for t, ok in zip(tokens, valid, strict=True) if ok),
    )


def run(
    step: Step, aggregation: Aggregation, age: Age, *, f_norm: FNorm = "one", limit: int = LIMIT
) -> tuple[LossOutput, Tensor]:
    """(loss, its gradient with respect to every log-prob)."""
    total = counts(step)
    c_P_G = coefficients(
        advantages(step.rewards_P_G, f_norm=f_norm),
        step.lengths_P_G,
        aggregation=aggregation,
        age=age_factor(total, age),
        denominator=denominator(total, aggregation, max_new_tokens=limit),
    )
    output = gpg_loss(
        step.logp_PG_T[step.mask_PG_T],
        c_P_G.flatten().repeat_interleave(step.lengths_P_G.flatten()),
    )
    (gradient,) = torch.autograd.grad(output.loss, step.logp_PG_T)
    return output, gradient


def example() -> Step:
    """Two groups of two: rewards [1,0] [1,1], lengths 2, 4 | 3, 1, log-probs -1, -2, -1.5, -3 per token."""
    return make_step([[1, 0], [1, 1]], [[2, 4], [3, 1]], [-1.0, -2.0, -1.5, -3.0])


def varied() -> Step:
    """Four groups of three, two of them without signal, every length and log-prob different."""
    return make_step(
        [[1, 0, 0], [1, 1, 1], [0.2, 0.7, 0], [0, 0, 0]],
        [[2, 5, 1], [4, 3, 7], [6, 1, 2], [1, 1, 9]],
    )


# ---- the table


@pytest.mark.parametrize(
    "aggregation,age,expected",
    [
        ("token", "off", -0.3),
        ("token", "inverse_valid_fraction", -0.6),
        ("token", "token", -0.5),
        ("token", "valid_fraction", -0.15),
        ("sequence", "off", -0.125),
        ("sequence", "inverse_valid_fraction", -0.25),
        ("sequence", "valid_fraction", -0.0625),
        ("constant", "off", -0.09375),
        ("constant", "inverse_valid_fraction", -0.1875),
        ("constant", "valid_fraction", -0.046875),
        ("group", "off", -0.25),
        ("group", "inverse_valid_fraction", -0.5),
        ("group", "valid_fraction", -0.125),
    ],
)
def test_the_value_of_the_loss(aggregation: Aggregation, age: Age, expected: float) -> None:
    """Token, off, by hand: A = 0.5, -0.5; -(0.5 * 2 * -1 + -0.5 * 4 * -2) / 10 = -(-1 + 4) / 10."""
    output, _ = run(example(), aggregation, age)
    assert output.loss.item() == pytest.approx(expected, rel=1e-12)
    assert output.logp_sum.item() == pytest.approx(2 * -1 + 4 * -2 + 3 * -1.5 + 1 * -3)
    assert not output.logp_sum.requires_grad


@pytest.mark.parametrize(
    "age,expected",
    [
        ("off", -0.05),
        ("inverse_valid_fraction", -0.1),
        ("token", -1 / 12),
        ("valid_fraction", -0.025),
    ],
)
def test_the_gradient_of_each_token(age: Age, expected: float) -> None:
    """Minus for the better completion (descent raises its log-prob), plus for the worse, 0 without signal or mask."""
    _, gradient = run(example(), "token", age)
    rows = [[expected] * 2 + [0.0] * 2, [-expected] * 4, [0.0] * 4, [0.0] * 4]
    assert torch.allclose(gradient, torch.tensor(rows, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "aggregation,first,second",
    [
        ("sequence", -0.5 / 2 / 4, 0.5 / 4 / 4),
        ("constant", -0.5 / 32, 0.5 / 32),
        ("group", -0.5 / 6 / 2, 0.5 / 6 / 2),
    ],
)
def test_the_weight_of_a_token_in_each_mean(
    aggregation: Aggregation, first: float, second: float
) -> None:
    """1/(|o_i| N), 1/(N L_max) and 1/(K_g P), with N = 4, L_max = 8, K_1 = 6, P = 2."""
    _, gradient = run(example(), aggregation, "off")
    assert gradient[0, 0].item() == pytest.approx(first, rel=1e-12)
    assert gradient[1, 3].item() == pytest.approx(second, rel=1e-12)


def test_token_mean_times_alpha_is_off_by_the_ratio_of_lengths() -> None:
    """-0.6 / -0.5 = 1.2: mean length 3 in valid groups over 2.5 in all."""
    by_groups, _ = run(example(), "token", "inverse_valid_fraction")
    by_tokens, _ = run(example(), "token", "token")
    assert by_groups.loss.item() / by_tokens.loss.item() == pytest.approx(3 / 2.5, rel=1e-12)


def test_on_a_vocabulary_of_two_the_gradient_is_the_analytic_one() -> None:
    """One token each, the first rewarded: -(1/2)(0.5 log p - 0.5 log(1-p)).

    d/d logit_0 = -(1/2)(0.5 (1-p) + 0.5 p) = -1/4, whatever p is.
    """
    logits = torch.tensor([0.3, -1.1], dtype=torch.float64, requires_grad=True)
    logp_K = torch.log_softmax(logits, dim=0)
    c_P_G = coefficients(
        torch.tensor([[0.5, -0.5]]),
        torch.tensor([[1, 1]]),
        aggregation="token",
        age=1.0,
        denominator=2.0,
    )
    gpg_loss(logp_K, c_P_G.flatten()).loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.25, 0.25], rel=1e-12)


# ---- groups without signal


@pytest.mark.parametrize("f_norm", ["one", "group_std"])
@pytest.mark.parametrize("aggregation,age", EXACT)
def test_groups_without_signal_leave_the_gradient_as_it_is(
    aggregation: Aggregation, age: Age, f_norm: FNorm
) -> None:
    """Those of `varied` taken away, or three more of them added."""
    step = varied()
    _, gradient = run(step, aggregation, age, f_norm=f_norm)
    for other, rows in (with_groups(step, [0, 2]), with_groups(step, [0, 1, 2, 3, 1, 3, 3])):
        _, changed = run(other, aggregation, age, f_norm=f_norm)
        assert torch.allclose(changed[rows], gradient[valid_rows(step)], rtol=1e-12, atol=0)


@pytest.mark.parametrize("aggregation", ["sequence", "constant", "group"])
def test_without_age_the_gradient_shrinks_with_every_group_without_signal(
    aggregation: Aggregation,
) -> None:
    """By P / (P + k): from two groups to seven."""
    step = varied()
    few, rows_few = with_groups(step, [0, 2])
    many, rows_many = with_groups(step, [0, 1, 2, 3, 1, 3, 3])
    gradient_few, gradient_many = (
        run(few, aggregation, "off")[1][rows_few],
        run(many, aggregation, "off")[1][rows_many],
    )
    assert torch.allclose(gradient_many, gradient_few * 2 / 7, rtol=1e-12, atol=0)


def test_token_mean_times_alpha_changes_by_the_ratio_of_the_ratios_of_lengths() -> None:
    step = varied()
    other, rows = with_groups(step, [0, 1, 2, 3, 1, 3, 3])
    ratio = length_ratio(other) / length_ratio(step)
    assert abs(ratio - 1) > 0.05
    gradient = run(step, "token", "inverse_valid_fraction")[1][valid_rows(step)]
    changed = run(other, "token", "inverse_valid_fraction")[1][rows]
    assert torch.allclose(changed, gradient * ratio, rtol=1e-12, atol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("age", ["off", "inverse_valid_fraction", "valid_fraction"])
@pytest.mark.parametrize("f_norm", ["one", "group_std"])
def test_a_step_without_any_signal_is_exactly_zero(
    aggregation: Aggregation, age: Age, f_norm: FNorm
) -> None:
    """2.9 eight times is where centring leaves a residue."""
    step = make_step([[2.9] * 8, [0.1] * 8], [[3, 1, 2, 2, 1, 4, 1, 1]] * 2)
    output, gradient = run(step, aggregation, age, f_norm=f_norm)
    assert output.loss.item() == 0.0
    assert torch.count_nonzero(gradient) == 0


# ---- edges


def test_what_is_masked_has_neither_value_nor_gradient() -> None:
    clean = make_step([[1, 0]], [[2, 1]], [-1.0, -2.0])
    for nonsense in (math.nan, math.inf, -math.inf, 1e30):
        logp = torch.where(clean.mask_PG_T, clean.logp_PG_T.detach(), nonsense).requires_grad_()
        output, gradient = run(clean._replace(logp_PG_T=logp), "token", "off")
        assert output.loss.item() == pytest.approx(-(0.5 * 2 * -1.0 + -0.5 * 1 * -2.0) / 3)
        assert gradient[1].tolist() == [pytest.approx(0.5 / 3), 0.0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_completion_without_tokens_contributes_nothing(aggregation: Aggregation) -> None:
    """Its group goes on: A = 2/3 for the first of three, with two tokens of three in all."""
    step = make_step([[1, 0, 0]], [[2, 0, 1]])
    output, gradient = run(step, aggregation, "off")
    weights = {"token": 1 / 3, "sequence": 1 / 2 / 3, "constant": 1 / (3 * LIMIT), "group": 1 / 3}
    assert gradient[0, 0].item() == pytest.approx(-2 / 3 * weights[aggregation], rel=1e-12)
    assert output.loss.isfinite()
    assert torch.count_nonzero(gradient[1]) == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order_of_members_and_groups_does_not_matter(aggregation: Aggregation) -> None:
    step = varied()
    output, gradient = run(step, aggregation, "inverse_valid_fraction")
    order = torch.tensor(
        [[7, 6, 8], [3, 4, 5], [11, 10, 9], [0, 2, 1]]
    )  # of PG: groups 2, 1, 3, 0, members turned
    flat = order.flatten()
    turned = Step(
        step.rewards_P_G.flatten()[order],
        step.lengths_P_G.flatten()[order],
        step.logp_PG_T.detach()[flat].requires_grad_(),
        step.mask_PG_T[flat],
    )
    again, changed = run(turned, aggregation, "inverse_valid_fraction")
    assert again.loss.item() == pytest.approx(output.loss.item(), rel=1e-12)
    assert torch.allclose(changed, gradient[flat], rtol=1e-12, atol=0)


def test_wrong_shapes_are_refused_under_test() -> None:
    with pytest.raises(TypeCheckError):
        gpg_loss(torch.zeros(4), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        gpg_loss(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(TypeCheckError):
        gpg_loss(torch.zeros(4), torch.zeros(4, dtype=torch.bool))


# ---- other algorithms, written out


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(2, 5).flatmap(
        lambda g: st.lists(
            st.lists(
                st.tuples(st.sampled_from([0.0, 0.2, 1.0, 1.2]), st.integers(1, 6)),
                min_size=g,
                max_size=g,
            ),
            min_size=1,
            max_size=4,
        )
    )
)
def test_on_policy_without_age_gpg_has_the_gradients_of_its_baselines(
    groups: list[list[tuple[float, int]]],
) -> None:
    """GRPO (no KL, F = 1), Dr. GRPO and RLOO, from their own formulas: a clipped surrogate at ratio 1, plain loops."""
    rewards, lengths = (
        [[r for r, _ in group] for group in groups],
        [[n for _, n in group] for group in groups],
    )
    step = make_step(rewards, lengths)
    size, number = len(rewards[0]), len(rewards) * len(rewards[0])
    flat = [
        (row, i, n)
        for row, sizes in zip(rewards, lengths, strict=True)
        for i, n in enumerate(sizes)
    ]

    def surrogate(k: int, n: int, advantage: float) -> Tensor:
        ratio = torch.exp(step.logp_PG_T[k, :n] - step.logp_PG_T[k, :n].detach())
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)

    grpo = token_grpo = dr_grpo = rloo = 0.0 * step.logp_PG_T[0, 0]
    for k, (row, i, n) in enumerate(flat):
        centred = row[i] - sum(row) / size
        others = (sum(row) - row[i]) / (size - 1)
        grpo = grpo + surrogate(k, n, centred).sum() / n / number
        token_grpo = token_grpo + surrogate(k, n, centred).sum() / sum(n for _, _, n in flat)
        dr_grpo = dr_grpo + surrogate(k, n, centred).sum() / (number * LIMIT)
        rloo = rloo - (row[i] - others) * step.logp_PG_T[k, :n].sum() / number

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, step.logp_PG_T, retain_graph=True)[0]

    def ours(aggregation: Aggregation, limit: int = LIMIT) -> Tensor:
        return run(step, aggregation, "off", limit=limit)[1]

    for theirs, mine in (
        (gradient(grpo), ours("sequence")),
        (gradient(token_grpo), ours("token")),
        (gradient(dr_grpo), ours("constant")),
        (gradient(rloo), ours("constant", limit=1) * size / (size - 1)),
    ):
        assert torch.allclose(theirs, mine, rtol=1e-9, atol=1e-12)


# ---- steps made of others


def valid_rows(step: Step) -> Tensor:
    return torch.tensor([len(set(row)) > 1 for row in step.rewards_P_G.tolist() for _ in row])


def with_groups(step: Step, groups: Sequence[int]) -> tuple[Step, Tensor]:
    """A step of the given groups of another, some of them several times, and which of its rows belong to valid ones."""
    size = step.rewards_P_G.shape[1]
    rows = torch.tensor([g * size + i for g in groups for i in range(size)])
    made = Step(
        step.rewards_P_G[list(groups)],
        step.lengths_P_G[list(groups)],
        step.logp_PG_T.detach()[rows].requires_grad_(),
        step.mask_PG_T[rows],
    )
    return made, valid_rows(made)


def length_ratio(step: Step) -> float:
    """Mean completion length in valid groups over that in all."""
    lengths = step.lengths_P_G.flatten().double()
    return float(lengths[valid_rows(step)].mean() / lengths.mean())
