"""Group Relative Policy Optimization (arXiv:2402.03300, eq. 3 and 4): a clipped ratio, and a divergence from the reference.

    A_i = (r_i - mean of the group) / (deviation of the group + 1e-4)

The loss is that of `clipped.py`.
"""

from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.algorithm import Algorithm, StepBatch
from gpg_vl.algorithms.clipped import Clip, clipped
from gpg_vl.algorithms.option_types import Aggregation, ClipMode


def grpo(
    *,
    aggregation: Aggregation = "sequence",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_mode: ClipMode = "cut",
    kl_beta: float = 0.04,
    updates: int = 1,
) -> Algorithm:
    """GRPO with its switches.

    aggregation: the mean over the tokens of the step; GRPO's is `sequence`.
    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    clip_mode: `gradient_preserving` lets such a token keep the gradient it has at the clip.
    kl_beta: weight of the divergence from the reference. With 0 there is none, and answers of advantage 0 are not run.
    updates: optimizer updates on the same answers. With 1 the ratio is 1, except for groups that were carried over.
    """
    clip = Clip(clip_low, clip_high, clip_mode)
    return clipped(_advantages, clip, aggregation=aggregation, kl_beta=kl_beta, updates=updates)


def _advantages(batch: StepBatch) -> Float[Tensor, "P G"]:
    return advantages(batch.rewards_P_G, f_norm="group_std")
