"""ReMax (arXiv:2310.10505): an answer's baseline is the reward of the greedy answer to the same prompt.

    A_i = r_i - reward of the greedy answer
    loss = - 1/N sum_i A_i sum_t log pi(o_it)

The greedy answer comes from the weights that sample the group and is scored by the same rewards; it is not trained on, and
N does not count it. The log-prob is that of the whole answer: no mean over its tokens.
"""

from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.algorithms.linear import linear_credit, linear_loss


def remax() -> Algorithm:
    """ReMax. It has no switches of its own."""

    def credit(batch: StepBatch) -> Credit:
        assert len(batch.greedy_reward_P) == len(batch.rewards_P_G), (
            "each prompt is answered greedily for an algorithm that needs it"
        )
        advantage_P_G = batch.rewards_P_G - batch.greedy_reward_P[:, None]
        weight_P_G = advantage_P_G / max(batch.counts.completions, 1)
        return linear_credit(batch, weight_P_G, {"alpha": None})

    return Algorithm(credit=credit, token_loss=linear_loss, needs=frozenset({"greedy_reward"}))
