"""The few things that processes tell each other, over accelerate.

With one process each is the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from gpg_vl.errors import UserError


def sums(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Elementwise sum over all processes, in float64."""
    if accelerator.num_processes == 1:
        return list(values)

    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def sum_named(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """The sum over all processes by name. A name that a process does not have counts 0 there."""
    summed: dict[str, float] = {}
    for given in gathered(accelerator, dict(values)):
        for name, value in given.items():
            summed[name] = summed.get(name, 0.0) + value
    return summed


def most(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes."""
    if accelerator.num_processes == 1:
        return value

    tensor = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor.item()


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Run `action` on the main process; what a user got wrong there is raised on every process, so
    that none waits for it.
    """
    message = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            message = str(error)

    if message := gathered(accelerator, message)[0]:
        raise UserError(message)


def gathered(accelerator: Accelerator, value: Any) -> list[Any]:
    """The value of every process, in the order of processes, on every process."""
    if accelerator.num_processes == 1:
        return [value]

    values: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values
