"""Converts concatenated runs of tokens to padded rows, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """The positions of runs of tokens in a padded batch. `_B` runs, `_L` tokens of the longest
    run."""

    index_BL: Tensor
    """The token at each position of the padded batch; an arbitrary one at padding."""
    back_T: Tensor
    """The position of each token in the padded batch."""
    present_B_L: Tensor
    width: int
    is_plain: bool
    """True if all runs are equally long and follow each other from the first token on, so a reshape
    is enough."""

    @staticmethod
    def of(lengths: Sequence[int], starts: Sequence[int] | int, device: torch.device) -> "Padded":
        """starts: where each run begins; or where the first begins, if the others follow it
        directly."""
        if isinstance(starts, int):
            starts = list(accumulate(lengths, initial=starts))[:-1]
        width = max(lengths)
        lengths_B_1 = torch.tensor(lengths, device=device)[:, None]
        starts_B_1 = torch.tensor(starts, device=device)[:, None]
        place_1_L = torch.arange(width, device=device)[None, :]

        present_B_L = place_1_L < lengths_B_1
        index_B_L = starts_B_1 + torch.minimum(place_1_L, lengths_B_1 - 1)
        is_full = all(length == width for length in lengths)
        return Padded(
            index_BL=index_B_L.flatten(),
            back_T=present_B_L.flatten().nonzero()[:, 0],
            present_B_L=present_B_L,
            width=width,
            is_plain=is_full and list(starts) == [width * row for row in range(len(lengths))],
        )

    def pad(self, x_1_H_T_D: Tensor) -> Tensor:
        """[B, H, L, D]."""
        heads, _, size = x_1_H_T_D.shape[1:]
        rows = len(self.present_B_L)
        x_H_T_D = x_1_H_T_D[0]
        if not self.is_plain:
            x_H_T_D = x_H_T_D.index_select(1, self.index_BL)
        x_H_BL_D = x_H_T_D[:, : rows * self.width]
        return x_H_BL_D.reshape(heads, rows, self.width, size).transpose(0, 1)

    def unpad(self, x_B_H_L_D: Tensor) -> Tensor:
        """[1, H, T, D]."""
        rows, heads, width, size = x_B_H_L_D.shape
        x_H_T_D = x_B_H_L_D.transpose(0, 1).reshape(heads, rows * width, size)
        if not self.is_plain:
            x_H_T_D = x_H_T_D.index_select(1, self.back_T)
        return x_H_T_D[None]
