"""An optimizer whose moments wait in the memory of the CPU, and come to the device a page of weights at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpg_vl.errors import UserError
from gpg_vl.training.memory import PAGE_ELEMENTS


def refuse_offload(sharding: str) -> None:
    """Raises UserError: weights that every process computes with all of cannot wait elsewhere."""
    raise UserError(
        f"train.offload is all, but under train.sharding {sharding} every process computes with weights that it holds itself. "
        f"Set train.offload to optimizer, or train.sharding to fsdp2 or zero3."
    )


@torch.no_grad()
def step_in_pages(optimizer: torch.optim.Optimizer, page_elements: int = PAGE_ELEMENTS) -> None:
    """One step, with the numbers that `optimizer.step()` has. Gradients are used up: none is left.

    The optimizer must do with each weight what it does whatever the others are, and skip those without gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = {p: p.grad for p in parameters}
    optimizer.zero_grad(set_to_none=True)

    for page in _pages(parameters, page_elements):
        for parameter in page:
            parameter.grad = gradients.pop(parameter)
            _move(optimizer, parameter, parameter.device)
        optimizer.step()
        for parameter in page:
            parameter.grad = None
            _move(optimizer, parameter, torch.device("cpu"))


@torch.no_grad()
def move_to_cpu(optimizer: torch.optim.Optimizer) -> None:
    """All moments into the memory of the CPU."""
    for parameter in optimizer.state:
        _move(optimizer, parameter, torch.device("cpu"))


def _pages(parameters: list[nn.Parameter], page_elements: int) -> Iterator[list[nn.Parameter]]:
    page: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        if page and held + parameter.numel() > page_elements:
            yield page
            page, held = [], 0
        page.append(parameter)
        held += parameter.numel()
    if page:
        yield page


def _move(optimizer: torch.optim.Optimizer, parameter: Tensor, device: torch.device) -> None:
    """What the optimizer keeps of a weight, in place: of a tensor that is spread, this process's part."""
    for value in optimizer.state[parameter].values():
        # a number of AdamW's is looked at on the weight's device in each step
        if isinstance(value, Tensor) and value.dim() > 0:
            part = value.to_local() if isinstance(value, DTensor) else value
            part.data = _copy_to(part.data, device)


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Through memory that a GPU reads and writes by itself."""
    if device.type == "cpu" and tensor.is_cuda:
        return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor)
    return tensor.to(device, non_blocking=True)
