"""What the processes of a run agree on without the trainer's help: who is the main one, and what it says."""

from typing import TypeVar

import torch.distributed

from gpg_vl.activity import in_collective

T = TypeVar("T")


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def broadcast(value: T) -> T:
    """The main process's value, on every process. All of them call it together."""
    if not torch.distributed.is_initialized():
        return value
    shared = [value]
    with in_collective():
        torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
