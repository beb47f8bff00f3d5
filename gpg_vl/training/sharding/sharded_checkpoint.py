"""Trained weights and moments in a checkpoint, where each process writes and reads its own parts.

By torch's distributed checkpoints, in safetensors files: each file says what its part is, so another number of processes
reads what it needs of them, and nothing is unpickled.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, zeros

from gpg_vl.errors import UserError
from gpg_vl.training.sharding.moments import Layout, layout_of, refuse_other_moments
from gpg_vl.training.tensor_file import DamagedFileError

WEIGHT, MOMENT, NUMBER = "weight", "moment", "number"
"""What a saved tensor is: a weight; what an optimizer keeps of each of its numbers; or of all of them, as a row of one."""


def save_parts(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Write the parameters and what the optimizer keeps of each. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"{WEIGHT}/{name}"] = parameter.detach()
        for kind, value in optimizer.state[parameter].items():
            is_number = value.dim() == 0
            key = f"{NUMBER if is_number else MOMENT}/{kind}/{name}"
            tensors[key] = value.reshape(1) if is_number else value

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise OSError(_first_cause(error)) from error


def load_parts(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Put back what `save_parts` has written, by whatever number of processes.

    Raises UserError if it is of other weights, ValueError if it is damaged.
    """
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    refuse_other_weights(saved, parameters, folder)
    _refuse_gaps(saved)
    _refuse_other_layout(saved, parameters, optimizer)
    tensors = {key: _room_for(key, saved[key], parameters) for key in saved}
    try:
        load(tensors, storage_reader=reader)
    except CheckpointException as error:
        raise ValueError(_first_cause(error)) from error

    for key, tensor in tensors.items():
        what, *kind, name = key.split("/")
        if what != WEIGHT:
            value = tensor.reshape(()) if what == NUMBER else tensor
            optimizer.state[parameters[name]]["/".join(kind)] = value


def refuse_other_weights(saved: Iterable[str], trained: Collection[str], folder: Path) -> None:
    """Raises UserError if the saved keys are not of the weights that this run trains."""
    weights = {key.removeprefix(f"{WEIGHT}/") for key in saved if key.startswith(f"{WEIGHT}/")}
    if weights != set(trained):
        raise UserError(
            f"The checkpoint {folder.parent} holds {len(weights)} trained tensors; this run trains {len(trained)}, and not "
            f"the same ones. Resume with the model section that the run was started with."
        )


def _refuse_other_layout(
    saved: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raises DamagedFileError if weights or moments have other names, shapes or dtypes than here."""
    shapes = {key: (tuple(one.size), one.properties.dtype) for key, one in saved.items()}
    expected = {
        name: (tuple(parameter.shape), parameter.dtype) for name, parameter in parameters.items()
    }
    moments = {name: layout_of(optimizer, parameter) for name, parameter in parameters.items()}
    refuse_other_parts(shapes, expected, moments)


def refuse_other_parts(saved: Layout, weights: Layout, moments: Mapping[str, Layout]) -> None:
    """Raises DamagedFileError unless the saved tensors are these weights, and these moments of each or none of any.

    saved: by key. weights, moments: by the name of the weight.
    """
    for name, layout in weights.items():
        if saved[f"{WEIGHT}/{name}"] != layout:
            old_shape, old_dtype = saved[f"{WEIGHT}/{name}"]
            shape, dtype = layout
            raise DamagedFileError(
                f"the saved {name} is {old_dtype} of shape {list(old_shape)}, not {dtype} of {list(shape)}; files are "
                f"missing, or of another model"
            )

    kept: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for key, (shape, dtype) in saved.items():
        what, *kind, name = key.split("/")
        if what not in (WEIGHT, MOMENT, NUMBER) or name not in weights:
            raise DamagedFileError(f"{key} is of nothing that this run trains")
        if what != WEIGHT:
            is_number = what == NUMBER and shape == (1,)
            kept.setdefault(name, {})["/".join(kind)] = (() if is_number else shape, dtype)

    # before its first step an optimizer keeps nothing
    for name in weights if kept else ():
        refuse_other_moments(name, kept.get(name, {}), moments[name])


def _room_for(key: str, saved: Any, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Where a saved tensor goes: weights into their place, moments are spread like them, a number is whole everywhere."""
    what, *_, name = key.split("/")
    parameter = parameters[name]
    if what == WEIGHT:
        return parameter.detach()
    if what == MOMENT:
        return _room_like(parameter.detach(), saved.size, saved.properties.dtype)
    return torch.zeros(1, device=parameter.device)


def _room_like(parameter: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Spread over the same processes row by row, whatever a row holds: a moment, its codes, or the scales of those."""
    if not isinstance(parameter, DTensor) or size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype)
    return zeros(
        size, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
    )


def _refuse_gaps(saved: Mapping[str, Any]) -> None:
    """A file that is not there is no error to torch, if its parts are not the last ones: numbers would stay as they were."""
    for key, one in saved.items():
        held = sum(chunk.sizes.numel() for chunk in one.chunks)
        if held != one.size.numel():
            raise DamagedFileError(
                f"{held} of {one.size.numel()} numbers of {key} are there; files are missing, or of another model"
            )


def _first_cause(error: CheckpointException) -> str:
    """What went wrong on the first process that something went wrong on; the rest is a trace for developers."""
    number, (cause, _) = min(error.failures.items())
    return f"process {number}: {type(cause).__name__}: {cause}"
