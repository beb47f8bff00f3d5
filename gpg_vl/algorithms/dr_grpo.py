"""GRPO without its two divisions, by the deviation of a group and by the length of an answer (arXiv:2503.20783).

    A_i = r_i - mean of the group,     loss = 1/(N L) * sum_i sum_t -min(ratio A_i, clip(ratio) A_i)

L is the longest answer that may be sampled, the same for every step.
"""

from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.algorithm import Algorithm, StepBatch
from gpg_vl.algorithms.clipped import Clip, clipped


def dr_grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    updates: int = 1,
) -> Algorithm:
    """Dr. GRPO with its switches.

    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    kl_beta: weight of the divergence from the reference.
    updates: optimizer updates on the same answers.
    """
    clip = Clip(clip_low, clip_high)
    return clipped(_advantages, clip, aggregation="constant", kl_beta=kl_beta, updates=updates)


def _advantages(batch: StepBatch) -> Float[Tensor, "P G"]:
    return advantages(batch.rewards_P_G, f_norm="one")
