"""The peak memory of each phase of a run.

The kernel and torch each keep one high-water mark per process. It is read and reset whenever a phase begins or ends, so
the value at the end of a phase is the peak of that phase. The record is global to the process because the marks are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

WHOLE = "all"
"""The name of the overall peak since the record began, which includes the time between phases."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Peak memory in bytes.

    Example: `Peak(process=1_200_000_000, gpu=0)`
    """

    process: int
    """Resident memory of this process."""
    gpu: int
    """Memory that torch has allocated on this process's GPU; 0 without a GPU."""


class Peaks:
    """Peak memory by phase. Phases may be nested; an outer phase includes its inner phases."""

    def __init__(self) -> None:
        self._most: dict[str, Peak] = {}
        self._open = [WHOLE]
        self._turn()

    def read(self) -> dict[str, Peak]:
        """The peak of each phase so far, `all` first."""
        self._turn()
        return dict(self._most)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak memory of the block under `name`, also if the block raises."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Add the peak since the last reset to all open phases, and reset the marks."""
        held = _since_reset()
        for name in self._open:
            known = self._most.get(name, held)
            self._most[name] = Peak(
                process=max(known.process, held.process), gpu=max(known.gpu, held.gpu)
            )
        _reset()


_records: list[Peaks] = []


@contextmanager
def record_peaks() -> Iterator[Peaks]:
    """Record the phases inside the block. Outside such a block the process's marks are never reset."""
    record = Peaks()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


@contextmanager
def record_phase(name: str) -> Iterator[None]:
    """Count the block as the phase `name` of the innermost record, if there is one."""
    if not _records:
        yield
        return
    with _records[-1].phase(name):
        yield


# ---- the marks of the process


def _since_reset() -> Peak:
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return Peak(process=_resident(), gpu=gpu)


def _resident() -> int:
    """Peak bytes since the last reset on Linux; elsewhere the current bytes, because the mark cannot be reset
    there."""
    if sys.platform == "linux":
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def _reset() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        try:
            # writing 5 tells the kernel to reset the high-water mark to the current resident memory
            _RESET.write_text("5")
        except OSError:
            # a sandbox may forbid it; a phase then shows the peak since the start, an upper bound
            return
