"""A limit of CPU time for math-verify, instead of its own limit of seconds.

A computer algebra system can work on two short expressions for hours. math-verify's own limit is an alarm after whole
seconds, which on a busy machine also ends what would have taken a moment: then a right answer counts as wrong.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def within_cpu_seconds(limit: float, work: Callable[[], T], *, otherwise: T) -> T:
    """`work()`, or `otherwise` if it has used up `limit` seconds of this process's CPU time.

    math-verify takes the exception for that of its own limit, and may go on with its next comparison: the timer starts
    again each time. A signal can be raised in the main thread only; in another one, and where there are no such timers,
    time is unlimited, and the caller bounds what it hands over.
    """
    from math_verify.errors import TimeoutException  # sympy takes half a second to import

    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        return work()

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutException(f"more than {limit:g} seconds of CPU time")

    before = signal.signal(signal.SIGPROF, end)
    try:
        signal.setitimer(signal.ITIMER_PROF, limit, limit)
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TimeoutException:
        return otherwise
    finally:
        signal.signal(signal.SIGPROF, before)
