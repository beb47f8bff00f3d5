"""The head: from final hidden states to losses, tile by tile, so that no [tokens, vocabulary] tensor outlives a tile.

Whatever an algorithm's loss of a token is, its gradient is formed while the logits of the tile are still there
(`fused_head`): the loss says its slope in log pi, the slope gives the gradient of the logits, and two matrix products give
those of the hidden states and of the weights. Nothing is stored, nothing is computed twice. Only a loss that depends on
the other tokens of its answer needs the log-probs of all of them first, and so a second sweep over the tiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpg_vl.algorithms.algorithm import TokenInputs, select, to_dtype
from gpg_vl.models.blocked import multiply

TILE_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Most elements of one [tokens, vocabulary] tile by device: 64 and 512 MB in float32. On CUDA each tile costs a pass over
the gradient of the weights, so there are fewer."""

_OUT_OF_REACH = -1e30
"""A logit of a token that is never sampled. Finite, so that probability 0 times it is 0."""


class Objective(NamedTuple):
    """The training objective of K completion tokens; see `algorithms.algorithm.Algorithm`."""

    inputs: TokenInputs
    """A NamedTuple of tensors [K]."""
    token_loss: Callable[[Tensor, TokenInputs], Tensor]
    """(logp_K, inputs) -> loss_K."""
    whole_completions: bool = False
    """True: the loss of a token depends on other tokens too, so `token_loss` gets all K at once."""
    value_loss: Callable[[Tensor, TokenInputs], Tensor] | None = None
    """(value_K, inputs) -> loss_K, if there is a critic; see `models.value_head`."""

    def select(self, index: slice) -> "Objective":
        """The objective of some of the tokens."""
        return self._replace(inputs=select(self.inputs, index))


class Scores(NamedTuple):
    """Values of each completion token, without gradient."""

    logp_K: Tensor
    entropy_K: Tensor
    """Entropy in nats of the distribution that the token was sampled from."""


class HeadOutput(NamedTuple):
    """The loss to differentiate, and values to report."""

    loss: Tensor
    """The sum of the tokens' losses."""
    logp_K: Tensor
    entropy_K: Tensor


def fused_head(
    hidden_K_H: Tensor,
    weight_V_H: Tensor,
    targets_K: Tensor,
    objective: Objective,
    never_sampled_V: Tensor,
    *,
    temperature: float,
) -> HeadOutput:
    """The sum of an objective's losses, with its gradient formed here. Log-probs and entropies carry none.

    Products are computed in the dtype of autocast, or else of the hidden states; sums in float32 at least.
    Raises ValueError if the objective's loss is not one number per token that depends on its log-prob.
    """
    head = _Head.of(hidden_K_H, weight_V_H, targets_K, never_sampled_V, temperature)
    wants_gradient = hidden_K_H.requires_grad or weight_V_H.requires_grad
    products = (
        _Products(hidden_K_H, weight_V_H, head)
        if torch.is_grad_enabled() and wants_gradient
        else None
    )

    with torch.no_grad(), torch.autocast(hidden_K_H.device.type, enabled=False):
        # the slopes of such a loss need all log-probs, so compute these in a first sweep
        everything = None
        if objective.whole_completions:
            everything = _loss_and_slope(_score_tiles(head).logp_K, objective)

        losses, scores = [], []
        for tile in head.tiles:
            logits_K_V = head.logits(tile)
            logp_K, entropy_K, normalizer_K = _scores_of(logits_K_V, targets_K[tile])
            scores.append((logp_K, entropy_K))

            loss_K, slope_K = (
                _loss_and_slope(logp_K, objective.select(tile))
                if everything is None
                else (everything[0][tile], everything[1][tile])
            )
            losses.append(loss_K)

            if products is not None:
                products.add(tile, logits_K_V, normalizer_K, slope_K)
            del logits_K_V  # free this tile before the next one is allocated

        joined = _join(scores, head)
        loss = torch.cat(losses or [joined.logp_K]).sum()

    if products is not None:
        loss = products.attach_to(loss)
    return HeadOutput(loss, *joined)


def score_tokens(
    hidden_K_H: Tensor,
    weight_V_H: Tensor,
    targets_K: Tensor,
    never_sampled_V: Tensor,
    *,
    temperature: float,
) -> Scores:
    """log pi and entropy of each token, without gradient."""
    head = _Head.of(hidden_K_H, weight_V_H, targets_K, never_sampled_V, temperature)
    with torch.no_grad(), torch.autocast(hidden_K_H.device.type, enabled=False):
        return _score_tiles(head)


def sampling_logits(
    hidden_K_H: Tensor, weight_V_H: Tensor, never_sampled_V: Tensor, *, temperature: float
) -> Tensor:
    """[K, V] logits of the distribution that tokens are drawn from, in float32 at least. For few tokens at a time.

    weight_V_H: in either layout (`models.blocked`).
    """
    wide = torch.promote_types(compute_dtype(hidden_K_H), torch.float32)
    return _logits(hidden_K_H, weight_V_H, never_sampled_V, temperature, wide)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of products with `hidden`: that of autocast, else its own."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def with_gradient(
    value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Tensor:
    """`value` as a scalar whose backward pass gives `gradients` (times the incoming gradient) to `inputs`. It works once.

    None means that an input gets no gradient.
    """
    given = (value.detach(), list(gradients), *inputs)
    result: Tensor = _FormedGradient.apply(*given)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
    return result


class _FormedGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to the inputs is already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "a formed gradient can be used only once; run the forward pass again"
            )
        # apply the scale of a loss scaler in place, because the buffers belong to us
        scaled = (None if g is None else g.mul_(scale.to(g.dtype)) for g in gradients)
        return None, None, *scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The operands of the head in the dtype of its products, and how the tokens are cut into tiles."""

    hidden: Tensor
    weight: Tensor
    targets_K: Tensor
    never_V: Tensor
    temperature: float
    wide: torch.dtype
    """The dtype of sums."""
    tiles: list[slice]

    @staticmethod
    def of(
        hidden_K_H: Tensor,
        weight_V_H: Tensor,
        targets_K: Tensor,
        never_V: Tensor,
        temperature: float,
    ) -> "_Head":
        compute = compute_dtype(hidden_K_H)
        rows = TILE_ELEMENTS.get(hidden_K_H.device.type, TILE_ELEMENTS["cpu"]) // len(weight_V_H)
        rows = max(1, rows)
        with torch.no_grad():
            hidden, weight = hidden_K_H.to(compute), weight_V_H.to(compute)
        return _Head(
            hidden=hidden,
            weight=weight,
            targets_K=targets_K,
            never_V=never_V,
            temperature=temperature,
            wide=torch.promote_types(compute, torch.float32),
            tiles=[slice(start, start + rows) for start in range(0, len(hidden), rows)],
        )

    def logits(self, tile: slice) -> Tensor:
        return _logits(self.hidden[tile], self.weight, self.never_V, self.temperature, self.wide)


class _Products:
    """The gradients of hidden states and weights, summed tile by tile; None if not trained."""

    def __init__(self, hidden_K_H: Tensor, weight_V_H: Tensor, head: _Head) -> None:
        self._head = head
        self._inputs = [x for x in (hidden_K_H, weight_V_H) if x.requires_grad]
        self._hidden = torch.empty_like(hidden_K_H) if hidden_K_H.requires_grad else None
        self._weight = None
        if weight_V_H.requires_grad:
            self._weight = torch.zeros(weight_V_H.shape, dtype=head.wide, device=weight_V_H.device)

    def add(self, tile: slice, logits_K_V: Tensor, normalizer_K: Tensor, slope_K: Tensor) -> None:
        """`slope_K`: d loss / d log pi. The logits are overwritten."""
        head = self._head
        weights_K = -slope_K / head.temperature
        slope_K_V = _slope_of_logits(logits_K_V, normalizer_K, head.targets_K[tile], weights_K)

        if self._hidden is not None:
            product = slope_K_V.to(head.weight.dtype) @ head.weight
            self._hidden[tile] = product.to(self._hidden.dtype)
        if self._weight is not None:
            _add_product(self._weight, slope_K_V, head.hidden[tile])

    def attach_to(self, loss: Tensor) -> Tensor:
        formed = [g for g in (self._hidden, self._weight) if g is not None]
        cast = [g.to(x.dtype) for x, g in zip(self._inputs, formed, strict=True)]
        return with_gradient(loss, self._inputs, cast)


def _loss_and_slope(logp_K: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The loss of each token, and the derivative of their sum by each log-prob; autograd runs only over these K numbers."""
    with torch.enable_grad():
        leaf_K = logp_K.detach().requires_grad_()
        loss_K = objective.token_loss(leaf_K, to_dtype(objective.inputs, leaf_K))
        if loss_K.shape != logp_K.shape or not loss_K.requires_grad:
            raise ValueError(
                f"token_loss was given {len(logp_K)} log-probs and returned a tensor of shape {tuple(loss_K.shape)}"
                f"{'' if loss_K.requires_grad else ' that does not depend on them'}. It must return one loss per "
                f"token, computed from that token's log-prob."
            )
        (slope_K,) = torch.autograd.grad(loss_K.sum(), leaf_K)
    return loss_K.detach(), slope_K


def _score_tiles(head: _Head) -> Scores:
    scores = []
    for tile in head.tiles:
        logp_K, entropy_K, _ = _scores_of(head.logits(tile), head.targets_K[tile])
        scores.append((logp_K, entropy_K))
    return _join(scores, head)


def _logits(
    hidden: Tensor, weight: Tensor, never_V: Tensor, temperature: float, wide: torch.dtype
) -> Tensor:
    logits_K_V = multiply(hidden, weight).to(wide)
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


def _slope_of_logits(
    logits_K_V: Tensor, normalizer_K: Tensor, targets_K: Tensor, weights_K: Tensor
) -> Tensor:
    """d(- weight * log pi) / d logits, written over the logits: weight * (probability - 1 at the target)."""
    slope = logits_K_V.sub_(normalizer_K[:, None]).exp_()
    slope.scatter_add_(1, targets_K[:, None], slope.new_full((len(slope), 1), -1.0))
    return slope.mul_(weights_K[:, None])


def _add_product(total_V_H: Tensor, slope_K_V: Tensor, hidden_K_H: Tensor) -> None:
    """total += slope^T hidden; operands are rounded to the dtype of products, sums are not."""
    if hidden_K_H.dtype == total_V_H.dtype:
        total_V_H.addmm_(slope_K_V.T, hidden_K_H)
        return

    rounded_K_V = slope_K_V.to(hidden_K_H.dtype)
    if hidden_K_H.is_cuda:
        total_V_H += torch.mm(rounded_K_V.T, hidden_K_H, out_dtype=total_V_H.dtype)
    else:
        total_V_H.addmm_(rounded_K_V.to(total_V_H.dtype).T, hidden_K_H.to(total_V_H.dtype))


def _join(scores: Sequence[tuple[Tensor, Tensor]], head: _Head) -> Scores:
    empty = head.hidden.new_zeros(0, dtype=head.wide)
    logps = [logp_K for logp_K, _ in scores]
    entropies = [entropy_K for _, entropy_K in scores]
    return Scores(torch.cat(logps or [empty]), torch.cat(entropies or [empty]))
