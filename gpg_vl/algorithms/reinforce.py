"""REINFORCE (Williams, 1992) with the mean reward of the step as its baseline.

    loss = - 1/N sum_i (r_i - mean of all rewards of the step) sum_t log pi(o_it)

Answers of a group whose rewards are all equal have a gradient here: they are compared with the whole step.
"""

from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss


def reinforce() -> Algorithm:
    """REINFORCE. It has no switches of its own."""

    def credit(batch: StepBatch) -> Credit:
        (total,) = batch.total([float(batch.rewards_P_G.sum())])
        baseline = total / max(batch.counts.completions, 1)
        weight_P_G = (batch.rewards_P_G - baseline) / max(batch.counts.completions, 1)
        return linear_credit(batch, weight_P_G, {"alpha": None, "baseline": baseline})

    return Algorithm(credit=credit, token_loss=linear_loss)
