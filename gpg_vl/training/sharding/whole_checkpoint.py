"""Trained weights and moments in a checkpoint, written whole by one process, tensor by tensor.

One safetensors file with the keys of `parts`. Any number of processes reads it, each for itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gpg_vl.models.save import Place, open_file
from gpg_vl.training.adamw import MOMENTS
from gpg_vl.training.sharding.moments import STEP
from gpg_vl.training.sharding.sharded_checkpoint import refuse_other_parts, refuse_other_weights
from gpg_vl.training.tensor_file import DamagedFileError

FILE = "whole.safetensors"


def save_whole_parts(
    shapes: Mapping[str, torch.Size], tensors: Iterable[tuple[str, Tensor]], folder: Path
) -> None:
    """Write float32 tensors of known shapes as they come, each of which is forgotten again. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stand_ins = {
        key: torch.empty(shape, dtype=torch.float32, device="meta") for key, shape in shapes.items()
    }
    file = folder / FILE
    starts = open_file(file, stand_ins)
    for key, tensor in tensors:
        Place(file, starts.pop(key), stand_ins[key]).write(tensor)
    assert not starts, f"no tensors came for {sorted(starts)[:3]} and others, {len(starts)} in all"


def load_whole_parts(
    folder: Path, trained: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """What `save_whole_parts` has written, one after the other, on the CPU.

    trained: the shape of each trained weight by its name. Raises UserError if it is of other weights, OSError,
    DamagedFileError or SafetensorError if it is damaged.
    """
    with safe_open(folder / FILE, framework="pt") as file:
        keys = list(file.keys())
        refuse_other_weights(keys, trained, folder)
        _refuse_other_layout(file, keys, trained)
        for key in keys:
            yield key, file.get_tensor(key)


def _refuse_other_layout(file: Any, keys: Sequence[str], trained: Mapping[str, torch.Size]) -> None:
    """Raises DamagedFileError if weights or moments have other names, shapes or dtypes than AdamW in float32 has."""
    saved = {}
    for key in keys:
        part = file.get_slice(key)
        if part.get_dtype() != "F32":
            raise DamagedFileError(f"{key} is {part.get_dtype()}, not F32")
        saved[key] = (tuple(part.get_shape()), torch.float32)
    weights = {name: (tuple(shape), torch.float32) for name, shape in trained.items()}
    moments = {
        name: {STEP: ((), torch.float32)} | dict.fromkeys(MOMENTS, layout)
        for name, layout in weights.items()
    }
    refuse_other_parts(saved, weights, moments)
