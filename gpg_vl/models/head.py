"""The head: from final hidden states to log-probs, tile by tile, so that no [tokens, vocabulary] tensor outlives a tile.

The GPG loss is linear in log pi and its coefficients are known beforehand, so its gradient is formed while the logits are
still there (`gpg_head`): three matrix products per tile, nothing stored, nothing computed twice. A loss that is not linear in
log pi takes `token_scores`, which computes the logits again in the backward pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpg_vl.algorithms.losses import gpg_loss

TILE_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Most elements of one [tokens, vocabulary] tile by device: 64 and 512 MB in float32. On CUDA each tile costs a pass over the
gradient of the weights, so there are fewer."""

_OUT_OF_REACH = -1e30
"""A logit of a token that is never sampled. Finite, so that probability 0 times it is 0."""


class Scores(NamedTuple):
    """Of each completion token."""

    logp_K: Tensor
    entropy_K: Tensor
    """In nats, of the distribution that the token was drawn from. Without gradient."""


class HeadOutput(NamedTuple):
    """The loss to differentiate, and what to report."""

    loss: Tensor
    logp_K: Tensor
    entropy_K: Tensor


class _FormedGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to the inputs is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("a formed gradient is handed out once; run the forward pass again")
        # the scale of a loss scaler or of an average over ranks arrives here; the buffers are ours, so it goes in place
        return None, None, *(None if g is None else g.mul_(scale.to(g.dtype)) for g in gradients)


def with_gradient(
    value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Tensor:
    """`value` as a scalar that hands `gradients` (times what comes in) to `inputs` in the backward pass, once.

    None says that an input does not take part.
    """
    given = (value.detach(), list(gradients), *inputs)
    result: Tensor = _FormedGradient.apply(*given)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result


def gpg_head(
    hidden_K_H: Tensor,
    weight_V_H: Tensor,
    targets_K: Tensor,
    coefficients_K: Tensor,
    never_sampled_V: Tensor,
    *,
    temperature: float,
) -> HeadOutput:
    """- sum of coefficients_K * log pi, with its gradient formed here. Log-probs and entropies carry none.

    Products are computed in the dtype of autocast, or else of the hidden states; sums in float32 at least.
    """
    wants_hidden, wants_weight = hidden_K_H.requires_grad, weight_V_H.requires_grad
    form = torch.is_grad_enabled() and (wants_hidden or wants_weight)
    compute = compute_dtype(hidden_K_H)
    wide = torch.promote_types(compute, torch.float32)
    with torch.no_grad(), torch.autocast(hidden_K_H.device.type, enabled=False):
        hidden, weight = hidden_K_H.to(compute), weight_V_H.to(compute)
        coefficients_K = coefficients_K.to(wide)
        grad_hidden = torch.empty_like(hidden_K_H) if form and wants_hidden else None
        grad_weight = (
            torch.zeros(weight.shape, dtype=wide, device=weight.device)
            if form and wants_weight
            else None
        )
        scores = []
        for part in _tiles(hidden, len(weight)):
            logits_K_V = _logits(hidden[part], weight, never_sampled_V, temperature, wide)
            logp, entropy, normalizer = _scores_of(logits_K_V, targets_K[part])
            scores.append((logp, entropy))
            if form:
                slope = _slope(
                    logits_K_V, normalizer, targets_K[part], coefficients_K[part] / temperature
                )
                if grad_hidden is not None:
                    grad_hidden[part] = (slope.to(weight.dtype) @ weight).to(grad_hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, slope, hidden[part])
            del logits_K_V
        logp_K, entropy_K = _joined(scores, hidden, wide)
        loss = gpg_loss(logp_K, coefficients_K).loss
    if form:
        inputs = [(hidden_K_H, grad_hidden), (weight_V_H, grad_weight)]
        kept = [(x, g.to(x.dtype)) for x, g in inputs if g is not None]
        loss = with_gradient(loss, [x for x, _ in kept], [g for _, g in kept])
    return HeadOutput(loss, logp_K, entropy_K)


def token_scores(
    hidden_K_H: Tensor,
    weight_V_H: Tensor,
    targets_K: Tensor,
    never_sampled_V: Tensor,
    *,
    temperature: float,
) -> Scores:
    """log pi of each token, differentiable: the backward pass computes the logits again. For losses not linear in it."""
    compute = compute_dtype(hidden_K_H)
    given = (hidden_K_H, weight_V_H, targets_K, never_sampled_V, temperature, compute)
    logp_K, entropy_K = _TokenScores.apply(*given)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return Scores(logp_K, entropy_K)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_K_H: Tensor,
        weight_V_H: Tensor,
        targets_K: Tensor,
        never_V: Tensor,
        temperature: float,
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(compute, torch.float32)
        with torch.autocast(hidden_K_H.device.type, enabled=False):
            hidden, weight = hidden_K_H.to(compute), weight_V_H.to(compute)
            scores = [
                _scores_of(
                    _logits(hidden[part], weight, never_V, temperature, wide), targets_K[part]
                )[:2]
                for part in _tiles(hidden, len(weight))
            ]
            logp_K, entropy_K = _joined(scores, hidden, wide)
        ctx.save_for_backward(hidden_K_H, weight_V_H, targets_K, never_V)
        ctx.temperature, ctx.compute, ctx.wide = temperature, compute, wide
        ctx.mark_non_differentiable(entropy_K)
        return logp_K, entropy_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_K_H, weight_V_H, targets_K, never_V = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden_K_H.device.type, enabled=False):
            hidden, weight = hidden_K_H.to(ctx.compute), weight_V_H.to(ctx.compute)
            grad_hidden = torch.empty_like(hidden_K_H)
            grad_weight = torch.zeros(weight.shape, dtype=ctx.wide, device=weight.device)
            for part in _tiles(hidden, len(weight)):
                logits_K_V = _logits(hidden[part], weight, never_V, ctx.temperature, ctx.wide)
                normalizer = logits_K_V.logsumexp(dim=-1)
                weights_K = -grad_K[part].to(ctx.wide) / ctx.temperature
                slope = _slope(logits_K_V, normalizer, targets_K[part], weights_K)
                grad_hidden[part] = (slope.to(weight.dtype) @ weight).to(grad_hidden.dtype)
                if wants_weight:
                    _add_product(grad_weight, slope, hidden[part])
        return (
            grad_hidden if wants_hidden else None,
            grad_weight.to(weight_V_H.dtype) if wants_weight else None,
            None,
            None,
            None,
            None,
        )


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """What products with `hidden` are computed in: the dtype of autocast, or else its own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def sampling_logits(
    hidden_K_H: Tensor, weight_V_H: Tensor, never_sampled_V: Tensor, *, temperature: float
) -> Tensor:
    """[K, V] logits of the distribution that tokens are drawn from, in float32 at least. For few tokens at a time."""
    wide = torch.promote_types(compute_dtype(hidden_K_H), torch.float32)
    return _logits(hidden_K_H, weight_V_H, never_sampled_V, temperature, wide)


def _tiles(hidden_K_H: Tensor, vocabulary: int) -> list[slice]:
    tokens, device = len(hidden_K_H), hidden_K_H.device.type
    size = max(1, TILE_ELEMENTS.get(device, TILE_ELEMENTS["cpu"]) // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _logits(
    hidden: Tensor, weight: Tensor, never_V: Tensor, temperature: float, wide: torch.dtype
) -> Tensor:
    logits_K_V = (hidden @ weight.T).to(wide)
    if temperature != 1.0:
        logits_K_V /= temperature
    return logits_K_V.masked_fill_(never_V, _OUT_OF_REACH)


def _scores_of(logits_K_V: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log pi of the targets, entropy, and the log of the normalizer."""
    normalizer_K = logits_K_V.logsumexp(dim=-1)
    logp_K = logits_K_V.gather(1, targets_K[:, None])[:, 0] - normalizer_K
    probability_K_V = (logits_K_V - normalizer_K[:, None]).exp_()
    entropy_K = normalizer_K - probability_K_V.mul_(logits_K_V).sum(dim=-1)
    return logp_K, entropy_K, normalizer_K


def _slope(
    logits_K_V: Tensor, normalizer_K: Tensor, targets_K: Tensor, weights_K: Tensor
) -> Tensor:
    """d(- weight * log pi) / d logits, in the place of the logits: weight * (probability - 1 at the target)."""
    slope = logits_K_V.sub_(normalizer_K[:, None]).exp_()
    slope.scatter_add_(1, targets_K[:, None], slope.new_full((len(slope), 1), -1.0))
    return slope.mul_(weights_K[:, None])


def _add_product(total_V_H: Tensor, slope_K_V: Tensor, hidden_K_H: Tensor) -> None:
    """total += slope^T hidden, operands rounded to the dtype of the products, sums not."""
    if hidden_K_H.dtype == total_V_H.dtype:
        total_V_H.addmm_(slope_K_V.T, hidden_K_H)
    elif hidden_K_H.is_cuda:
        total_V_H += torch.mm(
            slope_K_V.to(hidden_K_H.dtype).T, hidden_K_H, out_dtype=total_V_H.dtype
        )
    else:
        total_V_H.addmm_(
            slope_K_V.to(hidden_K_H.dtype).to(total_V_H.dtype).T, hidden_K_H.to(total_V_H.dtype)
        )


def _joined(
    scores: Sequence[tuple[Tensor, Tensor]], like: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    empty = like.new_zeros(0, dtype=dtype)
    return torch.cat([logp for logp, _ in scores] or [empty]), torch.cat(
        [e for _, e in scores] or [empty]
    )
