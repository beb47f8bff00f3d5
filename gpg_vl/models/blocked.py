"""Products of a few rows with a weight on a CPU, from a copy of the weight in oneDNN's blocked layout.

A product of few rows takes as long as its weight is read. In the ordinary layout libraries also rearrange the weight for every
product; a copy in the blocked layout is arranged once, and answers many products until the weights change. Measured by
`python -m benchmarks.few_rows`.
"""

from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn

WORTH = 4
"""Products with a weight from which on its copy pays."""


def can_block(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a blocked layout of a weight for products in `dtype`: of a whole weight, on a CPU that has it."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.numel() > 0
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (
            dtype == torch.float32
            or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )


def block(weight_N_H: Tensor, rows: int) -> Tensor:
    """A copy of a weight in the blocked layout, for products in its dtype; the weight itself where there is none.

    rows: of the products to come. Others are right too, but may be slower.
    """
    if not can_block(weight_N_H, weight_N_H.dtype):
        return weight_N_H
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_N_H.detach(), rows)
    return blocked


def multiply(rows: Tensor, weight_N_H: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias. With a blocked weight: in its dtype, and without gradient."""
    if not weight_N_H.is_mkldnn:
        return nn.functional.linear(rows, weight_N_H, bias_N)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        rows.to(weight_N_H.dtype), weight_N_H, bias_N, "none", [], ""
    )
    return product


class BlockedLayers:
    """The linear layers of a module, which multiply with blocked copies of their weights inside `with`.

    dtype: of the products. rows: of the products to come, see `block`.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, rows: int) -> None:
        self._forwards: dict[nn.Linear, partial[Tensor]] = {}
        for layer in module.modules():
            if type(layer) is nn.Linear and can_block(layer.weight, dtype):
                weight_N_H = block(layer.weight.to(dtype), rows)
                bias_N = None if layer.bias is None else layer.bias.detach().to(dtype)
                self._forwards[layer] = partial(multiply, weight_N_H=weight_N_H, bias_N=bias_N)

    def __enter__(self) -> None:
        for layer, forward in self._forwards.items():
            layer.forward = forward  # type: ignore[method-assign]  # for as long as `with` lasts

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self._forwards:
            del layer.forward
