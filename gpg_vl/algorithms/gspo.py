"""Group Sequence Policy Optimization (arXiv:2507.18071, eq. 5 to 7): one ratio per answer, clipped as a whole.

    s_i = exp( 1/|o_i| sum_t log (pi / pi_old)(o_it) )
    loss = - 1/N sum_i min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)

A_i is that of GRPO.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.aggregation import per_token, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.clipped import Clip
from gpg_vl.algorithms.ratio import log_ratio


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    advantage_K: Tensor
    """A_i of the token's completion, float32."""
    weight_K: Tensor
    """1 / (N |o_i|), float32."""
    old_logp_K: Tensor
    """Under the weights that sampled the token; NaN where those are the current ones."""
    answer_K: Tensor
    """A number of the completion that the token belongs to."""


def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4, updates: int = 1) -> Algorithm:
    """GSPO with its switches.

    clip_low, clip_high: how far the ratio of an answer, a geometric mean over its tokens, may move from 1.
    updates: optimizer updates on the same answers. With 1 the ratio is 1, except for groups that were carried over.
    """
    clip = Clip(clip_low, clip_high)

    def credit(batch: StepBatch) -> Credit:
        assert batch.old_logp_K is not None, "the trainer computes old_logp for a clipped ratio"
        advantage_P_G = advantages(batch.rewards_P_G, f_norm="group_std")
        weight_P_G = token_weights(batch.lengths_P_G, "sequence") / batch.counts.completions
        lengths_PG = batch.lengths_P_G.flatten()
        return Credit(
            inputs=Inputs(
                advantage_K=per_token(advantage_P_G, batch.lengths_P_G),
                weight_K=per_token(weight_P_G, batch.lengths_P_G),
                old_logp_K=batch.old_logp_K,
                answer_K=torch.arange(len(lengths_PG)).repeat_interleave(lengths_PG),
            ),
            trained_P_G=(advantage_P_G != 0) & (batch.lengths_P_G > 0),
            metrics={"alpha": None},
        )

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        ratio_K = answer_ratios(logp_K, inputs)
        return -inputs.weight_K * clip.surrogate(ratio_K, inputs.advantage_K)

    def observe(logp_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        exceeded_K = clip.exceeded(answer_ratios(logp_K, inputs), inputs.advantage_K)
        return {"clip_share": exceeded_K.to(logp_K.dtype)}

    return Algorithm(
        credit=credit,
        token_loss=token_loss,
        observe=observe,
        needs=frozenset({"old_logp"}),
        updates=updates,
        whole_completions=True,
    )


def answer_ratios(logp_K: Tensor, inputs: Inputs) -> Tensor:
    """s_i of each token's completion: the geometric mean of the ratios of its tokens. Takes whole completions."""
    _, place_K = inputs.answer_K.unique(return_inverse=True)
    answers = int(place_K.max()) + 1 if len(place_K) else 0
    lengths = torch.bincount(place_K, minlength=answers).to(logp_K)

    sums = logp_K.new_zeros(answers).index_add(0, place_K, log_ratio(logp_K, inputs.old_logp_K))
    return (sums / lengths).exp()[place_K]
