"""How many bits weights are held in: matrices in the dtype that products are computed in, vectors in float32.

Autocast rounds both factors of a product, so a matrix that is rounded beforehand gives the same numbers, and takes half the
room. Embeddings are looked up, not multiplied: a rounded row is the input of the first layer, rounded once (exactly none
where the checkpoint is bfloat16 itself), and stays in float32, so that what the layers add to it is not rounded again.
Norms and biases are a ten-thousandth of a model, and are left alone.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether it may be held in fewer bits: matrices, embeddings and convolutions."""
    return parameter.dim() >= 2


def hold_matrices(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Round the matrices among these to `dtype`, in place: tied weights stay tied. Vectors are left as they are."""
    for parameter in parameters:
        if is_matrix(parameter):
            parameter.data = parameter.data.to(dtype)


def frozen(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that no optimizer moves."""
    return (parameter for parameter in model.parameters() if not parameter.requires_grad)
