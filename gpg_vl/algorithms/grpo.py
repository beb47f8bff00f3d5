"""Group Relative Policy Optimization (arXiv:2402.03300, eq. 3 and 4): a clipped ratio, and a pull to the reference.

    loss = sum_i w_i / denominator * sum_t [ -min(ratio A_i, clip(ratio, 1 - low, 1 + high) A_i) + kl_beta * k3 ]

with A_i = (r_i - mean of the group) / (its deviation + 1e-4). Both terms run over all completions of the step.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.aggregation import denominator, per_token, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, Need, StepBatch
from gpg_vl.algorithms.choices import Aggregation
from gpg_vl.algorithms.ratio import k3, log_ratio


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    advantage_K: Tensor
    """A_i of the token's completion, float32."""
    weight_K: Tensor
    """w_i / denominator, float32."""
    old_logp_K: Tensor
    """Under the weights that sampled the token; NaN where those are the current ones."""
    reference_logp_K: Tensor
    """Under the weights the run began with; never read if `kl_beta` is 0."""


def grpo(
    *,
    aggregation: Aggregation = "sequence",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.04,
    updates: int = 1,
) -> Algorithm:
    """GRPO with its switches. DAPO's clip is `clip_high=0.28`, its mean `aggregation="token"`, its `kl_beta` 0.

    aggregation: the mean over the tokens of the step; GRPO's is `sequence`.
    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    kl_beta: weight of the divergence from the reference. With 0 there is none, and answers of advantage 0 are not run.
    updates: optimizer updates on the same answers. With 1 the ratio is 1, except for groups that were carried over.
    """

    def credit(batch: StepBatch) -> Credit:
        old_K, reference_K = batch.old_logp_K, batch.reference_logp_K
        assert old_K is not None, "the trainer computes old_logp for grpo"
        assert reference_K is not None or kl_beta == 0, "and reference_logp if kl_beta is above 0"

        advantage_P_G = advantages(batch.rewards_P_G, f_norm="group_std")
        divisor = denominator(batch.counts, aggregation, max_new_tokens=batch.max_new_tokens)
        weight_P_G = token_weights(batch.lengths_P_G, aggregation) / divisor

        # Without a pull to the reference, an answer of advantage 0 has no gradient at any ratio.
        moved_P_G = (advantage_P_G != 0) | (kl_beta > 0)
        return Credit(
            inputs=Inputs(
                advantage_K=per_token(advantage_P_G, batch.lengths_P_G),
                weight_K=per_token(weight_P_G, batch.lengths_P_G),
                old_logp_K=old_K,
                reference_logp_K=old_K if reference_K is None else reference_K,
            ),
            trained_P_G=moved_P_G & (batch.lengths_P_G > 0),
            metrics={"alpha": None},
        )

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp()
        clipped_K = ratio_K.clamp(1 - clip_low, 1 + clip_high)
        loss_K = -torch.minimum(ratio_K * inputs.advantage_K, clipped_K * inputs.advantage_K)
        if kl_beta > 0:
            loss_K = loss_K + kl_beta * k3(logp_K, inputs.reference_logp_K)
        return inputs.weight_K * loss_K

    def observe(logp_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp()
        above_K = (inputs.advantage_K > 0) & (ratio_K > 1 + clip_high)
        below_K = (inputs.advantage_K < 0) & (ratio_K < 1 - clip_low)
        seen = {"clip_share": (above_K | below_K).to(logp_K.dtype)}
        return seen | ({"kl": k3(logp_K, inputs.reference_logp_K)} if kl_beta > 0 else {})

    needs: set[Need] = {"old_logp", "reference_logp"} if kl_beta > 0 else {"old_logp"}
    return Algorithm(
        credit=credit,
        token_loss=token_loss,
        observe=observe,
        needs=frozenset(needs),
        updates=updates,
    )
