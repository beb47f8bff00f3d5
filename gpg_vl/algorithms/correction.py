"""Off-policy correction: what a token's loss is multiplied by if other weights than the trainer's have sampled it.

    w = pi / mu,     pi: the trainer's weights that the algorithm counts from, mu: what sampled the token

An engine rounds in another way than the trainer, and a group that was carried over was sampled by older weights. In both
cases the expectation over sampled tokens is one under mu, and w makes it one under pi; its bounds keep the variance small
at the price of some bias. The weight is a constant of the token: it has no gradient.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm, Credit, Critic, StepBatch
from gpg_vl.algorithms.option_types import CorrectionKind

BOUNDS: Mapping[CorrectionKind, tuple[float, float]] = {
    "token_truncate": (0.0, 2.0),
    "token_mask": (0.0, 3.0),
    "sequence_mask": (0.0, 3.0),
    "icepop": (0.5, 5.0),
}
"""(low, high) of a kind unless others are given: those of its authors, or of TRL."""


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    inputs: Any
    """The algorithm's own."""
    sampled_logp_K: Tensor
    """log mu; NaN where nothing was recorded: such a token has weight 1."""
    old_logp_K: Tensor
    """log pi where the algorithm counts from older weights than the current ones; NaN: from the current ones."""
    answer_K: Tensor
    """A number of the completion that the token belongs to."""


def correct(
    algorithm: Algorithm,
    kind: CorrectionKind,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Algorithm:
    """The algorithm with each token's loss multiplied by its weight.

    kind: `none` returns the algorithm itself. `token_truncate`: w, at most `high` (arXiv:2510.18927 calls it TIS).
        `token_mask`: w, or 0 above `high`. `icepop`: w, or 0 outside of low..high (arXiv:2510.18855).
        `sequence_mask`: the ratio of the whole answer, or 0 outside of low..high: unbiased while nothing is cut.
    low, high: bounds; None for those in `BOUNDS`. A token-wise kind other than `icepop` has no lower one.
    """
    if kind == "none":
        return algorithm
    default_low, default_high = BOUNDS[kind]
    bounds = (default_low if low is None else low, default_high if high is None else high)

    def credit(batch: StepBatch) -> Credit:
        inner = algorithm.credit(batch)
        lengths_PG = batch.lengths_P_G.flatten()
        nothing_K = torch.full_like(batch.sampled_logp_K, torch.nan)
        inputs = Inputs(
            inputs=inner.inputs,
            sampled_logp_K=batch.sampled_logp_K,
            old_logp_K=nothing_K if batch.old_logp_K is None else batch.old_logp_K,
            answer_K=torch.arange(len(lengths_PG)).repeat_interleave(lengths_PG),
        )
        return inner._replace(inputs=inputs)

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        weight_K = bounded(log_weights(logp_K, inputs, kind), kind, bounds)
        return weight_K * algorithm.token_loss(logp_K, inputs.inputs)

    def observe(logp_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        log_K = log_weights(logp_K, inputs, kind)
        weight_K = bounded(log_K, kind, bounds)
        seen = {
            "correction_mean": weight_K,
            "correction_cut_share": (weight_K != log_K.exp()).to(logp_K.dtype),
            "correction_kl": torch.expm1(log_K) - log_K,
        }
        return seen | (dict(algorithm.observe(logp_K, inputs.inputs)) if algorithm.observe else {})

    return replace(
        algorithm,
        credit=credit,
        token_loss=token_loss,
        observe=observe,
        whole_completions=algorithm.whole_completions or kind == "sequence_mask",
        critic=algorithm.critic and _unwrap(algorithm.critic),
    )


def _unwrap(critic: Critic) -> Critic:
    """The critic, given `Inputs`. Its loss is not weighed: a value is a forecast, whoever has sampled the token."""
    observe = critic.observe
    return replace(
        critic,
        value_loss=lambda value_K, inputs: critic.value_loss(value_K, inputs.inputs),
        observe=observe and (lambda value_K, inputs: observe(value_K, inputs.inputs)),
    )


def log_weights(logp_K: Tensor, inputs: Inputs, kind: CorrectionKind) -> Tensor:
    """log w of each token, or with `sequence_mask` of its whole completion; no gradient."""
    now_K = logp_K.detach()
    base_K = torch.where(inputs.old_logp_K.isnan(), now_K, inputs.old_logp_K)
    log_K = torch.where(inputs.sampled_logp_K.isnan(), 0.0, base_K - inputs.sampled_logp_K)
    if kind != "sequence_mask":
        return log_K

    _, place_K = inputs.answer_K.unique(return_inverse=True)
    answers = int(place_K.max()) + 1 if len(place_K) else 0
    return log_K.new_zeros(answers).index_add(0, place_K, log_K)[place_K]


def bounded(log_K: Tensor, kind: CorrectionKind, bounds: tuple[float, float]) -> Tensor:
    """The weight of each token, from its log."""
    low, high = bounds
    weight_K = log_K.exp()
    if kind == "token_truncate":
        return weight_K.clamp(max=high)
    kept_K = weight_K <= high
    if kind in ("icepop", "sequence_mask"):
        kept_K &= weight_K >= low
    return torch.where(kept_K, weight_K, 0.0)
