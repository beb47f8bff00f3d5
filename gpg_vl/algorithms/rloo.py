"""REINFORCE Leave-One-Out (arXiv:2402.14740): an answer's baseline is the mean reward of the others of its group.

    A_i = r_i - 1/(G-1) sum_{j != i} r_j = G/(G-1) (r_i - mean of the group)
    loss = - 1/N sum_i A_i sum_t log pi(o_it)

The log-prob is that of the whole answer: no mean over its tokens.
"""

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss


def rloo() -> Algorithm:
    """RLOO. It has no switches of its own."""

    def credit(batch: StepBatch) -> Credit:
        size = batch.rewards_P_G.shape[1]
        # a group of one has no others to be compared with, and no signal
        factor = size / max(size - 1, 1)
        advantage_P_G = factor * advantages(batch.rewards_P_G, f_norm="one")
        return linear_credit(batch, advantage_P_G / batch.counts.completions, {"alpha": None})

    return Algorithm(credit=credit, token_loss=linear_loss)
