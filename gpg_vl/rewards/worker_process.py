"""One reward worker as its parent sees it: started, given chunks, listened to, and ended with all that it has started."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

from gpg_vl.rewards.descendants import kill_marked, make_mark, marking
from gpg_vl.rewards.worker import Chunk, Place, Setting, serve
from gpg_vl.rewards.worker_output import Printed
from gpg_vl.spawning import without_main

START_LIMIT = 600.0
"""Seconds that a worker may take to import the rewards, or to read a chunk. The time limit of calls does not count here."""


class Worker:
    """A worker process. It is no daemon, so that a reward may start processes of its own; whoever makes it ends it."""

    def __init__(self, setting: Setting, printed: Printed) -> None:
        context = get_context("spawn")
        memory = context.RawArray("d", (0.0, -1.0, -1.0, -1.0))
        self.pipe, child_pipe = context.Pipe()
        output_reader, output = context.Pipe(duplex=False)
        self._mark = make_mark()
        self.process = context.Process(
            target=serve,
            args=(child_pipe, output, memory, setting, self._mark),
            daemon=False,
            name="gpg_vl reward worker",
        )
        with without_main(), marking(self._mark):
            self.process.start()
        child_pipe.close()
        output.close()
        self._output = printed.follow(output_reader)
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

        # what has left the group for a session of its own
        kill_marked(self._mark)
        self._output.join(1.0)
        return self.process.exitcode

    def _kill_group(self) -> None:
        """Kill the worker and its children. The group has the worker's number, which is not given to another process
        while a member is left; without one there is nobody to kill.
        """
        assert self.process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
