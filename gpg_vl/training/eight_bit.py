"""8-bit optimizer moments: block-wise dynamic quantization (arXiv:2110.02861), implemented with torchao.

A block has up to 256 numbers of one row and a float32 scale. Since a block never crosses rows, rows can be distributed over any
number of processes together with their codes.
"""

import importlib
import importlib.util
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpg_vl.errors import UserError

BLOCK = 256
SMALLEST = 1e-12
"""The minimum scale of a block."""


def refuse_without_package() -> None:
    """Raises UserError if torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "train.optimizer is adamw_8bit, which needs torchao, and it is not installed. Install it with: "
            "pip install 'gpg_vl[torchao]', or set train.optimizer to adamw."
        )


def scale_shape(shape: torch.Size) -> tuple[int, int]:
    """The shape of the scales of a matrix: one for each block of each row."""
    return shape[0], -(-prod(shape[1:]) // BLOCK)


def encode(numbers_R_C: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes [R, C] of the nearest representable numbers, and scales [R, blocks]. Unsigned: no number is negative."""
    blocks = _in_blocks(numbers_R_C)
    scales = blocks.abs().amax(dim=-1).clip(SMALLEST)
    codes = _torchao().quantize_8bit_with_qmap(
        blocks / scales[..., None], _table(signed, blocks.device)
    )
    return codes.flatten(1)[:, : numbers_R_C.shape[1]], scales


def decode(codes_R_C: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """Numbers [R, C] in float32."""
    values = _in_blocks(_table(signed, codes_R_C.device)[codes_R_C.int()])
    return (values * scales[..., None]).flatten(1)[:, : codes_R_C.shape[1]].contiguous()


def _in_blocks(numbers_R_C: Tensor) -> Tensor:
    """[R, blocks, width]; the last block of a row is padded with zeros."""
    rows, columns = numbers_R_C.shape
    width = min(BLOCK, columns)
    return pad(numbers_R_C, (0, -columns % width)).view(rows, -(-columns // width), width)


@lru_cache(maxsize=8)
def _table(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers from -1 or 0 to 1 that the codes represent."""
    numbers = _torchao().create_dynamic_map(signed=signed)
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def _torchao() -> Any:
    """torchao's quantization functions."""
    return importlib.import_module("torchao.optim.quant_utils")
