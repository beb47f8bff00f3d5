"""A record of what this process is doing. Other processes of the run read it when they have to wait for this one.

The record is global to the process, because its main thread does one thing at a time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gpg_vl.errors import RunError


class CollectiveBrokenError(RunError):
    """A collective failed: a process has ended, or the library timed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a process is doing.

    Example: `Activity(what="the rollout of step 12", since=71.5)`
    """

    what: str
    since: float
    """When it began, by this process's `time.monotonic`."""
    waits: bool = False
    """True inside a collective, which ends when all processes have reached it."""
    patient: bool = False
    """True for a collective without a time limit."""


_activities = [Activity(what="starting", since=time.monotonic())]


def current() -> Activity:
    return _activities[-1]


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Record that this process is doing `what`, such as "the rollout of step 12", while the block runs."""
    with _push_activity(Activity(what=what, since=time.monotonic())):
        yield


@contextmanager
def in_collective(*, patient: bool = False) -> Iterator[None]:
    """Mark the block as a collective, which all processes have to reach. Raises CollectiveBrokenError if one of them
    fails.

    patient: the wait has no time limit, because one process has work of unknown length.
    """
    here = Activity(what=current().what, since=time.monotonic(), waits=True, patient=patient)
    try:
        with _push_activity(here):
            yield
    except (RunError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # torch raises it for a connection that was closed or timed out
        raise CollectiveBrokenError(str(error)) from error


@contextmanager
def _push_activity(activity: Activity) -> Iterator[None]:
    _activities.append(activity)
    try:
        yield
    finally:
        _activities.pop()
