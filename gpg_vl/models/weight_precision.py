"""The precision in which weights are stored: matrices in the dtype of products, vectors in float32.

Autocast rounds both factors of a product, so a matrix that is rounded beforehand gives the same result and takes half the memory.
Embeddings are looked up, not multiplied: a looked-up row is rounded once (without loss if the checkpoint is bfloat16) and
becomes the float32 input of the first layer, so later sums are not rounded. Norms and biases are a ten-thousandth of a
model and stay float32.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a weight may be stored in fewer bits: matrices, embeddings and convolutions."""
    return parameter.dim() >= 2


def hold_matrices(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Round the matrices among these to `dtype`, in place, so tied weights stay tied. Vectors are not changed."""
    for parameter in parameters:
        if is_matrix(parameter):
            parameter.data = parameter.data.to(dtype)


def frozen(model: nn.Module) -> Iterator[nn.Parameter]:
    """The frozen weights."""
    return (parameter for parameter in model.parameters() if not parameter.requires_grad)
