"""DAPO (arXiv:2503.14476): GRPO with a higher upper clip, a mean over tokens, and a penalty for answers near the limit.

    A_i = (R_i - mean of the group) / (deviation of the group + 1e-4),     R_i = r_i + penalty of the length

The loss is that of `clipped.py` without a divergence. Its dynamic sampling, which fills a step with groups whose rewards
are not all equal, is `beta_th: 1`. Which groups those are is decided by r alone, as the paper decides it by accuracy.
"""

from jaxtyping import Float, Int
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.algorithm import Algorithm, StepBatch
from gpg_vl.algorithms.clipped import Clip, clipped


def dapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_tokens: int = 0,
    updates: int = 1,
) -> Algorithm:
    """DAPO with its switches.

    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    overlong_tokens: within so many tokens of the limit an answer loses up to 1 of its reward; 0 for no such penalty.
    updates: optimizer updates on the same answers.
    """

    def advantages_of(batch: StepBatch) -> Float[Tensor, "P G"]:
        rewards_P_G = batch.rewards_P_G
        if overlong_tokens:
            rewards_P_G = rewards_P_G + overlong_penalty(
                batch.lengths_P_G, limit=batch.max_new_tokens, tokens=overlong_tokens
            )
        return advantages(rewards_P_G, f_norm="group_std")

    clip = Clip(clip_low, clip_high)
    return clipped(advantages_of, clip, aggregation="token", kl_beta=0.0, updates=updates)


def overlong_penalty(
    lengths_P_G: Int[Tensor, "P G"], *, limit: int, tokens: int
) -> Float[Tensor, "P G"]:
    """0 up to `limit - tokens`, from there in a straight line to -1 at `limit`; float64 (DAPO, eq. 13)."""
    beyond_P_G = lengths_P_G.double() - (limit - tokens)
    return -(beyond_P_G / tokens).clamp(0.0, 1.0)
