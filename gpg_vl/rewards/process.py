"""One reward worker as its parent sees it: started, given chunks, listened to, and ended with all that it has started."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from types import ModuleType
from typing import Any

from gpg_vl.rewards.output import Printed
from gpg_vl.rewards.worker import Chunk, Place, Setting, serve

START_LIMIT = 600.0
"""Seconds that a worker may take to import the rewards, or to read a chunk. The time limit of calls does not count here."""


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep the start of a process from running the parent's main script again.

    Spawning imports the parent's `__main__` in the child: for a training script that means torch in every worker, and
    for one without an `if __name__ == "__main__"` the training itself.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Worker:
    """A worker process. It is no daemon, so that a reward may start processes of its own; whoever makes it ends it."""

    def __init__(self, setting: Setting, printed: Printed) -> None:
        context = get_context("spawn")
        memory = context.RawArray("d", (0.0, -1.0, -1.0, -1.0))
        self.pipe, theirs = context.Pipe()
        ours, output = context.Pipe(duplex=False)
        self.process = context.Process(
            target=serve,
            args=(theirs, output, memory, setting),
            daemon=False,
            name="gpg_vl reward worker",
        )
        with _without_main():
            self.process.start()
        theirs.close()
        output.close()
        self._output = printed.follow(ours)
        self.place = Place(memory)
        self.ready = False
        self.pending: list[int] = []
        """The items that it was given and has not delivered."""
        self._waiting_since = time.monotonic()
        """When it was started, or given its chunk."""
        self._time_limit = setting.time_limit

    @property
    def deadline(self) -> float:
        """When it has to be given up, in the time of `time.monotonic`."""
        if self.ready and not self.pending:
            return float("inf")
        if self.pending and self.place.since >= self._waiting_since:
            return self.place.since + self._time_limit
        return self._waiting_since + START_LIMIT

    def give(self, chunk: Chunk) -> None:
        self.pending = [index for index, _ in chunk.items]
        self._waiting_since = time.monotonic()
        with suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it died while idle; the next look at it will tell
            self.pipe.send(chunk)

    def messages(self) -> Iterator[Any]:
        """What it has sent. Raises EOFError after the last one if it is dead."""
        alive = (
            self.process.is_alive()
        )  # asked first: what it sent before it died is then in the pipe
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        if not alive:
            raise EOFError

    def end(self, *, patience: float) -> int | None:
        """Close the pipe, which ends an idle worker; kill it if it is there `patience` seconds later. The exit code.

        The processes that a reward has started are killed with it, and what it printed last is passed on.
        """
        self.pipe.close()
        self.process.join(patience)
        self._kill_group()
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10.0)
        self._output.join(1.0)
        return self.process.exitcode

    def _kill_group(self) -> None:
        """Kill the worker and its children. The group has the worker's number, which is not given to another process
        while a member is left; without one there is nobody to kill.
        """
        assert self.process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
