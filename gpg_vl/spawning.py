"""The start of worker processes that inherit nothing of this one but what they are given."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType


@contextmanager
def without_main() -> Iterator[None]:
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


@contextmanager
def deaf_to_stops() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach no process that the block starts, from its first instruction on; here they wait for its end."""
    # the first process that multiprocessing starts is accompanied by a tracker, whose start would let the signals in again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
