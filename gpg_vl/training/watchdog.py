"""A watchdog by which the processes of a run see what the others are doing, and end together with one message.

A thread in each process writes what its main thread is doing to the launcher's store, and reads there what the others are
doing. It uses no collective, so it works when the main thread hangs in one. With NCCL a waiting collective can only be left
by ending the process.

    train.max_wait_minutes pass in a collective        the first that notices reports who is late, and all end
    a process is killed                                the others lose its connection or heartbeat; one reports it, and all
    end
    a process stops with a message or a traceback      it reports it itself, and all end
    the launcher is killed                             the same, because nothing would end these processes later

A process that a launcher has started alone also watches whether the launcher still runs.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from types import FrameType

import psutil
from accelerate import Accelerator
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # torch's stub does not list the names

from gpg_vl.activity import CollectiveBrokenError, current
from gpg_vl.console import say, show_cursor
from gpg_vl.errors import RunError, UserError
from gpg_vl.parent_process import IS_LAUNCHED, has_lost_launcher
from gpg_vl.training.late_processes import Sighting, explain_gone, explain_late, explain_unknown

BEAT = 1.0
"""Seconds between two heartbeats of a process."""
SHORT_SILENCE = 5.0
"""Seconds without a heartbeat after which a process counts as ended if something else indicates it too: a broken connection or a
SIGTERM."""
LONG_SILENCE = 40.0
"""Seconds without a heartbeat after which a process counts as ended in any case. A process that swaps or imports may be
silent for a while."""
END_GRACE = 8.0
"""Seconds that a main thread has to end by itself once the run is over; often it is about to report the same error."""
STORE_LOST = (
    "The launcher or the process that holds the store has ended. All others were ended; resume from the last checkpoint "
    "with --resume."
)
LAST_WORD = "last word"
PRINTED = "printed"


@contextmanager
def keep_watch(accelerator: Accelerator, *, minutes: float) -> Iterator[None]:
    """Run the block on all processes. They end together, however it ends, and the reason is printed once.

    minutes: how long a process may wait in a collective. Raises SystemExit for every UserError and RunError, with the exit code
    that belongs to it. A single process only watches its launcher.
    """
    if accelerator.num_processes == 1:
        with _end_with_launcher():
            yield
        return

    watchdog = Watchdog(accelerator, minutes=minutes)
    watchdog.start()
    try:
        yield
    except Exception as error:
        code = watchdog.settle(error)
        if code is None:
            raise
        raise SystemExit(code) from None
    finally:
        watchdog.stop()


class Watchdog:
    """See `keep_watch`."""

    def __init__(self, accelerator: Accelerator, *, minutes: float) -> None:
        self._rank = accelerator.process_index
        self._ranks = range(accelerator.num_processes)
        self._is_first_here = accelerator.local_process_index == 0
        self._minutes = minutes
        self._place = _place()
        self._beat = 0
        self._last_beats: dict[int, tuple[int, float]] = {}
        """The latest heartbeat of each process, and when it was first received."""
        self._store = _connect()
        self._stopped = threading.Event()
        self._settling = threading.Event()
        self._lost = threading.Event()
        """Set when the store is lost, because every further access would print a C++ stack trace."""
        self._speech = threading.Lock()
        self._has_spoken = False
        """Whether this process has reported why it ends, so that main thread and watchdog do not both report it."""
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="gpg_vl watchdog", daemon=True)
        self._before: object = None
        self._fd_before = -1

    # ---- what the main thread does

    def start(self) -> None:
        self._publish()
        os.set_blocking(self._waker, False)
        self._fd_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGTERM, _leave_to_watchdog)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        with suppress(OSError):
            os.write(self._waker, b"\0")
        self._thread.join(END_GRACE)
        if not self._lost.is_set():
            with suppress(RuntimeError):
                self._publish(ended=True)
        signal.set_wakeup_fd(self._fd_before)
        signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]  # what `signal.signal` gave back

    def settle(self, error: Exception) -> int | None:
        """Publish the error that ended this process as the reason of the run's end, unless there is one already. Returns
        the exit code, or None if the error must be raised further.

        Messages are printed here, because the launcher kills this process as soon as another has ended.
        """
        self._settling.set()
        if isinstance(error, UserError | RunError) and not isinstance(error, CollectiveBrokenError):
            self._say(str(error), own=True)
            return 2 if isinstance(error, UserError) else 1

        if isinstance(error, CollectiveBrokenError) or _is_of_a_connection(error):
            self._say(self._explain_broken(str(error)))
            return 1

        # a bug: its traceback must be printed before the launcher notices the end
        self._has_spoken = True
        self._claim(f"Process {self._rank} ended by {type(error).__name__}: {error}")
        return None

    def _explain_broken(self, reported: str) -> str:
        """Why a collective failed: waits until another process has reported a reason or has become silent."""
        end = time.monotonic() + 2 * SHORT_SILENCE
        try:
            while time.monotonic() < end:
                if self._store.check([LAST_WORD]):
                    return ""
                if gone := self._silent(SHORT_SILENCE):
                    return explain_gone(gone)
                time.sleep(BEAT / 4)
        except RuntimeError:  # the store is lost, so no process can report any more
            return STORE_LOST
        return explain_unknown(reported)

    # ---- what the thread does

    def _run(self) -> None:
        while not self._stopped.is_set():
            ready, _, _ = select.select([self._wake], [], [], BEAT)
            signals = os.read(self._wake, 4096) if ready else b""
            if self._stopped.is_set():
                return
            try:
                self._publish()
                self._look(asked_to_end=signal.SIGTERM in signals)
            except RuntimeError:  # the store is lost, so the process that held it has ended
                self._lost.set()
                self._end_without_store()
                return

    def _look(self, *, asked_to_end: bool) -> None:
        """End this process if there is a reason to."""
        if self._store.check([LAST_WORD]):
            self._end_after_others()
            return

        now = current()
        waited = time.monotonic() - now.since
        limit = 60 * self._minutes
        if now.waits and not now.patient and waited > limit:
            self._end(explain_late(self._sightings(), waited=waited, minutes=self._minutes))
        elif asked_to_end:
            self._end_when_asked()
        elif now.waits and waited > SHORT_SILENCE and (gone := self._silent(LONG_SILENCE)):
            self._end(explain_gone(gone))
        elif has_lost_launcher():
            self._end(_explain_orphans(self._rank, self._place))

    def _end_when_asked(self) -> None:
        """Handle a SIGTERM, which comes from the launcher because a process has died, or from a user."""
        end = time.monotonic() + SHORT_SILENCE + 2 * BEAT
        while time.monotonic() < end and not self._stopped.is_set():
            self._publish()
            if self._store.check([LAST_WORD]):
                self._end_after_others()
                return
            if gone := self._silent(SHORT_SILENCE):
                self._end(explain_gone(gone))
                return
            time.sleep(BEAT / 4)

        # during training the stop request receives it too, and stops after the step
        if signal.getsignal(signal.SIGTERM) is _leave_to_watchdog:
            self._leave(128 + signal.SIGTERM)

    def _end(self, message: str) -> None:
        if not self._settling.is_set():
            self._say(message)
        self._end_after_others()

    def _end_after_others(self) -> None:
        """The run is over and the reason was reported: give the main thread some time to end, then end it."""
        end = time.monotonic() + END_GRACE
        while time.monotonic() < end and not current().waits and not self._stopped.is_set():
            time.sleep(BEAT / 4)
        self._stopped.wait(BEAT)
        self._leave(1)

    def _end_without_store(self) -> None:
        if self._stopped.wait(END_GRACE):
            return

        # the main thread may be handling a broken collective; give it time to report it
        if self._prints_without_store():
            self._print_once(STORE_LOST)
        self._leave(1)

    def _prints_without_store(self) -> bool:
        """Whether this process prints if the store is lost: one per machine. The store is in the first machine's launcher,
        or in process 0."""
        holder_prints = 0 if "TORCHELASTIC_RUN_ID" in os.environ else 1
        return self._rank == holder_prints or bool(self._is_first_here and self._rank)

    def _leave(self, code: int) -> None:
        """End this process, whatever its main thread hangs in, and the processes that it has started."""
        if not self._stopped.is_set():
            _end_now(code)

    # ---- what this process writes for the others, and reads of them

    def _publish(self, *, ended: bool = False) -> None:
        self._beat += 1
        now = current()
        seen = Sighting(
            beat=self._beat,
            place=self._place,
            what=now.what,
            seconds=time.monotonic() - now.since,
            waits=now.waits,
            patient=now.patient,
            ended=ended,
        )
        self._store.set(str(self._rank), json.dumps(asdict(seen)))

    def _sightings(self) -> dict[int, Sighting]:
        """The last report of every process that has started."""
        there = [rank for rank in self._ranks if self._store.check([str(rank)])]
        reported = self._store.multi_get([str(rank) for rank in there])
        return {
            rank: Sighting(**json.loads(word)) for rank, word in zip(there, reported, strict=True)
        }

    def _silent(self, seconds: float) -> dict[int, Sighting]:
        """The processes without a heartbeat for `seconds` seconds, by this process's clock."""
        now = time.monotonic()
        silent = {}
        for rank, seen in self._sightings().items():
            beat, since = self._last_beats.get(rank, (-1, now))
            if beat != seen.beat:
                self._last_beats[rank] = (seen.beat, now)
            elif now - since > seconds and not seen.ended and rank != self._rank:
                silent[rank] = seen
        return silent

    def _say(self, message: str, *, own: bool = False) -> None:
        """Print the message if it becomes the reported reason. `own`: print it in any case."""
        reported = self._claim(message)
        if reported is None or (own and reported != message):
            self._print_once(message)
            with suppress(RuntimeError):
                self._store.set(PRINTED, "1")
        with suppress(RuntimeError):
            self._store.wait([PRINTED], timedelta(seconds=END_GRACE))

    def _print_once(self, message: str) -> None:
        """Print why this process ends, unless it has done so before."""
        with self._speech:
            if not self._has_spoken:
                _print(message)
            self._has_spoken = True

    def _claim(self, message: str) -> str | None:
        """Try to set the run's reported reason. Returns None on success, else the existing reason."""
        claim = json.dumps([self._rank, message])
        try:
            rank, reported = json.loads(self._store.compare_set(LAST_WORD, "", claim))
        except RuntimeError:
            return None if self._prints_without_store() else ""
        return None if rank == self._rank else str(reported)


@contextmanager
def _end_with_launcher() -> Iterator[None]:
    """Inside the block this process ends when its launcher ends, because nothing else would end it."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(BEAT):
            if has_lost_launcher():
                _print(_explain_orphans(0, _place()))
                _end_now(1)

    if not IS_LAUNCHED:
        yield
        return
    thread = threading.Thread(target=watch, name="gpg_vl watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(END_GRACE)


def _explain_orphans(rank: int, place: str) -> str:
    return (
        f"The launcher of process {rank} ({place}) has ended, and nothing else would end its processes. All were "
        f"ended; resume from the last checkpoint with --resume."
    )


def _place() -> str:
    return f"{socket.gethostname()}, process id {os.getpid()}"


def _end_now(code: int) -> None:
    """End this process, whatever its main thread hangs in, and the processes that it has started."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    show_cursor()
    sys.stderr.flush()
    os._exit(code)


def _connect() -> Store:
    """A separate connection to the launcher's store, because the main connection may be blocked."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"gpg_vl/{attempt}", store)


def _is_of_a_connection(error: Exception) -> bool:
    """Whether an error comes from a collective that is not marked as one, as in the hooks of a wrapper."""
    if isinstance(error, distributed.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _leave_to_watchdog(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM: does nothing, because the thread has already received the signal number."""


def _print(message: str) -> None:
    say(f"gpg-vl: {message}", error=True)
