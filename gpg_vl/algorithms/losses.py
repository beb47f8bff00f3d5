"""The GPG loss: the policy gradient itself (arXiv:2504.02546, eq. 5 and 8).

The loss is linear in log pi, so one coefficient per completion, known before the forward pass, says everything:

    loss = - sum_i c_i sum_t log pi(o_it),     c_i = age * A_i * w_i / denominator

The denominator counts all ranks and micro-batches of the optimizer step. It is an argument, so the same data gives the
same gradient however it is cut.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts

Aggregation = Literal["token", "sequence", "constant", "group"]


class LossOutput(NamedTuple):
    """The scalar to differentiate, and what to report of it."""

    loss: Tensor
    """This pass's part of the step's loss; the parts of all passes and ranks add up to it."""
    logp_sum: Tensor
    """Sum of log pi over the pass's completion tokens, without gradient."""


def denominator(counts: StepCounts, aggregation: Aggregation, *, max_new_tokens: int) -> float:
    """What the sum over completions is divided by: K tokens, N completions, N * limit, or P groups of the whole step.

    Groups without signal count too; undoing that is the business of `age_factor`.
    """
    match aggregation:
        case "token":
            return float(counts.tokens)
        case "sequence":
            return float(counts.completions)
        case "constant":
            return float(counts.completions * max_new_tokens)
        case "group":
            return float(counts.groups)


def token_weights(
    lengths_P_G: Int[Tensor, "P G"], aggregation: Aggregation
) -> Float[Tensor, "P G"]:
    """The weight of each token of a completion within the sum: 1, or 1/|o_i|, or 1/(tokens of the group).

    A completion or group without tokens gets weight 1, which multiplies nothing.
    """
    match aggregation:
        case "token" | "constant":
            return torch.ones_like(lengths_P_G, dtype=torch.float64)
        case "sequence":
            return 1.0 / lengths_P_G.clamp(min=1).double()
        case "group":
            group_tokens_P_1 = lengths_P_G.sum(dim=1, keepdim=True).clamp(min=1)
            return (1.0 / group_tokens_P_1.double()).expand(lengths_P_G.shape)


def coefficients(
    advantages_P_G: Float[Tensor, "P G"],
    lengths_P_G: Int[Tensor, "P G"],
    *,
    aggregation: Aggregation,
    age: float,
    denominator: float,
) -> Float[Tensor, "P G"]:
    """c_i of the module's formula, float64: what each token's -log pi of completion i is multiplied by."""
    if age == 0.0:  # no valid group in the step: no division, exactly no gradient
        return torch.zeros_like(advantages_P_G, dtype=torch.float64)
    return age * advantages_P_G.double() * token_weights(lengths_P_G, aggregation) / denominator


def gpg_loss(logp_K: Float[Tensor, "K"], coefficients_K: Float[Tensor, "K"]) -> LossOutput:
    """- sum over the K completion tokens of a pass of c * log pi. A pass without tokens has loss 0.

    Ragged completions stand one behind the other; each token has the coefficient of its completion.
    """
    return LossOutput(-(coefficients_K.to(logp_K.dtype) * logp_K).sum(), logp_K.detach().sum())
