"""Processes of one launch that share a vLLM engine, each with a part of its weights.

vLLM then schedules in each of them by itself, without communication between them: all must be given the same requests in the same
order, and each would wait for ever for one that is given fewer. So they ask together.
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
    """The `size` consecutive processes that this one shares its engine with; alone if that is 1.

    Making one, and every call of it, is for all processes at once.
    """

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0
        self._name = ""
        self._group: distributed.ProcessGroup | None = None
        if size == 1:
            return

        # every process takes part in making each group, its own and the others'
        rank = distributed.get_rank()
        for first in range(0, distributed.get_world_size(), size):
            ranks = range(first, first + size)
            group = distributed.new_group(list(ranks), backend="gloo")
            if rank in ranks:
                self._group, self._place = group, rank - first

    def gather(self, own_values: Sequence[T]) -> tuple[list[T], slice]:
        """What all of them hand in, in the order of the processes, and where this one's part of it is."""
        if self._size == 1:
            return list(own_values), slice(0, len(own_values))

        hands: list[list[T]] = [[] for _ in range(self._size)]
        with in_collective():
            distributed.all_gather_object(hands, list(own_values), group=self._group)
        first = sum(len(hand) for hand in hands[: self._place])
        return [given for hand in hands for given in hand], slice(first, first + len(own_values))

    def arguments(self) -> dict[str, Any]:
        """How vLLM's engine is started so that it belongs to this launch and uses this process's device."""
        if not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return {}

        arguments = {"distributed_executor_backend": "external_launcher"}
        if self._size > 1 and not torch.cuda.is_available():
            (self._name, *_), _ = self.gather([uuid4().hex])
            os.environ["VLLM_DIST_IDENT"] = self._name
            arguments["worker_cls"] = "gpg_vl.rollout.vllm.cpu_worker.NamedCPUWorker"
        return arguments

    def mark_started(self) -> None:
        """The engines of all of them run. However this process ends now, no file of theirs stays in memory."""
        if self._size == 1:
            return
        from vllm.distributed.parallel_state import get_tp_group

        # a queue for drivers that send work to other processes; it takes its file with it
        get_tp_group().mq_broadcaster = None
        if self._name:
            for file in Path("/dev/shm").glob(f"{self._name}-*"):
                file.unlink(missing_ok=True)
