"""Collectives over accelerate: sums, maxima and gathered values.

With one process each function is the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from gpg_vl.activity import in_collective
from gpg_vl.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""The time limit of collectives that wait for work of unknown length; torch needs some limit."""


def sums(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Elementwise sum over all processes, in float64."""
    if accelerator.num_processes == 1:
        return list(values)

    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    with in_collective():
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()


def sum_named(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """The sum over all processes by name. A name that a process does not have counts 0 there."""
    summed: dict[str, float] = {}
    for given in gather(accelerator, dict(values)):
        for name, value in given.items():
            summed[name] = summed.get(name, 0.0) + value
    return summed


def maximum(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes."""
    if accelerator.num_processes == 1:
        return value

    tensor = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    with in_collective():
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor.item()


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Run `action` on the main process; a UserError there is raised on every process, so
    that none waits for it.
    """
    message = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            message = str(error)

    if message := gather(accelerator, message)[0]:
        raise UserError(message)


def gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """The value of every process, in the order of processes, on every process."""
    if accelerator.num_processes == 1:
        return [value]

    values: list[Any] = [None] * accelerator.num_processes
    with in_collective():
        torch.distributed.all_gather_object(values, value)
    return values


def wait_for_all(accelerator: Accelerator) -> None:
    """Return when all processes have called it."""
    with in_collective():
        accelerator.wait_for_everyone()


def once_per_node(accelerator: Accelerator, action: Callable[[], T]) -> list[T]:
    """Run `action` on the first process of each node. Returns the results of all nodes on every process.

    The other processes wait without a time limit. A UserError on any node is raised on every process with the same message.
    """
    if accelerator.num_processes == 1:
        return [action()]

    result: tuple[T] | None = None
    message = None
    if accelerator.local_process_index == 0:
        try:
            result = (action(),)
        except UserError as error:
            message = str(error)

    # a separate process group, because the default one has a shorter time limit
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    collected: list[tuple[tuple[T] | None, str | None]] = [(None, None)] * accelerator.num_processes
    with in_collective(patient=True):
        torch.distributed.all_gather_object(collected, (result, message), group=group)

    for _, said in collected:
        if said is not None:
            raise UserError(said)
    return [given[0] for given, _ in collected if given is not None]
