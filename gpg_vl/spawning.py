"""Start worker processes that inherit nothing from this process except what they are given."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that the block starts do not run the parent's main script again.

    Spawning imports the parent's `__main__` in the child. For a training script, every worker would import torch; without
        an `if __name__ == "__main__"` guard, it would even start training.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def deaf_to_stops() -> Iterator[None]:
    """Processes that the block starts never receive Ctrl-C and SIGTERM. This process receives them when the block
    ends."""
    # multiprocessing starts a resource tracker with its first process, which would unblock the signals; start it
    # before
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
