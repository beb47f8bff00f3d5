"""The most memory that each phase of a run has held.

The kernel and torch each keep one high-water mark for a process. It is read and reset wherever a phase begins or ends,
so that what is read at the end of a phase was reached in it. There is one record for a process and not one for an
object, because the marks are those of the process.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

WHOLE = "all"
"""The name under which everything stands that was held since the record began, also between phases."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes that were held at most.

    Example: `Peak(process=1_200_000_000, gpu=0)`
    """

    process: int
    """Resident memory of this process."""
    gpu: int
    """What torch has allocated on this process's GPU; 0 without one."""


class Peaks:
    """The peaks of one record, by phase. Phases may lie inside each other; an outer one holds what its parts hold."""

    def __init__(self) -> None:
        self._most: dict[str, Peak] = {}
        self._open = [WHOLE]
        self._turn()

    def read(self) -> dict[str, Peak]:
        """The most of each phase so far, `all` first."""
        self._turn()
        return dict(self._most)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the block holds at most belongs to `name`, also when the block fails."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Credit what was held since the last turn to all phases that are open, and start the next turn."""
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
    """Phases inside of the block are recorded. Outside of such a block no mark of the process is touched."""
    record = Peaks()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


@contextmanager
def record_phase(name: str) -> Iterator[None]:
    """The block is the phase `name` of the innermost record, if there is one."""
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
    """Bytes at most since the last reset on Linux; elsewhere those of now, as no mark can be reset there."""
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
            # 5 is the kernel's word for: set the high-water mark to what is resident now
            _RESET.write_text("5")
        except OSError:
            # a sandbox may forbid it; a phase then shows the most since the start, an upper bound
            return
