"""The value head: from final hidden states to what a completion is expected to be worth from each of its tokens on.

It sits beside the model and not in it, so that neither an exported checkpoint nor an engine knows of it.
"""

import torch
from torch import Tensor, nn

from gpg_vl.algorithms.algorithm import to_dtype
from gpg_vl.models.head import Objective


class ValueHead(nn.Module):
    """A linear layer from H numbers to one. It begins at zero, so the first values are 0, whatever the hidden states.

    size: H.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        # a vector: neither decayed like a matrix nor held in bfloat16
        self.weight_H = nn.Parameter(torch.zeros(size, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden_K_H: Tensor) -> Tensor:
        """The value [K] of the token that each hidden state predicts, in float32 at least."""
        wide = torch.promote_types(hidden_K_H.dtype, self.weight_H.dtype)
        with torch.autocast(hidden_K_H.device.type, enabled=False):
            value_K: Tensor = hidden_K_H.to(wide) @ self.weight_H.to(wide) + self.bias.to(wide)
            return value_K


def sum_value_losses(value_K: Tensor, objective: Objective) -> Tensor:
    """The sum of an objective's losses of values. Raises ValueError if that loss is not one number per token."""
    assert objective.value_loss is not None, "a policy with a critic is trained with a loss for it"
    with torch.autocast(value_K.device.type, enabled=False):
        loss_K = objective.value_loss(value_K, to_dtype(objective.inputs, value_K))
    if loss_K.shape != value_K.shape:
        raise ValueError(
            f"value_loss was given {len(value_K)} values and returned a tensor of shape {tuple(loss_K.shape)}. It must "
            f"return one loss per token, computed from that token's value."
        )
    return loss_K.sum()
