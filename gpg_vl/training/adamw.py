"""AdamW for bfloat16 weights and 8-bit moments: values are stored in fewer bits and computed in float32.

A step of 1e-6 is a hundredth of the distance between two bfloat16 numbers near 0.02, so rounding to the nearest would always undo
it. Stochastic rounding rounds up with a probability equal to the relative distance from the lower neighbour. Each step is right
on average, and many steps move a weight as far as in float32. Moments are never bfloat16: with beta2 0.999 the second moment
shrinks by a thousandth per step, which bfloat16 cannot represent, so it would only grow.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpg_vl.models.weight_precision import is_matrix
from gpg_vl.training import eight_bit

PIECE = 2**22
"""Numbers computed at a time, so that temporary tensors are small compared with the largest matrix."""
SMALLEST_OF_BYTES = 4096
"""Smallest matrix, in numbers, whose moments are stored as 8-bit codes. For smaller ones it is not worth it."""
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE = "_scale"
"""The suffix of a moment's name for the scales of its code blocks."""


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay, with the same formula as torch's. Gradients may have any dtype.

    groups: parameter groups as for any torch optimizer; `weight_decay` and `lr` are read from them.
    bytes_of_moments: 4 stores both moments in float32; 1 stores them as 8-bit codes (`eight_bit`), except for vectors and
        small matrices.
    seed: the seed of the stochastic rounding. Seed and step number determine it, so a resumed run, and every
        process that holds the same weights, rounds the same.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        bytes_of_moments: int = 4,
        seed: int = 0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.keeps_codes = bytes_of_moments == 1
        """True if moments of large matrices are stored as 8-bit codes."""
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss is computed again
        rounding: torch.Generator | None = None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= self._begin(parameter)
                state["step"] += 1

                if rounding is None:
                    rounding = self._make_generator(parameter.device, int(state["step"]))
                self._move(parameter, group, state, rounding)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # undo torch's cast of all states to the dtype of the weights: codes must stay integers and moments float32
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, saved in state_dict["state"].items():
            parameter = parameters[number]
            self.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device)
                for name, value in saved.items()
            }

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Zero moments, sharded like the weight."""
        state = {"step": torch.tensor(0.0)}
        as_codes = self.keeps_codes and takes_codes(parameter)
        for name in MOMENTS:
            dtype = torch.uint8 if as_codes else torch.float32
            state[name] = torch.zeros_like(parameter, dtype=dtype)
            if as_codes:
                state[name + SCALE] = _zero_scales(parameter)
        return state

    def _make_generator(self, device: torch.device, step: int) -> torch.Generator:
        (word,) = np.random.SeedSequence((self._seed, step)).generate_state(1, np.uint64)
        return torch.Generator(device=device).manual_seed(int(word) >> 1)

    def _move(
        self,
        parameter: Tensor,
        group: Mapping[str, Any],
        state: Mapping[str, Tensor],
        rounding: torch.Generator,
    ) -> None:
        held = {name: _as_rows(tensor) for name, tensor in state.items() if name != "step"}
        assert parameter.grad is not None
        weights, gradients = _as_rows(parameter), _as_rows(parameter.grad.contiguous())
        (beta1, beta2), step = group["betas"], float(state["step"])

        for piece in _pieces(weights):
            gradient = gradients[piece].float()
            first = _read_moment(held, MOMENTS[0], piece).lerp_(gradient, 1 - beta1)
            second = _read_moment(held, MOMENTS[1], piece).lerp_(gradient.square(), 1 - beta2)

            weight = weights[piece].float()
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            scale = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
            weight.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**step))

            _write(held, MOMENTS[0], piece, first)
            _write(held, MOMENTS[1], piece, second)
            if weights.dtype == torch.bfloat16:
                weight = round_stochastically(weight, rounding)
            weights[piece] = weight


def takes_codes(parameter: Tensor) -> bool:
    """Whether the moments of a weight are stored as 8-bit codes. The answer is the same on all processes that hold a part
    of it."""
    return is_matrix(parameter) and parameter.numel() >= SMALLEST_OF_BYTES


def round_stochastically(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Round finite float32 numbers to bfloat16: up with a probability equal to the relative distance from the lower
    neighbour."""
    # bfloat16 is the upper half of float32: a random number added to the lower half carries over with exactly that
    # probability
    added = torch.randint(
        0, 2**16, numbers.shape, generator=generator, dtype=torch.int32, device=numbers.device
    )
    bits = (numbers.contiguous().view(torch.int32) + added) & -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)


def _as_rows(tensor: Tensor) -> Tensor:
    """This process's part as [rows, columns], in the same memory; a vector is one column."""
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.view(len(held), prod(held.shape[1:]))


def _pieces(rows: Tensor) -> Iterator[slice]:
    number = max(1, PIECE // max(1, rows.shape[1]))
    return (slice(start, start + number) for start in range(0, len(rows), number))


def _zero_scales(parameter: Tensor) -> Tensor:
    """Zero scales, one for each block of each row, on the process that holds the row."""
    shape = eight_bit.scale_shape(parameter.shape)
    if not isinstance(parameter, DTensor):
        return torch.zeros(shape, device=parameter.device)

    local = torch.zeros(len(parameter.to_local()), shape[1], device=parameter.device)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=(shape[1], 1),
    )


def _read_moment(held: Mapping[str, Tensor], name: str, piece: slice) -> Tensor:
    """A moment in float32, which may be changed."""
    rows = held[name][piece]
    if rows.dtype != torch.uint8:
        return rows
    return eight_bit.decode(rows, held[name + SCALE][piece], signed=name == MOMENTS[0])


def _write(held: Mapping[str, Tensor], name: str, piece: slice, moment: Tensor) -> None:
    rows = held[name][piece]
    if rows.dtype == torch.uint8:
        codes, scales = eight_bit.encode(moment, signed=name == MOMENTS[0])
        rows.copy_(codes)
        held[name + SCALE][piece] = scales
