"""Policy gradients whose loss is one number per completion times the log-prob of its tokens, known before the forward pass.

    loss = - sum_i c_i sum_t log pi(o_it)

GPG, RLOO, REINFORCE, OPO and ReMax differ in c_i alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.aggregation import per_token
from gpg_vl.algorithms.algorithm import Credit, StepBatch


class Inputs(NamedTuple):
    """What a token's loss is made of."""

    weight_K: Tensor
    """c_i of the token's completion, float32: what -log pi is multiplied by."""


def linear_credit(
    batch: StepBatch, weight_P_G: Float[Tensor, "P G"], metrics: Mapping[str, float | None]
) -> Credit:
    """c_i of every completion as credit. An answer of weight 0 is not run."""
    return Credit(
        inputs=Inputs(per_token(weight_P_G, batch.lengths_P_G)),
        trained_P_G=(weight_P_G != 0) & (batch.lengths_P_G > 0),
        metrics=metrics,
    )


def linear_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
    """- c_i log pi of each token."""
    return -(inputs.weight_K * logp_K)
