"""Off-policy correction: weights by hand, every kind's bounds, and an expectation under the trainer's weights."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from steps import VARIED, logp_of, make_batch
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm, select, to_dtype
from gpg_vl.algorithms.correction import BOUNDS, correct
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.option_types import CorrectionKind

STEP = ([[1.0, 0.0]], [[2, 3]])
"""One group of two: advantages 1/2 and -1/2, five tokens."""
RATIOS = (0.4, 1.5, 2.5, 6.0, 1.0)
"""pi / mu of the five tokens."""


def slopes(
    algorithm: Algorithm, ratios: Sequence[float] = RATIOS, old: Sequence[float] | None = None
) -> list[float]:
    """d loss / d log pi of each token of STEP, over that of the algorithm without correction."""
    logp_K = logp_of(STEP[1])
    sampled = (logp_K.detach() - torch.tensor(ratios, dtype=torch.float64).log()).tolist()
    batch = make_batch(*STEP, sampled=sampled, old=old)
    loss_K = algorithm.token_loss(logp_K, to_dtype(algorithm.credit(batch).inputs, logp_K))
    (slope_K,) = torch.autograd.grad(loss_K.sum(), logp_K)
    plain = torch.tensor([-0.5 / 5] * 2 + [0.5 / 5] * 3, dtype=torch.float64)
    weights: list[float] = (slope_K / plain).tolist()
    return weights


@pytest.mark.parametrize(
    "kind,expected",
    [
        ("none", [1.0] * 5),
        ("token_truncate", [0.4, 1.5, 2.0, 2.0, 1.0]),
        ("token_mask", [0.4, 1.5, 2.5, 0.0, 1.0]),
        ("icepop", [0.0, 1.5, 2.5, 0.0, 1.0]),
        ("sequence_mask", [0.6, 0.6, 0.0, 0.0, 0.0]),
    ],
)
def test_a_token_is_weighed_within_the_bounds_of_its_kind(
    kind: CorrectionKind, expected: list[float]
) -> None:
    """By hand, with each kind's own bounds. The answers as wholes have 0.4 * 1.5 = 0.6 and 2.5 * 6 = 15."""
    assert slopes(correct(gpg(), kind)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "kind,low,high,expected",
    [
        ("token_truncate", None, 5.0, [0.4, 1.5, 2.5, 5.0, 1.0]),
        ("token_mask", None, 2.0, [0.4, 1.5, 0.0, 0.0, 1.0]),
        ("icepop", 0.3, 2.0, [0.4, 1.5, 0.0, 0.0, 1.0]),
        ("sequence_mask", 0.7, 20.0, [0.0, 0.0, 15.0, 15.0, 15.0]),
    ],
)
def test_bounds_of_ones_own(
    kind: CorrectionKind, low: float | None, high: float, expected: list[float]
) -> None:
    algorithm = correct(gpg(), kind, low=low, high=high)
    assert slopes(algorithm) == pytest.approx(expected, rel=1e-6)


def test_a_token_of_which_nothing_was_recorded_has_weight_one() -> None:
    ratios = [0.4, math.nan, 2.5, math.nan, 1.0]
    assert slopes(correct(gpg(), "token_truncate"), ratios) == pytest.approx(
        [0.4, 1.0, 2.0, 1.0, 1.0], rel=1e-6
    )


def test_a_ratio_of_its_own_counts_from_the_weights_that_sampled() -> None:
    """GRPO's ratio is pi / pi_old; the correction is then pi_old / mu. NaN: the current weights sampled the token."""
    logp = logp_of(STEP[1]).detach()
    old = (logp - math.log(1.1)).tolist()
    known = slopes(correct(grpo(kl_beta=0.0, aggregation="token"), "token_truncate"), old=old)
    fresh = slopes(
        correct(grpo(kl_beta=0.0, aggregation="token"), "token_truncate"), old=[math.nan] * 5
    )
    scale = 1 / (math.sqrt(0.5) + 1e-4)
    weights = [0.4, 1.5, 2.0, 2.0, 1.0]
    assert fresh == pytest.approx([scale * w for w in weights], rel=1e-5)
    moved = [min(ratio / 1.1, 2.0) for ratio in RATIOS]
    assert known == pytest.approx([scale * 1.1 * w for w in moved], rel=1e-5)


def test_what_is_observed() -> None:
    """Mean weight, share of tokens whose ratio was changed, and exp(d) - 1 - d with d = log pi - log mu."""
    algorithm = correct(gpg(), "icepop")
    assert algorithm.observe is not None
    logp_K = logp_of(STEP[1]).detach()
    sampled = (logp_K - torch.tensor(RATIOS, dtype=torch.float64).log()).tolist()
    inputs = algorithm.credit(make_batch(*STEP, sampled=sampled)).inputs
    seen = algorithm.observe(logp_K, to_dtype(inputs, logp_K))
    assert seen["correction_mean"].tolist() == pytest.approx([0, 1.5, 2.5, 0, 1], rel=1e-6)
    assert seen["correction_cut_share"].tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    expected = [ratio - 1 - math.log(ratio) for ratio in RATIOS]
    assert seen["correction_kl"].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)

    of_grpo = correct(grpo(kl_beta=0.0), "icepop").observe
    assert of_grpo is not None
    inputs = correct(grpo(kl_beta=0.0), "icepop").credit(
        make_batch(*STEP, sampled=sampled, old=sampled)
    )
    assert "clip_share" in of_grpo(logp_K, to_dtype(inputs.inputs, logp_K))


def test_without_a_kind_it_is_the_algorithm_itself() -> None:
    algorithm = gpg()
    assert correct(algorithm, "none") is algorithm
    assert correct(algorithm, "sequence_mask").whole_completions
    assert not correct(algorithm, "token_mask").whole_completions
    assert set(BOUNDS) == {"token_truncate", "token_mask", "sequence_mask", "icepop"}


def test_some_of_the_tokens_have_the_loss_of_the_whole() -> None:
    """A tile, and a micro-batch of some answers in another order."""
    logp_K = logp_of(VARIED[1]).detach()
    sampled = (logp_K - 0.3 * torch.sin(torch.arange(len(logp_K)).double())).tolist()
    batch = make_batch(*VARIED, sampled=sampled)
    for kind, index in (
        ("token_truncate", torch.arange(5, 17)),
        ("sequence_mask", torch.cat([torch.arange(8, 12), torch.arange(0, 2)])),
    ):
        algorithm = correct(gpg(), kind)  # type: ignore[arg-type]  # one of the kinds
        inputs = to_dtype(algorithm.credit(batch).inputs, logp_K)
        whole = algorithm.token_loss(logp_K, inputs)
        part = algorithm.token_loss(logp_K[index], select(inputs, index))
        assert torch.allclose(part, whole[index], rtol=1e-12)


# ---- a bandit whose expectation can be written down

LOGITS = torch.tensor([[0.3, -0.2], [0.1, 0.8]], dtype=torch.float64)
"""log pi of two tokens at two places, up to a constant."""
SAMPLING = LOGITS + torch.tensor([[0.4, 0.0], [0.0, 0.3]], dtype=torch.float64)
REWARDS = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): 0.25, (1, 1): 0.5}


def expected_gradient(kind: CorrectionKind, high: float) -> Tensor:
    """The mean of the gradient over all pairs of answers of two tokens, each as likely as `SAMPLING` makes it."""
    algorithm = correct(gpg(age="off", aggregation="constant"), kind, low=0.0, high=high)
    logits = LOGITS.clone().requires_grad_()
    now = logits.log_softmax(dim=1)
    mu = SAMPLING.log_softmax(dim=1)
    total = torch.zeros((), dtype=torch.float64)
    answers = list(REWARDS)
    for pair in itertools.product(answers, answers):
        tokens = [(place, token) for answer in pair for place, token in enumerate(answer)]
        logp_K = torch.stack([now[place, token] for place, token in tokens])
        sampled = [float(mu[place, token]) for place, token in tokens]
        batch = make_batch([[REWARDS[a] for a in pair]], [[2, 2]], sampled=sampled)
        loss_K = algorithm.token_loss(logp_K, to_dtype(algorithm.credit(batch).inputs, logp_K))
        total = total + math.exp(sum(sampled)) * loss_K.sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


def test_the_ratio_of_whole_answers_gives_the_gradient_of_the_trainers_weights() -> None:
    """Two answers of a group have advantages +-(r1 - r2)/2, so the expectation is half of the gradient of the mean reward,
    over the limit of 8 tokens, once the partner is corrected for too: its ratio has the mean 1, its reward has not."""
    logits = LOGITS.clone().requires_grad_()
    now = logits.log_softmax(dim=1)
    probabilities = {a: (now[0, a[0]] + now[1, a[1]]).exp() for a in REWARDS}
    mu = SAMPLING.log_softmax(dim=1)
    sampled = {a: float((mu[0, a[0]] + mu[1, a[1]]).exp()) for a in REWARDS}

    # E over answers from pi, each against a partner from mu, advantage (r - r')/2, two members of N = 2 and 8 tokens each
    partner = sum(sampled[a] * REWARDS[a] for a in REWARDS)
    objective = sum(probabilities[a] * (REWARDS[a] - partner) / 2 for a in REWARDS) / 8
    (expected,) = torch.autograd.grad(-objective, logits)

    corrected = expected_gradient("sequence_mask", 1e9)
    assert torch.allclose(corrected, expected, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(expected_gradient("none", 1.0), expected, rtol=2e-2)
    assert not torch.allclose(expected_gradient("sequence_mask", 1.0), expected, rtol=2e-2)
