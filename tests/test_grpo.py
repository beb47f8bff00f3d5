"""GRPO: value and slope of every token against the formula in closed form, clips, the pull to the reference, and edges."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import LIMIT, VARIED, Lengths, Rows, logp_of, made_steps, make_batch, taken, token_rows
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm, select
from gpg_vl.algorithms.clipped import Inputs
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.option_types import Aggregation

LOW, HIGH, BETA = 0.2, 0.28, 0.04
seeded = settings(max_examples=60, deadline=None, derandomize=True)


class Token(NamedTuple):
    """A token and what its loss is made of. The defaults move nothing."""

    advantage: float
    ratio: float = 1.0
    reference_ratio: float = 1.0
    """pi_ref / pi."""


def value_of(token: Token, *, beta: float = BETA, low: float = LOW, high: float = HIGH) -> float:
    """In closed form: a positive advantage pays for no ratio above 1 + high, a negative one for none below 1 - low."""
    paid = min(token.ratio, 1 + high) if token.advantage > 0 else max(token.ratio, 1 - low)
    divergence = token.reference_ratio - math.log(token.reference_ratio) - 1
    return -token.advantage * paid + beta * divergence


def slope_of(token: Token, *, beta: float = BETA, low: float = LOW, high: float = HIGH) -> float:
    """d/d log pi: the ratio is its own derivative, and the divergence has 1 - pi_ref/pi."""
    cut = token.ratio > 1 + high if token.advantage > 0 else token.ratio < 1 - low
    return (0.0 if cut else -token.advantage * token.ratio) + beta * (1 - token.reference_ratio)


def inputs_of(tokens: Sequence[Token], weight: float = 1.0) -> tuple[Tensor, Inputs]:
    """(logp_K, inputs) with which each token has its ratios, float64."""
    logp_K = torch.linspace(-3.0, -0.5, len(tokens), dtype=torch.float64)

    def shifted(ratios: list[float]) -> Tensor:
        return logp_K + torch.tensor(ratios, dtype=torch.float64).log()

    inputs = Inputs(
        advantage_K=torch.tensor([t.advantage for t in tokens], dtype=torch.float64),
        weight_K=torch.full((len(tokens),), weight, dtype=torch.float64),
        old_logp_K=shifted([1 / t.ratio for t in tokens]),
        reference_logp_K=shifted([t.reference_ratio for t in tokens]),
    )
    return logp_K.clone().requires_grad_(), inputs


def loss_and_slope(
    algorithm: Algorithm, logp_K: Tensor, inputs: Inputs
) -> tuple[list[float], list[float]]:
    loss_K = algorithm.token_loss(logp_K, inputs)
    (slope_K,) = torch.autograd.grad(loss_K.sum(), logp_K)
    return loss_K.tolist(), slope_K.tolist()


# ---- a token's loss


@pytest.mark.parametrize(
    "token,value,slope",
    [
        (Token(2.0, 1.0), -2.0, -2.0),
        (Token(2.0, 1.1), -2.2, -2.2),
        (Token(2.0, 1.5), -2.0 * 1.28, 0.0),
        (Token(2.0, 0.5), -1.0, -1.0),
        (Token(-2.0, 1.0), 2.0, 2.0),
        (Token(-2.0, 0.5), 2.0 * 0.8, 0.0),
        (Token(-2.0, 0.9), 1.8, 1.8),
        (Token(-2.0, 1.5), 3.0, 3.0),
        (Token(0.0, 1.5), 0.0, 0.0),
    ],
    ids=lambda x: str(x) if isinstance(x, Token) else "",
)
def test_the_clip_holds_a_token_that_has_moved_far_enough(
    token: Token, value: float, slope: float
) -> None:
    """By hand, with 0.2 down and 0.28 up: what has become too likely is not pushed up further, nor the other way round."""
    algorithm = grpo(clip_low=LOW, clip_high=HIGH, kl_beta=0.0)
    values, slopes = loss_and_slope(algorithm, *inputs_of([token]))
    assert values == pytest.approx([value], rel=1e-12)
    assert slopes == pytest.approx([slope], rel=1e-12)


ratios = st.floats(-2.0, 2.0).map(math.exp)
moving = st.floats(0.01, 3.0) | st.floats(-3.0, -0.01)
tokens = st.builds(Token, moving | st.just(0.0), ratios, ratios).filter(
    lambda t: abs(t.ratio - 1 - HIGH) > 1e-6 and abs(t.ratio - 1 + LOW) > 1e-6
)


@seeded
@given(st.lists(tokens, min_size=1, max_size=8), st.floats(0.001, 2.0))
def test_value_and_slope_are_those_of_the_closed_form(drawn: list[Token], weight: float) -> None:
    """Ratios from 0.14 to 7.4, both signs of advantage, and a reference that has been left."""
    for beta in (0.0, BETA):
        algorithm = grpo(clip_low=LOW, clip_high=HIGH, kl_beta=beta)
        values, slopes = loss_and_slope(algorithm, *inputs_of(drawn, weight))
        assert values == pytest.approx(
            [weight * value_of(t, beta=beta) for t in drawn], rel=1e-9, abs=1e-12
        )
        assert slopes == pytest.approx(
            [weight * slope_of(t, beta=beta) for t in drawn], rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize("clip", [0.0, 0.2], ids=["no room", "room"])
@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_where_nothing_has_changed_the_slope_is_that_of_the_policy_gradient(
    advantage: float, clip: float
) -> None:
    """NaN: the current weights sampled the token. The ratio is 1 to the bit, also if the clip leaves it no room."""
    logp_K, inputs = inputs_of([Token(advantage)])
    inputs = inputs._replace(old_logp_K=torch.full((1,), torch.nan, dtype=torch.float64))
    algorithm = grpo(clip_low=clip, clip_high=clip, kl_beta=0.0)
    assert loss_and_slope(algorithm, logp_K, inputs) == ([-advantage], [-advantage])


def test_a_tile_of_tokens_has_the_loss_of_the_whole() -> None:
    logp_K, inputs = inputs_of([Token(1.0, 1.5), Token(-1.0, 0.5, 2.0), *[Token(0.5)] * 5])
    algorithm = grpo(clip_low=LOW, clip_high=HIGH)
    whole = algorithm.token_loss(logp_K, inputs)
    tiles = [
        algorithm.token_loss(logp_K[part], select(inputs, part))
        for part in (slice(0, 1), slice(1, 4), slice(4, 7))
    ]
    assert torch.equal(torch.cat(tiles), whole)


def test_what_is_observed_of_a_token() -> None:
    """Cut to zero: up and too likely already, down and too rare already. The others are not."""
    drawn = [Token(1.0, 1.5), Token(-1.0, 0.5), Token(1.0, 0.5), Token(-1.0, 1.5), Token(0.0, 9.0)]
    drawn += [Token(1.0, 1.2), Token(-1.0, 0.9)]
    drawn = [t._replace(reference_ratio=2.0) for t in drawn]
    logp_K, inputs = inputs_of(drawn)
    observe = grpo(clip_low=LOW, clip_high=HIGH, kl_beta=BETA).observe
    assert observe is not None
    seen = observe(logp_K.detach(), inputs)
    assert seen["clip_share"].tolist() == [1.0, 1.0] + [0.0] * 5
    assert seen["kl"].tolist() == pytest.approx([1 - math.log(2)] * 7, rel=1e-12)

    observe = grpo(kl_beta=0.0).observe
    assert observe is not None
    assert observe(logp_K.detach(), inputs).keys() == {"clip_share"}


@seeded
@given(st.lists(tokens, min_size=1, max_size=8))
def test_the_clipped_share_is_where_the_slope_is_zero(drawn: list[Token]) -> None:
    algorithm = grpo(clip_low=LOW, clip_high=HIGH, kl_beta=0.0)
    assert algorithm.observe is not None
    logp_K, inputs = inputs_of(drawn)
    _, slopes = loss_and_slope(algorithm, logp_K, inputs)
    share = algorithm.observe(logp_K.detach(), inputs)["clip_share"]
    assert share.tolist() == [
        float(slope == 0.0 and token.advantage != 0.0)
        for slope, token in zip(slopes, drawn, strict=True)
    ]


# ---- the credit of a step


def step_inputs(step: tuple[Rows, Lengths], aggregation: Aggregation = "sequence") -> Inputs:
    nothing = [math.nan] * sum(map(sum, step[1]))
    batch = make_batch(*step, old=nothing)
    inputs: Inputs = grpo(aggregation=aggregation, kl_beta=0.0).credit(batch).inputs
    return inputs


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "group"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(made_steps(st.sampled_from([0.0, 0.2, 1.0, 1.2])))
def test_the_inputs_are_those_of_the_formula(
    aggregation: Aggregation, step: tuple[Rows, Lengths]
) -> None:
    """(r - mean) / (deviation + 1e-4), and the mean over all completions, in plain Python."""
    rewards, lengths = step
    tokens, number = sum(map(sum, lengths)), sum(map(len, lengths))
    advantages: list[float] = []
    weights: list[float] = []
    for row, sizes in zip(rewards, lengths, strict=True):
        for reward, length in zip(row, sizes, strict=True):
            centred = reward - statistics.fmean(row) if len(set(row)) > 1 else 0.0
            advantages += [centred / (statistics.stdev(row) + 1e-4)] * length
            mean = {
                "token": 1 / tokens,
                "sequence": 1 / length / number,
                "constant": 1 / (number * LIMIT),
                "group": 1 / sum(sizes) / len(rewards),
            }[aggregation]
            weights += [mean] * length

    inputs = step_inputs(step, aggregation)
    assert inputs.advantage_K.dtype == inputs.weight_K.dtype == torch.float32
    assert inputs.advantage_K.tolist() == pytest.approx(advantages, rel=1e-6, abs=1e-9)
    assert inputs.weight_K.tolist() == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "group"])
def test_on_policy_without_a_reference_it_has_the_gradient_of_gpg(aggregation: Aggregation) -> None:
    """With `group_std` and no correction for groups without signal."""
    logp_K = logp_of(VARIED[1])
    algorithm = gpg(f_norm="group_std", age="off", aggregation=aggregation)
    loss = algorithm.token_loss(logp_K, algorithm.credit(make_batch(*VARIED)).inputs).sum()
    (expected,) = torch.autograd.grad(loss, logp_K)
    ours = grpo(kl_beta=0.0).token_loss(logp_K, step_inputs(VARIED, aggregation)).sum()
    (slope,) = torch.autograd.grad(ours, logp_K)
    assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-12)


def test_equal_rewards_give_exactly_nothing_and_are_run_for_the_reference_only() -> None:
    """2.9 eight times is where centring leaves a residue."""
    step = ([[2.9] * 8], [[2, 1, 1, 1, 3, 1, 0, 1]])
    logp_K = logp_of(step[1])
    old = (logp_K.detach() - 0.5).tolist()
    reference = (logp_K.detach() - math.log(2)).tolist()
    batch = make_batch(*step, old=old, reference=reference)

    without = grpo(kl_beta=0.0)
    credit = without.credit(batch)
    assert not credit.trained_P_G.any()
    values, slopes = loss_and_slope(without, logp_K, credit.inputs)
    assert not any(values)
    assert not any(slopes)

    pulled = grpo(kl_beta=BETA)
    credit = pulled.credit(batch)
    assert credit.trained_P_G.tolist() == [[n > 0 for n in step[1][0]]]
    values, _ = loss_and_slope(pulled, logp_K, credit.inputs)
    assert sum(values) == pytest.approx(7 / 8 * BETA * (math.log(2) - 0.5), rel=1e-6)


def test_the_pull_to_the_reference_runs_over_all_completions() -> None:
    """Two groups, one without signal: N = 4 for both, one token each, so a quarter of beta * k3 for every token."""
    step = ([[1.0, 0.0], [1.0, 1.0]], [[1, 1], [1, 1]])
    logp_K = logp_of(step[1])
    reference = (logp_K.detach() + math.log(2)).tolist()
    algorithm = grpo(kl_beta=BETA)
    credit = algorithm.credit(make_batch(*step, old=[math.nan] * 4, reference=reference))
    _, slopes = loss_and_slope(algorithm, logp_K, credit.inputs)
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    pull = BETA * (1 - 2.0)
    expected = [(-a + pull) / 4 for a in (advantage, -advantage, 0.0, 0.0)]
    assert slopes == pytest.approx(expected, rel=1e-6)
    assert credit.trained_P_G.all()


def test_an_answer_with_the_mean_reward_is_run_for_the_reference_only() -> None:
    batch = make_batch([[0.0, 0.5, 1.0]], [[1, 1, 1]], old=[-1.0] * 3, reference=[-1.0] * 3)
    assert grpo(kl_beta=0.0).credit(batch).trained_P_G.tolist() == [[True, False, True]]
    assert grpo(kl_beta=0.04).credit(batch).trained_P_G.tolist() == [[True, True, True]]


def test_a_group_turned_round_keeps_its_numbers() -> None:
    turned = ([row[::-1] for row in VARIED[0]], [sizes[::-1] for sizes in VARIED[1]])
    plain, changed = step_inputs(VARIED), step_inputs(turned)
    rows, turned_rows = token_rows(VARIED[1]), token_rows(turned[1])
    for row in range(12):
        place = row // 3 * 3 + 2 - row % 3
        for one, other in zip(plain[:2], changed[:2], strict=True):
            assert torch.allclose(one[rows == row], other[turned_rows == place], rtol=1e-6)


def test_a_process_sees_the_denominators_of_all() -> None:
    first, second = taken(VARIED, [0, 1]), taken(VARIED, [2, 3])
    parts = []
    for part in (first, second):
        nothing = [math.nan] * sum(map(sum, part[1]))
        batch = make_batch(*part, step=VARIED, old=nothing)
        parts.append(grpo(kl_beta=0.0).credit(batch).inputs)
    whole = step_inputs(VARIED)
    for name in ("advantage_K", "weight_K"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))


# ---- what it needs


def test_a_reference_is_needed_only_if_it_pulls() -> None:
    assert grpo().needs == {"old_logp", "reference_logp"}
    assert grpo(kl_beta=0.0).needs == {"old_logp"}
    assert (grpo().updates, grpo(updates=3).updates) == (1, 3)
    assert grpo().samples
    with pytest.raises(AssertionError, match="old_logp"):
        grpo(kl_beta=0.0).credit(make_batch(*VARIED))
    with pytest.raises(AssertionError, match="reference_logp"):
        grpo().credit(make_batch([[1.0, 0.0]], [[1, 1]], old=[-1.0, -1.0]))


def test_there_is_no_alpha() -> None:
    batch = make_batch([[1.0, 0.0], [1.0, 1.0]], [[1, 1], [1, 1]], old=[-1.0] * 4)
    assert grpo(kl_beta=0.0).credit(batch).metrics == {"alpha": None}
