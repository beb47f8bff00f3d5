"""Find processes that a reward has started, whatever their session or parent process is.

A process passes its environment on to its children, and Linux keeps the environment that each
process had at its start. A worker is started with a marker variable in its environment, so every
process with that variable comes from that worker, even if the worker itself has crashed. On other
systems, and for a process that was started with an empty environment, only the process group of
the worker is known.
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
    """Identifies the processes that come from one worker.

    Example: `Mark(variable="GPG_VL_REWARD_WORKER_1f0c", session=4711)`
    """

    variable: str
    """A name in the environment. Each worker has its own: in a pool inside of a reward, a process
    carries several.
    """
    session: int
    """The session of the process that starts the worker. The worker is in another one."""


def make_mark() -> Mark:
    """A new mark that no other process on this machine has."""
    return Mark(variable=f"GPG_VL_REWARD_WORKER_{secrets.token_hex(8)}", session=os.getsid(0))


@contextmanager
def marking(mark: Mark) -> Iterator[None]:
    """Processes started in the block carry the mark, and so do their descendants."""
    # multiprocessing starts a tracker with its first process; the tracker must not carry the mark
    resource_tracker.ensure_running()
    os.environ[mark.variable] = "1"
    try:
        yield
    finally:
        del os.environ[mark.variable]


def kill_marked(mark: Mark) -> None:
    """Kill every process that carries the mark, except for this one."""
    # a process may fork during the search; the next round finds its child
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
    # a process of another user did not come from the worker, and one that has ended needs no kill
    with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")

        # another thread of the pool's process may start something while the mark is set
        if f"{mark.variable}=1".encode() in variables and os.getsid(number) != mark.session:
            os.kill(number, signal.SIGKILL)
            return True
    return False
