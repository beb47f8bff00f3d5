"""GPG: the specification's table and gradients, and the published losses of other algorithms written out here.

Log-probs are float64 and differentiated by autograd; the weights were rounded to float32 once, hence tolerances of 1e-6.
"""

import statistics
import struct
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import (
    LIMIT,
    VARIED,
    Lengths,
    Rows,
    counts_of,
    logp_of,
    made_steps,
    make_batch,
    taken,
    token_rows,
)
from torch import Tensor

from gpg_vl.algorithms.algorithm import Credit
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.option_types import Age, Aggregation, FNorm

AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "constant", "group")
EXACT: tuple[tuple[Aggregation, Age], ...] = (
    ("sequence", "inverse_valid_fraction"),
    ("constant", "inverse_valid_fraction"),
    ("group", "inverse_valid_fraction"),
    ("token", "token"),
)
"""Where the corrected mean is the mean over valid groups alone."""
SWITCHES = [
    (f_norm, age, aggregation)
    for f_norm in get_args(FNorm)
    for age in get_args(Age)
    for aggregation in get_args(Aggregation)
]
TABLE: tuple[Rows, Lengths] = ([[1, 0], [1, 1]], [[2, 4], [3, 1]])
"""The specification's example. Its completions have the log-probs -1, -2, -1.5 and -3 at every token."""

rewards_with_ties = st.sampled_from([0.0, 0.2, 1.0, 1.2, -0.5, 2.9])
seeded = settings(max_examples=40, deadline=None, derandomize=True)


def table_logp() -> Tensor:
    logp = torch.tensor([-1.0, -2.0, -1.5, -3.0], dtype=torch.float64)
    return logp[token_rows(TABLE[1])].requires_grad_()


def credit_of(
    step: tuple[Rows, Lengths],
    aggregation: Aggregation = "token",
    age: Age = "off",
    f_norm: FNorm = "one",
) -> Credit:
    return gpg(f_norm=f_norm, age=age, aggregation=aggregation).credit(make_batch(*step))


def run(
    step: tuple[Rows, Lengths],
    aggregation: Aggregation,
    age: Age,
    *,
    f_norm: FNorm = "one",
    logp_K: Tensor | None = None,
) -> tuple[float, Tensor]:
    """(loss, its gradient with respect to the log-prob of every token)."""
    algorithm = gpg(f_norm=f_norm, age=age, aggregation=aggregation)
    inputs = algorithm.credit(make_batch(*step)).inputs
    logp_K = logp_of(step[1]) if logp_K is None else logp_K
    loss = algorithm.token_loss(logp_K, inputs).sum()
    (gradient,) = torch.autograd.grad(loss, logp_K)
    return loss.item(), gradient


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-12)


def valid_tokens(step: tuple[Rows, Lengths]) -> Tensor:
    """True for each token of a group with signal."""
    valid = [len(set(row)) > 1 for row in step[0] for _ in row]
    return torch.tensor(valid)[token_rows(step[1])]


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
    loss, _ = run(TABLE, aggregation, age, logp_K=table_logp())
    assert loss == pytest.approx(expected, rel=1e-6)


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
    """Minus for the better completion (descent raises its log-prob), plus for the worse, 0 without signal."""
    _, gradient = run(TABLE, "token", age)
    assert close(gradient, torch.tensor([expected] * 2 + [-expected] * 4 + [0.0] * 4))


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
    _, gradient = run(TABLE, aggregation, "off")
    assert gradient[0].item() == pytest.approx(first, rel=1e-6)
    assert gradient[5].item() == pytest.approx(second, rel=1e-6)


def test_token_mean_times_alpha_is_off_by_the_ratio_of_lengths() -> None:
    """-0.6 / -0.5 = 1.2: mean length 3 in valid groups over 2.5 in all."""
    by_groups, _ = run(TABLE, "token", "inverse_valid_fraction", logp_K=table_logp())
    by_tokens, _ = run(TABLE, "token", "token", logp_K=table_logp())
    assert by_groups / by_tokens == pytest.approx(3 / 2.5, rel=1e-6)


def test_on_a_vocabulary_of_two_the_gradient_is_the_analytic_one() -> None:
    """One token each, the first rewarded: -(1/2)(0.5 log p - 0.5 log(1-p)).

    d/d logit_0 = -(1/2)(0.5 (1-p) + 0.5 p) = -1/4, whatever p is.
    """
    algorithm = gpg(age="off")
    inputs = algorithm.credit(make_batch([[1, 0]], [[1, 1]])).inputs
    logits = torch.tensor([0.3, -1.1], dtype=torch.float64, requires_grad=True)
    algorithm.token_loss(torch.log_softmax(logits, dim=0), inputs).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.25, 0.25], rel=1e-12)


# ---- the formula, for every combination of switches


@pytest.mark.parametrize("f_norm,age,aggregation", SWITCHES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(made_steps(rewards_with_ties))
def test_the_weights_are_those_of_the_formula(
    f_norm: FNorm, age: Age, aggregation: Aggregation, step: tuple[Rows, Lengths]
) -> None:
    """c_i = alpha * (r_i - mean) / F * w_i / denominator, in plain Python with the standard library's statistics."""
    rewards, lengths = step
    valid = [len(set(row)) > 1 for row in rewards]
    tokens, number = sum(map(sum, lengths)), sum(map(len, lengths))
    everything = [r for row in rewards for r in row]
    expected: list[float] = []

    for row, sizes, ok in zip(rewards, lengths, valid, strict=True):
        divisor = {
            "one": 1.0,
            "group_std": statistics.stdev(row) + 1e-4,
            "batch_std": statistics.stdev(everything) + 1e-4,
        }[f_norm]
        for reward, length in zip(row, sizes, strict=True):
            mean = {
                "token": 1 / tokens,
                "sequence": 1 / length / number,
                "constant": 1 / (number * LIMIT),
                "group": 1 / sum(sizes) / len(rewards),
            }[aggregation]
            alpha = {
                "off": 1.0,
                "inverse_valid_fraction": len(rewards) / max(1, sum(valid)),
                "valid_fraction": sum(valid) / len(rewards),
                "token": tokens
                / max(1, sum(sum(n) for n, v in zip(lengths, valid, strict=True) if v)),
            }[age]
            weight = alpha * (reward - statistics.fmean(row)) / divisor * mean if ok else 0.0
            expected += [weight] * length

    credit = credit_of(step, aggregation, age, f_norm)
    assert credit.inputs.weight_K.dtype == torch.float32
    assert close(credit.inputs.weight_K, torch.tensor(expected, dtype=torch.float64))


@seeded
@given(made_steps(st.floats(-3, 3)), st.sampled_from(SWITCHES))
def test_a_weight_does_not_depend_on_the_other_groups_of_its_process_to_the_bit(
    step: tuple[Rows, Lengths], switches: tuple[FNorm, Age, Aggregation]
) -> None:
    f_norm, age, aggregation = switches
    algorithm = gpg(f_norm=f_norm, age=age, aggregation=aggregation)
    alone = [
        algorithm.credit(make_batch([row], [sizes], step=step)).inputs.weight_K
        for row, sizes in zip(*step, strict=True)
    ]
    assert torch.equal(torch.cat(alone), algorithm.credit(make_batch(*step)).inputs.weight_K)


@seeded
@given(made_steps(st.sampled_from([0.0, 0.5, 1.0, 2.0])))
def test_a_weight_is_computed_in_double_precision_and_rounded_once(
    step: tuple[Rows, Lengths],
) -> None:
    """The same operations in the same order on Python's doubles, then one rounding by the standard library."""
    total = counts_of(*step)
    alpha = total.groups / max(1, total.valid_groups)
    expected: list[float] = []
    for row, sizes in zip(*step, strict=True):
        centred = [r - sum(row) / len(row) if len(set(row)) > 1 else 0.0 for r in row]
        for advantage, length in zip(centred, sizes, strict=True):
            weight = alpha * advantage * (1.0 / length) / total.completions
            expected += struct.unpack("f", struct.pack("f", weight)) * length
    weights = credit_of(step, "sequence", "inverse_valid_fraction").inputs.weight_K
    assert weights.tolist() == expected


# ---- alpha


@pytest.mark.parametrize("other", [[0.0] * 4, [1.0] * 4], ids=["all wrong", "all right"])
def test_alpha_counts_groups_with_signal_not_rewards_that_are_not_zero(other: list[float]) -> None:
    """A known wrong alpha divides completions by non-zero rewards: 8 and 8/5 here, where the paper's is 2."""
    step = ([[1.0, 0.0, 0.0, 0.0], other], [[1] * 4] * 2)
    credit = credit_of(step, "token", "inverse_valid_fraction")
    assert credit.metrics == {"alpha": 2.0}
    assert credit.inputs.weight_K[0].item() == pytest.approx(2.0 * 0.75 / 8, rel=1e-6)


@pytest.mark.parametrize(
    "age,expected",
    [("off", 1.0), ("inverse_valid_fraction", 2.0), ("token", 10 / 6), ("valid_fraction", 0.5)],
)
def test_the_factor_is_what_is_logged(age: Age, expected: float) -> None:
    assert credit_of(TABLE, "token", age).metrics == {"alpha": pytest.approx(expected, rel=1e-15)}


# ---- groups without signal


@pytest.mark.parametrize("f_norm", ["one", "group_std"])
@pytest.mark.parametrize("aggregation,age", EXACT)
def test_groups_without_signal_leave_the_gradient_as_it_is(
    aggregation: Aggregation, age: Age, f_norm: FNorm
) -> None:
    """Those of `VARIED` taken away, or three more of them added."""
    _, gradient = run(VARIED, aggregation, age, f_norm=f_norm)
    for other in (taken(VARIED, [0, 2]), taken(VARIED, [0, 1, 2, 3, 1, 3, 3])):
        _, changed = run(other, aggregation, age, f_norm=f_norm)
        assert close(changed[valid_tokens(other)], gradient[valid_tokens(VARIED)])


@pytest.mark.parametrize("aggregation", ["sequence", "constant", "group"])
def test_without_age_the_gradient_shrinks_with_every_group_without_signal(
    aggregation: Aggregation,
) -> None:
    """By P / (P + k): from two groups to seven."""
    few, many = taken(VARIED, [0, 2]), taken(VARIED, [0, 1, 2, 3, 1, 3, 3])
    gradient_few = run(few, aggregation, "off")[1][valid_tokens(few)]
    gradient_many = run(many, aggregation, "off")[1][valid_tokens(many)]
    assert close(gradient_many, gradient_few * 2 / 7)


def test_token_mean_times_alpha_changes_by_the_ratio_of_the_ratios_of_lengths() -> None:
    other = taken(VARIED, [0, 1, 2, 3, 1, 3, 3])
    ratio = length_ratio(other) / length_ratio(VARIED)
    assert abs(ratio - 1) > 0.05
    gradient = run(VARIED, "token", "inverse_valid_fraction")[1][valid_tokens(VARIED)]
    changed = run(other, "token", "inverse_valid_fraction")[1][valid_tokens(other)]
    assert close(changed, gradient * ratio)


@pytest.mark.parametrize("f_norm,age,aggregation", SWITCHES)
def test_a_step_without_any_signal_is_exactly_zero(
    aggregation: Aggregation, age: Age, f_norm: FNorm
) -> None:
    """2.9 eight times is where centring leaves a residue. Nothing is run, and there is no alpha."""
    step = ([[2.9] * 8, [0.1] * 8], [[3, 1, 2, 2, 1, 4, 1, 1]] * 2)
    loss, gradient = run(step, aggregation, age, f_norm=f_norm)
    assert loss == 0.0
    assert torch.count_nonzero(gradient) == 0
    credit = credit_of(step, aggregation, age, f_norm)
    assert not credit.trained_P_G.any()
    assert credit.metrics == {"alpha": None}


# ---- what is run, and edges


def test_an_answer_is_run_if_its_weight_is_not_zero() -> None:
    """Rewards 0, 1/2, 1: the middle one has the mean reward. A whole group without signal is left out."""
    step = ([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]], [[2, 1, 3], [1, 1, 1]])
    assert credit_of(step).trained_P_G.tolist() == [[True, False, True], [False, False, False]]


def test_a_process_without_groups_has_no_tokens() -> None:
    empty = make_batch([[1.0, 0.0]], [[1, 1]])
    batch = type(empty)(
        rewards_P_G=torch.zeros(0, 2, dtype=torch.float64),
        lengths_P_G=torch.zeros(0, 2, dtype=torch.long),
        counts=empty.counts,
        reward_std=empty.reward_std,
        max_new_tokens=LIMIT,
    )
    credit = gpg().credit(batch)
    assert credit.inputs.weight_K.shape == (0,)
    assert credit.trained_P_G.shape == (0, 2)
    assert credit.metrics == {"alpha": 1.0}, "of the whole step"


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_completion_without_tokens_contributes_nothing(aggregation: Aggregation) -> None:
    """Its group goes on: A = 2/3 for the first of three, with two tokens of three in all."""
    step = ([[1, 0, 0]], [[2, 0, 1]])
    loss, gradient = run(step, aggregation, "off")
    weights = {"token": 1 / 3, "sequence": 1 / 2 / 3, "constant": 1 / (3 * LIMIT), "group": 1 / 3}
    assert gradient[0].item() == pytest.approx(-2 / 3 * weights[aggregation], rel=1e-6)
    assert loss == pytest.approx(sum((gradient * logp_of(step[1])).tolist()), rel=1e-12)
    assert credit_of(step, aggregation).trained_P_G.tolist() == [[True, False, True]]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order_of_members_and_groups_does_not_matter(aggregation: Aggregation) -> None:
    """Groups 2, 1, 3, 0, their members turned: each completion keeps its weight."""
    order = [(2, (1, 0, 2)), (1, (0, 1, 2)), (3, (2, 1, 0)), (0, (0, 2, 1))]
    turned = (
        [[VARIED[0][g][i] for i in members] for g, members in order],
        [[VARIED[1][g][i] for i in members] for g, members in order],
    )
    plain = credit_of(VARIED, aggregation, "inverse_valid_fraction").inputs.weight_K
    changed = credit_of(turned, aggregation, "inverse_valid_fraction").inputs.weight_K
    rows, turned_rows = token_rows(VARIED[1]), token_rows(turned[1])
    flat_order = [g * 3 + i for g, members in order for i in members]
    for place, row in enumerate(flat_order):
        assert close(changed[turned_rows == place], plain[rows == row])


def test_the_deviation_of_the_step_is_an_argument() -> None:
    """Two processes with one group each divide by the deviation over both."""
    step = ([[1.0, 0.0], [3.0, 0.0]], [[1, 1], [1, 1]])
    credit = gpg(f_norm="batch_std", age="off").credit(
        make_batch([step[0][0]], [[1, 1]], step=step)
    )
    expected = 0.5 / (statistics.stdev([1.0, 0.0, 3.0, 0.0]) + 1e-4) / 4
    assert credit.inputs.weight_K[0].item() == pytest.approx(expected, rel=1e-6)


# ---- other algorithms, written out


@seeded
@given(made_steps(st.sampled_from([0.0, 0.2, 1.0, 1.2])))
def test_on_policy_without_age_gpg_has_the_gradients_of_its_baselines(
    step: tuple[Rows, Lengths],
) -> None:
    """GRPO (no KL, F = 1), Dr. GRPO and RLOO, from their own formulas: a clipped surrogate at ratio 1, plain loops."""
    rewards, lengths = step
    size, number = len(rewards[0]), len(rewards) * len(rewards[0])
    tokens = sum(map(sum, lengths))
    logp_K, rows = logp_of(lengths), token_rows(lengths)
    flat = [
        (row, i, n)
        for row, sizes in zip(rewards, lengths, strict=True)
        for i, n in enumerate(sizes)
    ]

    def surrogate(k: int, advantage: float) -> Tensor:
        ratio = torch.exp(logp_K[rows == k] - logp_K[rows == k].detach())
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)

    grpo = token_grpo = dr_grpo = rloo = 0.0 * logp_K[0]
    for k, (row, i, n) in enumerate(flat):
        centred = row[i] - sum(row) / size
        others = (sum(row) - row[i]) / (size - 1)
        grpo = grpo + surrogate(k, centred).sum() / n / number
        token_grpo = token_grpo + surrogate(k, centred).sum() / tokens
        dr_grpo = dr_grpo + surrogate(k, centred).sum() / (number * LIMIT)
        rloo = rloo - (row[i] - others) * logp_K[rows == k].sum() / number

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logp_K, retain_graph=True)[0]

    def ours(aggregation: Aggregation) -> Tensor:
        return run(step, aggregation, "off")[1]

    for theirs, mine in (
        (gradient(grpo), ours("sequence")),
        (gradient(token_grpo), ours("token")),
        (gradient(dr_grpo), ours("constant")),
        (gradient(rloo), ours("constant") * LIMIT * size / (size - 1)),
    ):
        assert torch.allclose(theirs, mine.double(), rtol=1e-6, atol=1e-9)


def length_ratio(step: tuple[Rows, Lengths]) -> float:
    """Mean completion length in valid groups over that in all."""
    valid = [n for row, sizes in zip(*step, strict=True) if len(set(row)) > 1 for n in sizes]
    return statistics.fmean(valid) / statistics.fmean([n for sizes in step[1] for n in sizes])
