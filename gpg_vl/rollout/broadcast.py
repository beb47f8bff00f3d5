"""Rank and broadcast for engines, which have no access to the trainer's accelerator."""

from typing import TypeVar

import torch.distributed

from gpg_vl.activity import in_collective

T = TypeVar("T")


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def broadcast(value: T) -> T:
    """Returns the main process's value on every process. All processes call it together."""
    if not torch.distributed.is_initialized():
        return value
    shared = [value]
    with in_collective():
        torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
