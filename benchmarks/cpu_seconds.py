"""CPU seconds of a program at each line of a file that it writes, whoever wrote the program.

Seconds of a processor are what a busy machine leaves as it is, so programs can be compared that did not run at the same time.
"""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL = 0.05
"""Seconds between two looks at the file: the error of a mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What a program took."""

    marks: tuple[float, ...]
    """CPU seconds since its start, when line 0, 1, ... of its file was there."""
    seconds: float
    """CPU seconds of all of it."""
    peak_bytes: int
    """Most resident memory of the program and its children together."""
    largest_bytes: int
    """Most resident memory of one of them."""


def run_metered(
    words: Sequence[str],
    file: Path,
    *,
    threads: int = 1,
    log: Path | None = None,
    enough: Callable[[Sequence[str]], bool] | None = None,
) -> Metered:
    """Run a program to its end. It and its children count.

    threads: what OMP_NUM_THREADS says to it. log: where its output goes; None leaves it on the terminal. enough: asked with
        all lines when there is a new one; from True on the program is told to stop (SIGTERM), and may end with 143.
    Raises subprocess.CalledProcessError if it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    stream = log.open("w") if log else None
    marks: list[float] = []
    peak, largest, seconds, told = 0, 0, 0.0, False
    with subprocess.Popen(words, stdout=stream, stderr=stream, env=environment) as process:
        program = psutil.Process(process.pid)
        while process.poll() is None:
            now, resident = _usage(program)
            seconds, peak = max(seconds, now), max(peak, sum(resident))
            largest = max(largest, *resident)
            lines = _lines(file)
            if enough and not told and len(lines) > len(marks) and enough(lines):
                process.terminate()
                told = True
            marks += [seconds] * (len(lines) - len(marks))
            time.sleep(POLL)

    if stream:
        stream.close()
    if process.returncode not in ({0, 143} if told else {0}):
        raise subprocess.CalledProcessError(process.returncode, list(words))
    marks += [seconds] * (len(_lines(file)) - len(marks))
    return Metered(marks=tuple(marks), seconds=seconds, peak_bytes=peak, largest_bytes=largest)


def _usage(program: psutil.Process) -> tuple[float, list[int]]:
    """(CPU seconds, resident bytes of each) of a process and those below it; (0, [0]) of one that has just ended."""
    try:
        family = [program, *program.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0, [0]

    seconds, resident = 0.0, [0]
    for process in family:
        try:
            times = process.cpu_times()
            resident.append(process.memory_info().rss)
        except psutil.NoSuchProcess:  # its seconds are now among those of its parent
            continue
        # children that have ended and were waited for are counted by their parent
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds, resident


def _lines(file: Path) -> list[str]:
    """Those that are whole."""
    return file.read_text().split("\n")[:-1] if file.exists() else []
