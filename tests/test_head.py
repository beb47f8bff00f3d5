"""The head against log_softmax under autograd: loss, gradient, entropy; and what it never holds."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpg_vl.models import head
from gpg_vl.models.head import gpg_head, sampling_logits, token_scores, with_gradient

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
    output = gpg_head(hidden, weight, targets, coefficients, NEVER, temperature=temperature)
    ours = torch.autograd.grad(output.loss, [hidden, weight])
    assert torch.allclose(output.loss, loss, atol=1e-12)
    assert torch.allclose(output.logp_K, logp, atol=1e-12)
    assert torch.allclose(output.entropy_K, entropy, atol=1e-12)
    assert not output.logp_K.requires_grad
    assert not output.entropy_K.requires_grad
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 4, 100])
def test_scores_that_are_differentiable_have_the_gradient_of_any_loss(
    monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    """A clipped ratio with a square: not linear in log pi."""
    small_tiles(monkeypatch, tile)
    hidden, weight, targets, coefficients = problem()

    def loss_of(logp: Tensor) -> Tensor:
        return (
            -torch.minimum(coefficients * (logp + 3).exp(), coefficients * 1.2).sum()
            + logp.square().mean()
        )

    expected = torch.autograd.grad(
        loss_of(by_autograd(hidden, weight, targets, 0.7)[0]), [hidden, weight]
    )
    ours = torch.autograd.grad(
        loss_of(token_scores(hidden, weight, targets, NEVER, temperature=0.7)[0]), [hidden, weight]
    )
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_the_factor_of_a_loss_scaler_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """(k * loss).backward() is k times the gradient, and gradients of several passes add up."""
    small_tiles(monkeypatch, 4)
    hidden, weight, targets, coefficients = problem()
    plain = torch.autograd.grad(
        gpg_head(hidden, weight, targets, coefficients, NEVER, temperature=1.0).loss, weight
    )[0]
    for k in (1024.0, 3.0):
        (
            k * gpg_head(hidden, weight, targets, coefficients, NEVER, temperature=1.0).loss
        ).backward()
    assert torch.allclose(weight.grad, 1027 * plain, rtol=1e-12)


def test_tied_weights_get_the_gradient_of_both_uses() -> None:
    _, weight, targets, coefficients = problem()
    ids = torch.arange(TOKENS)
    expected = torch.autograd.grad(
        -(coefficients * by_autograd(weight[ids].tanh(), weight, targets, 1.0)[0]).sum(), weight
    )
    output = gpg_head(weight[ids].tanh(), weight, targets, coefficients, NEVER, temperature=1.0)
    assert torch.allclose(torch.autograd.grad(output.loss, weight)[0], expected[0], atol=1e-12)


def test_a_frozen_head_costs_no_gradient_of_its_own() -> None:
    hidden, weight, targets, coefficients = problem()
    expected = torch.autograd.grad(
        -(coefficients * by_autograd(hidden, weight, targets, 1.0)[0]).sum(), hidden
    )[0]
    frozen = weight.detach()
    widest = Widest(VOCABULARY)
    with widest:
        output = gpg_head(hidden, frozen, targets, coefficients, NEVER, temperature=1.0)
        (ours,) = torch.autograd.grad(output.loss, hidden)
    assert torch.allclose(ours, expected, atol=1e-12)
    assert widest.weight_sized == 0
    with torch.no_grad():
        assert not gpg_head(
            hidden, weight, targets, coefficients, NEVER, temperature=1.0
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
        gpg_head(hidden, weight, targets, coefficients, never, temperature=1.0).loss, weight
    )[0]
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setitem(head.TILE_ELEMENTS, "cpu", 16 * 64)
        rounded = gpg_head(hidden, weight, targets, coefficients, never, temperature=1.0)
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


@pytest.mark.parametrize("which", ["gpg_head", "token_scores"])
def test_no_tensor_of_tokens_by_vocabulary_is_larger_than_a_tile(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    small_tiles(monkeypatch, 3)
    hidden, weight, targets, coefficients = problem()
    with Widest(VOCABULARY) as seen:
        if which == "gpg_head":
            gpg_head(hidden, weight, targets, coefficients, NEVER, temperature=0.7).loss.backward()
        else:
            token_scores(hidden, weight, targets, NEVER, temperature=0.7).logp_K.sum().backward()
    assert seen.rows == 3
    with Widest(VOCABULARY) as naive:
        by_autograd(hidden, weight, targets, 0.7)[0].sum().backward()
    assert naive.rows == TOKENS, "the watch sees what the ordinary way makes"


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
    outputs = [
        gpg_head(hidden, weight, targets, coefficients, NEVER, temperature=1.0),
        token_scores(hidden, weight, targets, NEVER, temperature=1.0),
    ]
    assert len(made) == 8
    assert all(reference() is None for reference in made)
    assert all(output[1].shape == (TOKENS,) for output in outputs)


def test_no_tokens_give_no_loss_and_a_zero_gradient() -> None:
    hidden, weight, targets, coefficients = problem()
    output = gpg_head(hidden[:0], weight, targets[:0], coefficients[:0], NEVER, temperature=1.0)
    assert output.loss.item() == 0.0
    assert torch.count_nonzero(torch.autograd.grad(output.loss, weight)[0]) == 0


def test_a_formed_gradient_is_handed_out_once() -> None:
    x = torch.ones(3, requires_grad=True)
    loss = with_gradient(torch.tensor(2.0), [x], [torch.arange(3.0)])
    assert torch.autograd.grad(loss, x, retain_graph=True)[0].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="handed out once"):
        torch.autograd.grad(loss, x)


def test_what_is_never_sampled_has_no_probability() -> None:
    hidden, weight, _, _ = problem()
    probability = sampling_logits(hidden, weight, NEVER, temperature=0.5).softmax(dim=-1)
    assert torch.count_nonzero(probability[:, NEVER]) == 0
    expected = (hidden @ weight.T / 0.5).masked_fill(NEVER, -torch.inf).softmax(dim=-1)
    assert torch.allclose(probability, expected, atol=1e-12)
