"""Supervised fine-tuning: the gold answers are the completions, and every one of their tokens is made likelier.

    loss = - 1/K * sum_i sum_t log pi(o_it),     K: tokens of all gold answers of the step

The prompt is not trained. What a reward says of a gold answer does not matter. With `aggregation="sequence"` each gold answer
counts the same however long it is: the mean over its tokens, then over the answers of the step.
"""

from gpg_vl.algorithms.aggregation import denominator, token_weights
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss
from gpg_vl.algorithms.option_types import SftAggregation


def sft(*, response: str = "{answer}", aggregation: SftAggregation = "token") -> Algorithm:
    """The mean of -log pi(gold answer). Nothing is sampled.

    response: the completion to learn; `{answer}` is the example's gold answer.
    aggregation: the mean over all tokens of the step, or over those of each answer and then over answers.
    """

    def credit(batch: StepBatch) -> Credit:
        divisor = denominator(batch.counts, aggregation, max_new_tokens=batch.max_new_tokens)
        weight_P_G = token_weights(batch.lengths_P_G, aggregation) / divisor
        return linear_credit(batch, weight_P_G, {"alpha": None})

    return Algorithm(credit=credit, token_loss=linear_loss, samples=False, response=response)
