"""Ratios of probabilities: of a token under the weights of now to those that sampled it, and to the reference."""

import torch
from jaxtyping import Float
from torch import Tensor


def log_ratio(logp_K: Float[Tensor, "K"], old_logp_K: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    """log (pi / pi_old) of each token.

    Where `old_logp_K` is NaN the current weights sampled the token: the ratio is exactly 1, and its slope is that of
    log pi, so that a surrogate of the ratio has the slope of the policy gradient.
    """
    return logp_K - torch.where(old_logp_K.isnan(), logp_K.detach(), old_logp_K)


def k3(logp_K: Float[Tensor, "K"], reference_logp_K: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    """exp(d) - d - 1 with d = log pi_ref - log pi: an estimate of KL(pi || pi_ref) that is never below 0.

    Unbiased over tokens that pi sampled (Schulman, "Approximating KL divergence"; GRPO, arXiv:2402.03300, eq. 4).
    """
    gap_K = reference_logp_K - logp_K
    return torch.expm1(gap_K) - gap_K  # exp(d) - 1 would lose the digits of a small d
