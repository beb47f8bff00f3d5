"""On-policy RL with Optimal reward baseline (arXiv:2505.23585): rewards of a group are weighed with the lengths of answers.

    A_i = r_i - sum_j |o_j| r_j / sum_j |o_j|,     loss = - 1/K sum_i A_i sum_t log pi(o_it)

The baseline has the least variance if the gradients of tokens are independent and equally large.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.advantages import valid_groups
from gpg_vl.algorithms.aggregation import denominator, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss
from gpg_vl.algorithms.option_types import Aggregation


def opo(*, aggregation: Aggregation = "token") -> Algorithm:
    """OPO with its switch.

    aggregation: the mean over the tokens of the step.
    """

    def credit(batch: StepBatch) -> Credit:
        divisor = denominator(batch.counts, aggregation, max_new_tokens=batch.max_new_tokens)
        weight_P_G = token_weights(batch.lengths_P_G, aggregation) / divisor
        return linear_credit(batch, _advantages(batch) * weight_P_G, {"alpha": None})

    return Algorithm(credit=credit, token_loss=linear_loss)


def _advantages(batch: StepBatch) -> Float[Tensor, "P G"]:
    lengths_P_G = batch.lengths_P_G.double()
    tokens_P_1 = lengths_P_G.sum(dim=1, keepdim=True).clamp(min=1)
    baseline_P_1 = (lengths_P_G * batch.rewards_P_G).sum(dim=1, keepdim=True) / tokens_P_1

    # equal rewards minus their mean need not be 0 after rounding; without signal it must be
    centred_P_G = batch.rewards_P_G - baseline_P_1
    signal_P_1 = valid_groups(batch.rewards_P_G)[:, None]
    return torch.where(signal_P_1, centred_P_G, torch.zeros_like(centred_P_G))
