"""The code of a worker process that reads and encodes prompts for the training process, and their transfer.

It receives the source of the run once and then one draw at a time, and holds no weights. Tensors are sent as raw bytes
through the pipe and received directly into their final memory. This needs no shared memory, of which a container may have
little.
"""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from gpg_vl.types import Group, Prompt

if TYPE_CHECKING:  # the process imports this module at its start, and torch takes seconds
    from torch import Tensor

    from gpg_vl.training.prompt_source import Source

LOOK_EVERY = 1.0
"""Seconds between checks whether the training process still runs."""


class _Outline(NamedTuple):
    """A group without the data of its tensors, which follow in the order of `tensors`."""

    group: Group
    tensors: Mapping[str, tuple[tuple[int, ...], Any]]
    """Shape and dtype by name."""


def serve(pipe: Connection) -> None:
    """Run the worker until the training process closes the pipe or has ended."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    # the source contains a transformers processor
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch

    # more threads would take cores from the training processes
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        source: Source = pipe.recv()
        while True:
            _send(pipe, _find_group(source, pipe.recv()))


def receive(pipe: Connection) -> Group | None:
    """Receive a group from a worker; None if it could not encode it. Raises EOFError or OSError if the worker has ended."""
    import torch

    outline: _Outline | None = pipe.recv()
    if outline is None:
        return None
    tensors: dict[str, Any] = {}
    for name, (shape, dtype) in outline.tensors.items():
        tensors[name] = torch.empty(shape, dtype=dtype)
        pipe.recv_bytes_into(_bytes_of(tensors[name]))
    return replace(outline.group, prompt=replace(outline.group.prompt, **tensors))


def _end_with(parent: int) -> None:
    """End this process once its parent has ended. The pipe alone is not enough, because a fork of the parent may keep it
    open."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)


def _find_group(source: "Source", draw: int) -> Group | None:
    try:
        return source.group_at(draw)
    except Exception:  # noqa: BLE001  the training process does it again when the draw is due, and meets whatever it was
        return None


def _send(pipe: Connection, group: Group | None) -> None:
    if group is None:
        pipe.send(None)
        return

    # by default multiprocessing would share each tensor through its own file in shared memory
    tensors = {name: value.contiguous() for name, value in _tensors_of(group.prompt).items()}
    nothing: dict[str, Any] = dict.fromkeys(tensors)
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    pipe.send(_Outline(replace(group, prompt=replace(group.prompt, **nothing)), kinds))
    for value in tensors.values():
        pipe.send_bytes(_bytes_of(value))


def _tensors_of(prompt: Prompt) -> "dict[str, Tensor]":
    import torch

    values = {field.name: getattr(prompt, field.name) for field in fields(prompt)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _bytes_of(tensor: "Tensor") -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data
