"""Timers that wait for the GPU, so that the measured seconds include its work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch

from gpg_vl.peak_memory import record_phase


@contextmanager
def timed(add: Callable[[float], None], device: torch.device) -> Iterator[None]:
    """Call `add` with the seconds that the block took; on CUDA it waits for the GPU at both ends."""
    _wait(device)
    start = perf_counter()
    yield
    _wait(device)
    add(perf_counter() - start)


class Clock:
    """Accumulated seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to `name`; its peak memory is recorded under the same name."""
        start = perf_counter()
        with record_phase(name):
            yield
        self.add({name: perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
