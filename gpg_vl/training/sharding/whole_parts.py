"""Trained weights and moments in a checkpoint, written whole by one process, tensor by tensor.

One safetensors file with the keys of `parts`. Any number of processes reads it, each for itself.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gpg_vl.models.save import Place, open_file
from gpg_vl.training.sharding.parts import refuse_other_weights

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


def load_whole_parts(folder: Path, trained: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """What `save_whole_parts` has written, one after the other, on the CPU.

    Raises UserError if it is of other weights, OSError or SafetensorError if it is damaged.
    """
    with safe_open(folder / FILE, framework="pt") as file:
        keys = list(file.keys())
        refuse_other_weights(keys, trained, folder)
        for key in keys:
            yield key, file.get_tensor(key)
