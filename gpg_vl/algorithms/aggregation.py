"""The mean over the tokens of a step: the weight of a token within the sum, and what the sum is divided by.

Both count all completions of the optimizer step on all processes, those of groups without signal included. They are part
of the weights, so the same data gives the same gradient however it is cut.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.option_types import Aggregation


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
    """The weight of each token of a completion within the sum, float64: 1, or 1/|o_i|, or 1/(tokens of the group).

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


def per_token(
    values_P_G: Float[Tensor, "P G"], lengths_P_G: Int[Tensor, "P G"]
) -> Float[Tensor, "K"]:
    """A number of each completion, rounded to float32 once and repeated over the completion's tokens."""
    return values_P_G.flatten().float().repeat_interleave(lengths_P_G.flatten())
