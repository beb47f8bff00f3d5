"""The inside of a process that reads and encodes prompts for the training process, and how they travel.

It is given the source of the run once and then a draw at a time, and holds no weights. Tensors travel as bare bytes through
the pipe and are received into their final memory: that needs no shared memory, of which a container may have little.
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

if TYPE_CHECKING:  # starting the process imports this module, and torch takes seconds
    from torch import Tensor

    from gpg_vl.training.prompt_source import Source

LOOK_EVERY = 1.0
"""Seconds after which a worker looks whether the training process is still there."""


class _Outline(NamedTuple):
    """A group without the numbers of its tensors, which follow it in the order of their names here."""

    group: Group
    tensors: Mapping[str, tuple[tuple[int, ...], Any]]
    """Shape and dtype by name."""


def serve(pipe: Connection) -> None:
    """The worker's life, which ends when the training process closes the pipe or is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    # the source brings a processor of transformers with it
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    import torch

    # more threads would take the cores of those who train
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        source: Source = pipe.recv()
        while True:
            _send(pipe, _find_group(source, pipe.recv()))


def receive(pipe: Connection) -> Group | None:
    """What a worker has sent: a group; None if it could not make it. Raises EOFError or OSError if the worker has ended."""
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
    """End this process once its parent is gone: the pipe alone would not tell, if a fork of the parent keeps it open."""
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

    # left to itself, multiprocessing would share the memory of each tensor by a file of its own
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
