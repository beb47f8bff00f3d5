"""REINFORCE++ (arXiv:2501.03262) and its form with a baseline: advantages of tokens, made standard over the whole step.

    return_it = r_i - kl_beta * sum_{s >= t} (log pi_old - log pi_ref)_is        baseline: step
    return_it = r_i - mean of the group                                          baseline: group
    A_it = (return_it - mean) / deviation,     mean and deviation over all K tokens of the step
    loss = - 1/K sum_i sum_t min(ratio A_it, clip(ratio) A_it)

With `baseline: group` the divergence, if there is one, is a term of the loss (k3), as the authors have it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.aggregation import per_token
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.clipped import Clip, Inputs, surrogate_of
from gpg_vl.algorithms.option_types import Baseline
from gpg_vl.algorithms.whitening import whiten


def reinforce_pp(
    *,
    baseline: Baseline = "step",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    updates: int = 1,
) -> Algorithm:
    """REINFORCE++ with its switches.

    baseline: `step` compares an answer with all of the step; `group` with its group first.
    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    kl_beta: weight of the divergence from the reference: part of the reward (`step`) or of the loss (`group`).
    updates: optimizer updates on the same answers.
    """
    clip = Clip(clip_low, clip_high)

    def credit(batch: StepBatch) -> Credit:
        assert batch.old_logp_K is not None, "the trainer computes old_logp for a clipped ratio"
        assert batch.reference_logp_K is not None or kl_beta == 0, "and reference_logp with kl_beta"

        returns_K = _returns(batch, baseline, kl_beta)
        reference_K = batch.reference_logp_K
        return Credit(
            inputs=Inputs(
                advantage_K=whiten(returns_K, batch).float(),
                weight_K=torch.full_like(returns_K, 1 / max(batch.counts.tokens, 1)).float(),
                old_logp_K=batch.old_logp_K,
                reference_logp_K=batch.old_logp_K if reference_K is None else reference_K,
            ),
            trained_P_G=batch.lengths_P_G > 0,
            metrics={"alpha": None},
        )

    return surrogate_of(
        credit, clip, kl_beta=kl_beta, updates=updates, kl_in_loss=baseline == "group"
    )


def _returns(batch: StepBatch, baseline: Baseline, kl_beta: float) -> Float[Tensor, "K"]:
    """What follows a token, float64."""
    if baseline == "group":
        centred_P_G = advantages(batch.rewards_P_G, f_norm="one")
        return per_token(centred_P_G, batch.lengths_P_G).double()

    returns_K = batch.rewards_P_G.flatten().repeat_interleave(batch.lengths_P_G.flatten())
    if kl_beta > 0:
        assert batch.reference_logp_K is not None
        penalty_K = kl_beta * (batch.sampled_logp_K - batch.reference_logp_K)
        returns_K = returns_K - sums_to_the_end(penalty_K, batch.lengths_P_G)
    return returns_K


def sums_to_the_end(values_K: Float[Tensor, "K"], lengths_P_G: Tensor) -> Float[Tensor, "K"]:
    """For each token the sum from it to the last token of its completion."""
    parts = values_K.split(lengths_P_G.flatten().tolist())
    summed = [part.flip(0).cumsum(0).flip(0) for part in parts]
    return torch.cat(summed) if summed else values_K
