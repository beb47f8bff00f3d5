"""The parent's side of one reward worker: start it, send it chunks, receive its messages, and end it with all its
children."""

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
"""Time limit for a worker to import the rewards, or to read a chunk. It is separate from the time limit of calls."""


class Worker:
    """A worker process. It is not a daemon, so that a reward may start processes itself; its creator must end it."""

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

        # the parent must not hold the worker's ends, or it would never see them close
        child_pipe.close()
        output.close()

        self._output = printed.follow(output_reader)
        self.place = Place(memory)
        self.ready = False
        self.pending: list[int] = []
        """The items that it has received and not returned."""
        self._waiting_since = time.monotonic()
        """When it was started or received its chunk."""
        self._time_limit = setting.time_limit

    @property
    def deadline(self) -> float:
        """When it counts as late, by `time.monotonic`."""
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
        ):  # it died while idle; the next check finds out
            self.pipe.send(chunk)

    def messages(self) -> Iterator[Any]:
        """The messages it has sent. Raises EOFError after the last one if it is dead."""
        alive = (
            self.process.is_alive()
        )  # check this first: then everything it sent before it died is in the pipe
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        if not alive:
            raise EOFError

    def end(self, *, patience: float) -> int | None:
        """Close the pipe, which ends an idle worker; kill it if it still runs `patience` seconds later. Returns the exit
        code.

        The processes that a reward has started are killed too, and its last output is passed on.
        """
        self.pipe.close()
        self.process.join(patience)
        self._kill_group()
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10.0)

        # processes that have left the group by starting their own session
        kill_marked(self._mark)
        self._output.join(1.0)
        return self.process.exitcode

    def _kill_group(self) -> None:
        """Kill the worker and its children. The group has the worker's id, which the system does not give to another
        process while the group has a member; without members there is nothing to kill.
        """
        assert self.process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
