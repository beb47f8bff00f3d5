"""Clipped importance sampling, CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4): the weight is clipped, and no gradient is cut.

    loss = - 1/K sum_i sum_t min(ratio, ratio_max) without gradient * A_i * log pi(o_it)

A_i is that of GRPO.
"""

from collections.abc import Mapping

from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.aggregation import per_token, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.clipped import Inputs
from gpg_vl.algorithms.ratio import log_ratio


def cispo(*, ratio_max: float = 5.0, updates: int = 1) -> Algorithm:
    """CISPO with its switches.

    ratio_max: the largest weight that a token's ratio gives it. The paper has no lower bound, and does not say its upper one.
    updates: optimizer updates on the same answers. With 1 the ratio is 1, except for groups that were carried over.
    """

    def credit(batch: StepBatch) -> Credit:
        assert batch.old_logp_K is not None, "the trainer computes old_logp for a ratio"
        advantage_P_G = advantages(batch.rewards_P_G, f_norm="group_std")
        weight_P_G = token_weights(batch.lengths_P_G, "token") / batch.counts.tokens
        return Credit(
            inputs=Inputs(
                advantage_K=per_token(advantage_P_G, batch.lengths_P_G),
                weight_K=per_token(weight_P_G, batch.lengths_P_G),
                old_logp_K=batch.old_logp_K,
                reference_logp_K=batch.old_logp_K,
            ),
            trained_P_G=(advantage_P_G != 0) & (batch.lengths_P_G > 0),
            metrics={"alpha": None},
        )

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp().detach()
        return -inputs.weight_K * ratio_K.clamp(max=ratio_max) * inputs.advantage_K * logp_K

    def observe(logp_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        ratio_K = log_ratio(logp_K, inputs.old_logp_K).exp()
        return {"clip_share": (ratio_K > ratio_max).to(logp_K.dtype)}

    return Algorithm(
        credit=credit,
        token_loss=token_loss,
        observe=observe,
        needs=frozenset({"old_logp"}),
        updates=updates,
    )
