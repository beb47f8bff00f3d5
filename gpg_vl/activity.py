"""What this process is doing, for the other processes of its run, which may have to wait for it.

There is one record for a process and not one for an object: its main thread does one thing at a time, whoever asked for it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gpg_vl.errors import RunError


class CollectiveBrokenError(RunError):
    """The processes did not come together: one has ended, or the library gave up waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a process does.

    Example: `Activity(what="the rollout of step 12", since=71.5)`
    """

    what: str
    since: float
    """In the time of `time.monotonic` of this process."""
    waits: bool = False
    """True while it is in a collective, which ends when all processes have come."""
    patient: bool = False
    """True for a collective that may take as long as it likes."""


_activities = [Activity(what="starting", since=time.monotonic())]


def current() -> Activity:
    return _activities[-1]


@contextmanager
def doing(what: str) -> Iterator[None]:
    """The block is called `what`, such as "the rollout of step 12"."""
    with _push_activity(Activity(what=what, since=time.monotonic())):
        yield


@contextmanager
def in_collective(*, patient: bool = False) -> Iterator[None]:
    """The block ends when all processes have come to it. Raises CollectiveBrokenError when one of them will not.

    patient: there is no limit to the waiting, because one of them has work of unknown length.
    """
    here = Activity(what=current().what, since=time.monotonic(), waits=True, patient=patient)
    try:
        with _push_activity(here):
            yield
    except (RunError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # what torch makes of a connection that is closed, or late
        raise CollectiveBrokenError(str(error)) from error


@contextmanager
def _push_activity(activity: Activity) -> Iterator[None]:
    _activities.append(activity)
    try:
        yield
    finally:
        _activities.pop()
