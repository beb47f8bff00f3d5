"""Worker processes read and encode the prompts of the next step while this process trains.

The content of a position in the data order depends only on the position, so any process can encode it. If no worker was asked in
time, as for the first prompts of a run, or if a worker failed, this process encodes the draw itself. So errors are raised
here, at their draw and with the same message as without workers.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue

from gpg_vl.errors import RunError
from gpg_vl.spawning import deaf_to_stops, without_main
from gpg_vl.training.encoding_worker import receive, serve
from gpg_vl.training.prompt_source import Source
from gpg_vl.types import Group

END_LIMIT = 10.0
"""Seconds to wait for a process that has ended or was killed."""


@contextmanager
def encoding_ahead(source: Source, *, workers: int, ahead: int) -> Iterator[Source]:
    """Inside the block: a source with the same groups, which worker processes encode in advance. All workers end with the
    block.

    source: it is pickled and sent to the workers.
    ahead: after draw n, draw n + `ahead` is expected one round later. With `ahead` equal to the prompts of a step this also
        holds for several processes, as long as all of them draw. At most the draws of one round are held.
    """
    made = EncodedAhead(source, workers=workers, ahead=ahead)
    try:
        made.start()
        yield made
    finally:
        made.end()


class EncodedAhead:
    """See `encoding_ahead`."""

    def __init__(self, source: Source, *, workers: int, ahead: int) -> None:
        self._source = source
        self._size = workers
        self._ahead = ahead
        self._ordered: dict[int, Future[Group | None]] = {}
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="gpg_vl encoding")

    def start(self) -> None:
        # pickle here and not in a thread: the tokenizer must not be used by another thread while this process encodes
        source = bytes(ForkingPickler.dumps(self._source))
        for _ in range(self._size):
            worker = _Worker(source)
            self._workers.append(worker)
            self._idle.put(worker)

    def end(self) -> None:
        # kill the workers: their current results are not needed, and threads waiting for them notice their end
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()

    def row_at(self, draw: int) -> int:
        return self._source.row_at(draw)

    def group_at(self, draw: int) -> Group:
        """The group of a draw. Also requests the group expected one round later.

        Raises UserError as the source does, and RunError if the worker that had this draw has ended.
        """
        # drop results that were not used: another process may have drawn fewer rows than expected, and solved rows are
        # skipped
        for passed in [one for one in self._ordered if one < draw]:
            self._ordered.pop(passed).cancel()

        ordered, coming = self._ordered.pop(draw, None), draw + self._ahead
        if coming not in self._ordered:
            self._ordered[coming] = self._threads.submit(self._encode, coming)
        group = None if ordered is None else ordered.result()
        return self._source.group_at(draw) if group is None else group

    def _encode(self, draw: int) -> Group | None:
        """Runs in a thread with one worker at a time. Raises RunError."""
        worker = self._idle.get()
        try:
            return worker.encode(draw)
        finally:
            self._idle.put(worker)


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, source: bytes) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), name="gpg_vl encoding worker")
        with without_main(), deaf_to_stops():
            self._process.start()
        theirs.close()
        self._source: bytes | None = source
        """None once it has been sent; the worker reads it after its imports."""

    def encode(self, draw: int) -> Group | None:
        """The group of a draw; None if the worker could not make it. Raises RunError if it has ended."""
        try:
            if self._source is not None:
                self._pipe.send_bytes(self._source)
                self._source = None
            self._pipe.send(draw)
            return receive(self._pipe)
        except (EOFError, OSError) as error:
            self._process.join(END_LIMIT)
            raise RunError(
                f"A process of data.workers (process id {self._process.pid}) {_describe_end(self._process.exitcode)} when "
                f"it had to read and encode draw {draw} of the data order. It must run until the run ends. Check the free "
                f"memory and the messages above, lower data.workers or set it to 0, and resume from the last checkpoint "
                f"with --resume."
            ) from error

    def kill(self) -> None:
        self._process.kill()
        self._process.join(END_LIMIT)

    def close(self) -> None:
        self._pipe.close()


def _describe_end(code: int | None) -> str:
    """`was ended by SIGKILL`, `had ended with exit code 1`"""
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"had ended with exit code {code}"
