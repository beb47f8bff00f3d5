"""Tensor parallelism: processes of one launch share a vLLM engine, each with a part of its weights.

vLLM schedules in each process separately, without communication. So all processes must pass the same requests in the same order;
otherwise they would wait for each other forever. Therefore they combine their requests first.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from torch import distributed

from gpg_vl.activity import in_collective

T = TypeVar("T")


class EngineGroup:
    """The group of `size` consecutive processes that share an engine, including this one.

    All processes must create it, and call its methods, together.
    """

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0
        self._name = ""
        self._group: distributed.ProcessGroup | None = None
        if size == 1:
            return

        # every process must take part in creating every group, not only its own
        rank = distributed.get_rank()
        for first in range(0, distributed.get_world_size(), size):
            ranks = range(first, first + size)
            group = distributed.new_group(list(ranks), backend="gloo")
            if rank in ranks:
                self._group, self._place = group, rank - first

    def gather(self, own_values: Sequence[T]) -> tuple[list[T], slice]:
        """The values of all processes of the group, in order of processes, and the slice of this process's own values."""
        if self._size == 1:
            return list(own_values), slice(0, len(own_values))

        hands: list[list[T]] = [[] for _ in range(self._size)]
        with in_collective():
            distributed.all_gather_object(hands, list(own_values), group=self._group)
        first = sum(len(hand) for hand in hands[: self._place])
        return [given for hand in hands for given in hand], slice(first, first + len(own_values))

    def arguments(self) -> dict[str, Any]:
        """Start arguments of vLLM's engine that make it part of this launch and use this process's device."""
        if not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return {}

        arguments = {"distributed_executor_backend": "external_launcher"}
        if self._size > 1 and not torch.cuda.is_available():
            (self._name, *_), _ = self.gather([uuid4().hex])
            os.environ["VLLM_DIST_IDENT"] = self._name
            arguments["worker_cls"] = "gpg_vl.rollout.vllm.cpu_worker.NamedCPUWorker"
        return arguments

    def mark_started(self) -> None:
        """Called when the engines of all processes run. Removes their files in shared memory, so that none is left
        behind."""
        if self._size == 1:
            return
        from vllm.distributed.parallel_state import get_tp_group

        # this queue, for drivers that send work to other processes, deletes its file itself
        get_tp_group().mq_broadcaster = None
        if self._name:
            for file in Path("/dev/shm").glob(f"{self._name}-*"):
                file.unlink(missing_ok=True)
