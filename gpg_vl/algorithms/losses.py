"""What is left of the loss as a function of coefficients, for the passes and the head that still ask for it.

Delete it with its last user: `training/batch.py` and `models/head.py` are the only ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpg_vl.algorithms.aggregation import denominator, token_weights
from gpg_vl.algorithms.choices import Aggregation

__all__ = ["Aggregation", "LossOutput", "coefficients", "denominator", "gpg_loss"]


class LossOutput(NamedTuple):
    """The scalar to differentiate, and what to report of it."""

    loss: Tensor
    """This pass's part of the step's loss; the parts of all passes and ranks add up to it."""
    logp_sum: Tensor
    """Sum of log pi over the pass's completion tokens, without gradient."""


def coefficients(
    advantages_P_G: Float[Tensor, "P G"],
    lengths_P_G: Int[Tensor, "P G"],
    *,
    aggregation: Aggregation,
    age: float,
    denominator: float,
) -> Float[Tensor, "P G"]:
    """What each token's -log pi of a completion is multiplied by, float64."""
    if age == 0.0:  # no valid group in the step: no division, exactly no gradient
        return torch.zeros_like(advantages_P_G, dtype=torch.float64)
    return age * advantages_P_G.double() * token_weights(lengths_P_G, aggregation) / denominator


def gpg_loss(logp_K: Float[Tensor, "K"], coefficients_K: Float[Tensor, "K"]) -> LossOutput:
    """- sum over the K completion tokens of a pass of c * log pi. A pass without tokens has loss 0."""
    return LossOutput(-(coefficients_K.to(logp_K.dtype) * logp_K).sum(), logp_K.detach().sum())
