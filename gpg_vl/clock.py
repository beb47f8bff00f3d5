"""Seconds that include what a GPU is still computing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


@contextmanager
def timed(add: Callable[[float], None], device: torch.device) -> Iterator[None]:
    """Call `add` with the seconds that the block took; on CUDA both ends wait for what was launched."""
    _wait(device)
    start = perf_counter()
    yield
    _wait(device)
    add(perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
