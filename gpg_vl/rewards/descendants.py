"""Processes that a reward has started, found in whatever session they are and whoever their parent is.

A process hands its environment on to all that it starts, and Linux keeps what each was given at its
start. A worker is started with a mark in it, so whoever carries the mark comes from that worker,
even if the worker itself has crashed. On other systems, and for a process that is started with an
empty environment, the group of the worker is all that is known.
"""

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

_ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What tells the processes that come from one worker from all others.

    Example: `Mark(variable="GPG_VL_REWARD_WORKER_1f0c", session=4711)`
    """

    variable: str
    """A name in the environment. Each worker has its own: in a pool inside of a reward, a process
    carries several.
    """
    session: int
    """That of the process that starts the worker, which has no session in common with it."""


def make_mark() -> Mark:
    """A mark that no other process of this machine carries."""
    return Mark(variable=f"GPG_VL_REWARD_WORKER_{secrets.token_hex(8)}", session=os.getsid(0))


@contextmanager
def marking(mark: Mark) -> Iterator[None]:
    """What the block starts carries the mark, and so does all that this starts."""
    # the first process that multiprocessing starts is accompanied by a tracker, which stays
    resource_tracker.ensure_running()
    os.environ[mark.variable] = "1"
    try:
        yield
    finally:
        del os.environ[mark.variable]


def kill_marked(mark: Mark) -> None:
    """Kill every process that carries the mark, except for this one."""
    # a process that forks while it is looked for leaves a child, which the next round finds
    for _ in range(_ROUNDS):
        killed = [number for number in _other_processes() if _kill_if_marked(number, mark)]
        if not killed:
            return


def _other_processes() -> Iterator[int]:
    if sys.platform != "linux":
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            yield int(folder.name)


def _kill_if_marked(number: int, mark: Mark) -> bool:
    """Kill a process if it carries the mark. True if it did."""
    # one that is of another user did not come from the worker, and one that has ended needs no end
    with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")

        # another thread of the pool's process may start something while the mark is set
        if f"{mark.variable}=1".encode() in variables and os.getsid(number) != mark.session:
            os.kill(number, signal.SIGKILL)
            return True
    return False
