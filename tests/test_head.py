"""The head against log_softmax under autograd: loss, gradient, entropy; and what it never holds."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpg_vl.algorithms.clipped import Inputs as GrpoInputs
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.linear import Inputs as SftInputs
from gpg_vl.algorithms.sft import sft
from gpg_vl.models import head
from gpg_vl.models.head import (
    Objective,
    fused_head,
    sampling_logits,
    score_tokens,
    with_gradient,
)

TOKENS, HIDDEN, VOCABULARY = 11, 6, 40
NEVER = torch.zeros(VOCABULARY, dtype=torch.bool)
NEVER[[3, 17]] = True


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, coefficients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype)
    targets = torch.randint(4, 16, (TOKENS,), generator=generator)
    coefficients = torch.randn(TOKENS, generator=generator, dtype=dtype)
    coefficients[4] = 0.0
    return hidden.requires_grad_(), weight.requires_grad_(), targets, coefficients


def by_autograd(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log pi and entropy as torch computes them from the full logits."""
    logits = (hidden @ weight.T / temperature).masked_fill(NEVER, -torch.inf)
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(targets), distribution.entropy()


class Weights(NamedTuple):
    weight_K: Tensor


def weighted_loss(logp_K: Tensor, inputs: Weights) -> Tensor:
    return -(inputs.weight_K * logp_K)


def weighted(weights_K: Tensor) -> Objective:
    """The sum of -weight * log pi, the loss of GPG."""
    return Objective(inputs=Weights(weights_K), token_loss=weighted_loss)


def small_tiles(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setitem(head.TILE_ELEMENTS, "cpu", tokens * VOCABULARY)


@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradient_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, tile: int, temperature: float
) -> None:
    small_tiles(monkeypatch, tile)
    hidden, weight, targets, coefficients = problem()
    logp, entropy = by_autograd(hidden, weight, targets, temperature)
    loss = -(coefficients * logp).sum()
    expected = torch.autograd.grad(loss, [hidden, weight])
    output = fused_head(
        hidden, weight, targets, weighted(coefficients), NEVER, temperature=temperature
    )
    ours = torch.autograd.grad(output.loss, [hidden, weight])
    assert torch.allclose(output.loss, loss, atol=1e-12)
    assert torch.allclose(output.logp_K, logp, atol=1e-12)
    assert torch.allclose(output.entropy_K, entropy, atol=1e-12)
    assert not output.logp_K.requires_grad
    assert not output.entropy_K.requires_grad
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# ---- losses that are not linear in log pi


LENGTHS = (3, 1, 5, 2)
"""Of the answers that the tokens belong to, for losses of whole answers."""


class SequenceInputs(NamedTuple):
    advantage_K: Tensor
    weight_K: Tensor
    old_logp_K: Tensor
    answer_K: Tensor
    """The answer that each token belongs to."""


def sequence_ratio_loss(logp_K: Tensor, inputs: SequenceInputs) -> Tensor:
    """The ratio of an answer is the geometric mean of its tokens' ratios, clipped (GSPO, arXiv:2507.18071, eq. 5)."""
    answers = int(inputs.answer_K.max()) + 1 if len(inputs.answer_K) else 0
    sums = logp_K.new_zeros(answers).index_add(0, inputs.answer_K, logp_K - inputs.old_logp_K)
    counts = torch.bincount(inputs.answer_K, minlength=answers).to(logp_K)
    ratio_K = (sums / counts).exp()[inputs.answer_K]
    clipped_K = ratio_K.clamp(0.8, 1.2)
    smaller_K = torch.minimum(ratio_K * inputs.advantage_K, clipped_K * inputs.advantage_K)
    return -inputs.weight_K * smaller_K


def random_numbers(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, generator=generator, dtype=torch.float64)


GAPS = torch.tensor([0.5, -0.6, 0.05, 0.5, -0.6, -0.05, 0.3, 0.0, -0.3, 0.1, -0.1]).double()
"""log (pi / pi_old) of each token: ratios beyond both clips of 0.2 and between them."""
SIGNS = torch.tensor([1.0, 1, 1, -1, -1, -1, 1, 1, -1, 0, -1]).double()


def objective_of(kind: str, logp: Tensor) -> tuple[Objective, Callable[[Tensor], Tensor]]:
    """An objective of the tokens with these log-probs, and its loss written out once more."""
    weight = random_numbers(2).abs() + 0.1
    advantage = SIGNS * (random_numbers(3).abs() + 0.2)
    old = (logp - GAPS).detach()
    reference = (logp + 0.4 * random_numbers(4)).detach()

    if kind == "sft":
        inputs: NamedTuple = SftInputs(weight)
        return Objective(inputs, sft().token_loss), lambda x: -(weight * x).sum()

    if kind == "grpo":
        algorithm = grpo(clip_low=0.2, clip_high=0.25, kl_beta=0.3, updates=2)
        inputs = GrpoInputs(advantage, weight, old, reference)

        def written_out(x: Tensor) -> Tensor:
            total = x.new_zeros(())
            for k in range(TOKENS):
                ratio = torch.exp(x[k] - old[k])
                held = 0.8 if ratio < 0.8 else 1.25 if ratio > 1.25 else ratio
                surrogate = min(ratio * advantage[k], held * advantage[k], key=Tensor.item)
                gap = reference[k] - x[k]
                total = total + weight[k] * (0.3 * (gap.exp() - gap - 1) - surrogate)
            return total

        return Objective(inputs, algorithm.token_loss), written_out

    answer = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    sequence_inputs = SequenceInputs(advantage, weight, old, answer)

    def by_answer(x: Tensor) -> Tensor:
        total, start = x.new_zeros(()), 0
        for length in LENGTHS:
            part = slice(start, start + length)
            ratio = (x[part] - old[part]).mean().exp()
            for k in range(start, start + length):
                pair = (ratio * advantage[k], ratio.clamp(0.8, 1.2) * advantage[k])
                total = total - weight[k] * min(pair, key=Tensor.item)
            start += length
        return total

    return Objective(sequence_inputs, sequence_ratio_loss, whole_completions=True), by_answer


@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("kind", ["sft", "grpo", "sequence ratio"])
def test_any_loss_has_the_value_and_the_gradient_of_autograd(
    monkeypatch: pytest.MonkeyPatch, kind: str, tile: int
) -> None:
    """Ratios far from 1, both clips active, both signs of the advantage, a divergence; an answer in several tiles."""
    small_tiles(monkeypatch, tile)
    hidden, weight, targets, _ = problem()
    logp, entropy = by_autograd(hidden, weight, targets, 0.7)
    objective, written_out = objective_of(kind, logp)
    loss = written_out(logp)
    expected = torch.autograd.grad(loss, [hidden, weight])
    assert min(gradient.norm() for gradient in expected) > 1e-2

    output = fused_head(hidden, weight, targets, objective, NEVER, temperature=0.7)
    ours = torch.autograd.grad(output.loss, [hidden, weight])
    assert torch.allclose(output.loss, loss, atol=1e-12, rtol=0)
    assert torch.allclose(output.logp_K, logp, atol=1e-12, rtol=0)
    assert torch.allclose(output.entropy_K, entropy, atol=1e-12, rtol=0)
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_the_problem_has_every_case_of_the_clip() -> None:
    """Of each sign of advantage a ratio above the clip, one below it, and one between."""
    ratio = GAPS.exp()
    for sign in (1, -1):
        of_sign = ratio[sign == SIGNS]
        assert (of_sign > 1.25).any()
        assert (of_sign < 0.8).any() or sign == 1
        assert ((of_sign > 0.8) & (of_sign < 1.25)).any()
    assert (ratio[SIGNS == 1] < 0.8).any()


def test_where_no_old_log_prob_is_known_the_slope_is_that_of_the_policy_gradient() -> None:
    """NaN: the ratio is 1, so the loss is -weight * advantage, and its gradient that of GPG's."""
    hidden, weight, targets, _ = problem()
    weights, advantage = random_numbers(2).abs(), random_numbers(3)
    inputs = GrpoInputs(
        advantage, weights, torch.full_like(weights, torch.nan), torch.zeros_like(weights)
    )
    objective = Objective(inputs, grpo(kl_beta=0.0).token_loss)
    logp = by_autograd(hidden, weight, targets, 1.0)[0]
    expected = torch.autograd.grad(-(weights * advantage * logp).sum(), [hidden, weight])

    output = fused_head(hidden, weight, targets, objective, NEVER, temperature=1.0)
    assert torch.allclose(output.loss, -(weights * advantage).sum(), atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(output.loss, [hidden, weight]), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "token_loss,told",
    [
        (lambda logp_K, inputs: logp_K.sum(), r"returned a tensor of shape \(\)\. It must"),
        (lambda logp_K, inputs: logp_K[:, None], r"returned a tensor of shape \(\d+, 1\)\."),
        (
            lambda logp_K, inputs: inputs.weight_K * 2,
            r"of shape \(\d+,\) that does not depend on them\. It must return one loss per token",
        ),
        (lambda logp_K, inputs: logp_K.detach(), "that does not depend on them"),
    ],
    ids=["a sum", "two axes", "weights alone", "cut off"],
)
def test_a_loss_that_is_none_of_the_tokens_is_refused(
    token_loss: Callable[[Tensor, Weights], Tensor], told: str, whole: bool
) -> None:
    hidden, weight, targets, coefficients = problem()
    objective = Objective(Weights(coefficients), token_loss, whole_completions=whole)
    with pytest.raises(ValueError, match=f"token_loss was given {TOKENS} log-probs and .*{told}"):
        fused_head(hidden, weight, targets, objective, NEVER, temperature=1.0)


def test_a_loss_of_single_tokens_is_never_shown_more_than_a_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_tiles(monkeypatch, 4)
    hidden, weight, targets, coefficients = problem()
    shown: list[int] = []

    def counting(logp_K: Tensor, inputs: Weights) -> Tensor:
        shown.append(len(logp_K))
        return weighted_loss(logp_K, inputs)

    for whole, expected in ((False, [4, 4, 3]), (True, [TOKENS])):
        shown.clear()
        objective = Objective(Weights(coefficients), counting, whole_completions=whole)
        fused_head(hidden, weight, targets, objective, NEVER, temperature=1.0)
        assert shown == expected


# ---- what the head is made of


def test_the_factor_of_a_loss_scaler_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """(k * loss).backward() is k times the gradient, and gradients of several passes add up."""
    small_tiles(monkeypatch, 4)
    hidden, weight, targets, coefficients = problem()
    plain = torch.autograd.grad(
        fused_head(hidden, weight, targets, weighted(coefficients), NEVER, temperature=1.0).loss,
        weight,
    )[0]
    for k in (1024.0, 3.0):
        (
            k
            * fused_head(
                hidden, weight, targets, weighted(coefficients), NEVER, temperature=1.0
            ).loss
        ).backward()
    assert torch.allclose(weight.grad, 1027 * plain, rtol=1e-12)


def test_tied_weights_get_the_gradient_of_both_uses() -> None:
    _, weight, targets, coefficients = problem()
    ids = torch.arange(TOKENS)
    expected = torch.autograd.grad(
        -(coefficients * by_autograd(weight[ids].tanh(), weight, targets, 1.0)[0]).sum(), weight
    )
    output = fused_head(
        weight[ids].tanh(), weight, targets, weighted(coefficients), NEVER, temperature=1.0
    )
    assert torch.allclose(torch.autograd.grad(output.loss, weight)[0], expected[0], atol=1e-12)


def test_a_frozen_head_costs_no_gradient_of_its_own() -> None:
    hidden, weight, targets, coefficients = problem()
    expected = torch.autograd.grad(
        -(coefficients * by_autograd(hidden, weight, targets, 1.0)[0]).sum(), hidden
    )[0]
    frozen = weight.detach()
    widest = Widest(VOCABULARY)
    with widest:
        output = fused_head(hidden, frozen, targets, weighted(coefficients), NEVER, temperature=1.0)
        (ours,) = torch.autograd.grad(output.loss, hidden)
    assert torch.allclose(ours, expected, atol=1e-12)
    assert widest.weight_sized == 0
    with torch.no_grad():
        assert not fused_head(
            hidden, weight, targets, weighted(coefficients), NEVER, temperature=1.0
        ).loss.requires_grad


def test_in_bfloat16_sums_are_kept_in_float32() -> None:
    """Under autocast, many tiles: the gradient of the weights is as exact as rounded operands allow, tile by tile."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4096, 32, generator=generator).requires_grad_()
    weight = (torch.randn(64, 32, generator=generator) * 0.3).requires_grad_()
    targets = torch.randint(0, 64, (4096,), generator=generator)
    coefficients = torch.randn(4096, generator=generator)
    never = torch.zeros(64, dtype=torch.bool)
    exact = torch.autograd.grad(
        fused_head(hidden, weight, targets, weighted(coefficients), never, temperature=1.0).loss,
        weight,
    )[0]
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setitem(head.TILE_ELEMENTS, "cpu", 16 * 64)
        rounded = fused_head(
            hidden, weight, targets, weighted(coefficients), never, temperature=1.0
        )
    assert rounded.logp_K.dtype == torch.float32
    error = (torch.autograd.grad(rounded.loss, weight)[0] - exact).norm() / exact.norm()
    assert 1e-4 < error < 6e-3


class Widest(TorchDispatchMode):
    """Watches every tensor that is made: the most rows of one that is as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0
        self.weight_sized = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            wide = (
                isinstance(tensor, Tensor)
                and tensor.dim() == 2
                and tensor.shape[1] == self.vocabulary
            )
            if wide and len(tensor) != HIDDEN:  # the weights turned
                self.rows = max(self.rows, len(tensor))
            self.weight_sized += isinstance(tensor, Tensor) and tensor.shape == (
                self.vocabulary,
                HIDDEN,
            )
        return out


@pytest.mark.parametrize("which", ["tokens", "whole completions", "scores"])
def test_no_tensor_of_tokens_by_vocabulary_is_larger_than_a_tile(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    small_tiles(monkeypatch, 3)
    hidden, weight, targets, coefficients = problem()
    objective = weighted(coefficients)._replace(whole_completions=which == "whole completions")
    with Widest(VOCABULARY) as seen:
        if which == "scores":
            score_tokens(hidden, weight, targets, NEVER, temperature=0.7)
        else:
            fused_head(hidden, weight, targets, objective, NEVER, temperature=0.7).loss.backward()
    assert seen.rows == 3
    with Widest(VOCABULARY) as naive:
        by_autograd(hidden, weight, targets, 0.7)[0].sum().backward()
    assert naive.rows == TOKENS, "the watch sees what the ordinary way makes"


def test_scores_are_those_of_the_loss_and_carry_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_tiles(monkeypatch, 4)
    hidden, weight, targets, _ = problem()
    logp, entropy = by_autograd(hidden, weight, targets, 0.7)
    scores = score_tokens(hidden, weight, targets, NEVER, temperature=0.7)
    assert torch.allclose(scores.logp_K, logp, atol=1e-12, rtol=0)
    assert torch.allclose(scores.entropy_K, entropy, atol=1e-12, rtol=0)
    assert not scores.logp_K.requires_grad
    assert not scores.entropy_K.requires_grad


def test_nothing_of_the_logits_waits_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weak references to the logits of every tile: none is alive while the outputs are."""
    small_tiles(monkeypatch, 3)
    hidden, weight, targets, coefficients = problem()
    made: list[weakref.ref[Tensor]] = []
    real = head._logits

    def watched(*arguments: Any) -> Tensor:
        logits = real(*arguments)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(head, "_logits", watched)
    whole = weighted(coefficients)._replace(whole_completions=True)
    outputs = [
        fused_head(hidden, weight, targets, weighted(coefficients), NEVER, temperature=1.0)[:2],
        fused_head(hidden, weight, targets, whole, NEVER, temperature=1.0)[:2],
        score_tokens(hidden, weight, targets, NEVER, temperature=1.0),
    ]
    assert len(made) == 4 + 8 + 4
    assert all(reference() is None for reference in made)
    assert outputs[0][0].requires_grad


def test_no_tokens_give_no_loss_and_a_zero_gradient() -> None:
    hidden, weight, targets, coefficients = problem()
    output = fused_head(
        hidden[:0], weight, targets[:0], weighted(coefficients[:0]), NEVER, temperature=1.0
    )
    assert output.loss.item() == 0.0
    assert torch.count_nonzero(torch.autograd.grad(output.loss, weight)[0]) == 0


def test_a_formed_gradient_is_handed_out_once() -> None:
    x = torch.ones(3, requires_grad=True)
    loss = with_gradient(torch.tensor(2.0), [x], [torch.arange(3.0)])
    assert torch.autograd.grad(loss, x, retain_graph=True)[0].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="can be used only once"):
        torch.autograd.grad(loss, x)


def test_what_is_never_sampled_has_no_probability() -> None:
    hidden, weight, _, _ = problem()
    probability = sampling_logits(hidden, weight, NEVER, temperature=0.5).softmax(dim=-1)
    assert torch.count_nonzero(probability[:, NEVER]) == 0
    expected = (hidden @ weight.T / 0.5).masked_fill(NEVER, -torch.inf).softmax(dim=-1)
    assert torch.allclose(probability, expected, atol=1e-12)
