"""Supervised fine-tuning: the gold answers are the completions, and every one of their tokens is made likelier.

    loss = - 1/K * sum_i sum_t log pi(o_it),     K: tokens of all gold answers of the step

The prompt is not trained. What a reward says of a gold answer does not matter.
"""

from typing import NamedTuple

from torch import Tensor

from gpg_vl.algorithms.aggregation import denominator, per_token, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    weight_K: Tensor
    """1/K, float32."""


def sft(*, response: str = "{answer}") -> Algorithm:
    """The mean over all tokens of the step of -log pi(gold answer). Nothing is sampled.

    response: the completion to learn; `{answer}` is the example's gold answer.
    """

    def credit(batch: StepBatch) -> Credit:
        divisor = denominator(batch.counts, "token", max_new_tokens=batch.max_new_tokens)
        weight_P_G = token_weights(batch.lengths_P_G, "token") / divisor
        return Credit(
            inputs=Inputs(per_token(weight_P_G, batch.lengths_P_G)),
            trained_P_G=batch.lengths_P_G > 0,
            metrics={"alpha": None},
        )

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        return -(inputs.weight_K * logp_K)

    return Algorithm(credit=credit, token_loss=token_loss, samples=False, response=response)
