"""The inside of a reward worker: load the rewards, score chunks of items, say in shared memory which call is running.

User code runs here and nowhere else, so here, in `_caught`, is the one place where any exception is caught.
"""

import faulthandler
import os
import reprlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.registry import UnknownNameError
from gpg_vl.rewards.scoring import Item, Parts, Reward, RewardFailure, RewardValueError, call, load

Outcome = Parts | RewardFailure

FLUSH_INTERVAL = 0.05
"""Seconds after which a worker delivers what it has: no more than that is done again if it is killed."""
ORPHAN_GRACE = 5.0
"""Seconds beyond the time limit after which a worker ends itself, because there is no parent to do it."""


class Chunk(NamedTuple):
    """A message to a worker: the rewards to run, and the items by their place in the caller's list."""

    names: tuple[str, ...]
    items: list[tuple[int, Item]]


class Ready(NamedTuple):
    """A worker's first message: the declared range of every reward."""

    ranges: dict[str, tuple[float, float]]


class Refused(NamedTuple):
    """A worker's first and last message: a reward that cannot be used."""

    name: str
    why: Literal["unknown", "unsuitable", "import"]
    message: str


class Place:
    """Which call a worker is in and since when, in memory that it shares with the parent. It outlives the worker."""

    def __init__(self, memory: Any) -> None:
        """`memory` is a shared array of four doubles: the time, then item, reward and member, or -1 for none."""
        self._memory = memory

    def enter(self, index: int, reward: int, member: int) -> float:
        now = time.monotonic()  # one clock for all processes of a machine
        self._memory[:] = (now, index, reward, member)
        return now

    def leave(self) -> None:
        self._memory[1] = -1

    @property
    def since(self) -> float:
        return float(self._memory[0])

    def read(self) -> tuple[int, int, int] | None:
        """Item, reward and member of the call that is running; None between calls. Member -1 stands for all."""
        _, index, reward, member = self._memory
        return None if index < 0 else (int(index), int(reward), int(member))


def serve(
    pipe: Connection, memory: Any, names: Sequence[str], folder: str, time_limit: float
) -> None:
    """The worker's life, which ends when the parent closes the pipe or is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then closes the pipe
    with suppress(PermissionError):  # it leads a group already
        os.setsid()  # a SIGTERM to the whole group is for the parent too: it finishes its step and writes a checkpoint
    with suppress(OSError):
        os.dup2(
            2, 1
        )  # what a reward prints belongs to the log: standard output may be somebody's data
    sys.stdout = sys.stderr
    os.chdir(folder)  # a relative file.py:function means the folder in which the pool was made
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _load_and_score(pipe, Place(memory), names, time_limit)
    os._exit(0)  # threads that a reward has left behind must not keep the process


def _load_and_score(
    pipe: Connection, place: Place, names: Sequence[str], time_limit: float
) -> None:
    parent = os.getppid()
    rewards: dict[str, Reward] = {}
    for name in names:
        reward, error = _caught(load, name)
        if error is not None:
            pipe.send(_refused(name, error))
            return
        rewards[name] = reward
    pipe.send(Ready({name: (reward.low, reward.high) for name, reward in rewards.items()}))
    desk = _Desk(pipe, place, time_limit)
    while (
        os.getppid() == parent
    ):  # asked beside the pipe's end, which a fork of the parent may keep open
        if pipe.poll(2.0):
            chunk = pipe.recv()
            desk.score([rewards[name] for name in chunk.names], chunk.items)


class _Desk:
    """Where a worker scores: its pipe, its place, and the clock that ends it if its parent cannot."""

    def __init__(self, pipe: Connection, place: Place, time_limit: float) -> None:
        self._pipe = pipe
        self._place = place
        self._end_after = time_limit + ORPHAN_GRACE
        self._armed = float("-inf")

    def score(self, rewards: Sequence[Reward], items: Sequence[tuple[int, Item]]) -> None:
        done: list[tuple[int, Outcome]] = []
        flushed = time.monotonic()
        for index, item in items:
            now = time.monotonic()
            if done and now - flushed > FLUSH_INTERVAL:
                self._pipe.send(done)
                done, flushed = [], now
            done.append((index, self._score_item(rewards, index, item)))
        self._place.leave()
        faulthandler.cancel_dump_traceback_later()
        self._armed = float("-inf")
        self._pipe.send(done)

    def _score_item(self, rewards: Sequence[Reward], index: int, item: Item) -> Outcome:
        """The values of every reward, or the first failure: the group is lost then, so nothing more of it is run."""
        parts: Parts = {}
        for number, reward in enumerate(rewards):
            values: list[float] = []
            for member, given in enumerate(
                [list(item.completions)] if reward.batched else item.completions
            ):
                who = None if reward.batched else member
                self._enter(index, number, who)
                got, error = _caught(call, reward, given, item.example)
                if error is not None:
                    return _failure(reward.name, item, who, error)
                values += got
            parts[reward.name] = tuple(values)
        return parts

    def _enter(self, index: int, number: int, member: int | None) -> None:
        now = self._place.enter(index, number, -1 if member is None else member)
        if now - self._armed > 1.0:  # not before every call, as it starts a thread
            # If the parent is killed while a reward holds the interpreter lock, only a thread without it can end us.
            faulthandler.dump_traceback_later(self._end_after, exit=True, file=2)
            self._armed = now


def where(item: Item, member: int | None) -> str:
    """`completion 3 of example '7' ('<think>...')`, for messages."""
    if member is None:
        return f"the completions of example {item.example.id!r}"
    return f"completion {member} of example {item.example.id!r} ({_short.repr(item.completions[member].response)})"


_short = reprlib.Repr()
_short.maxstring = 200


def _failure(name: str, item: Item, member: int | None, error: Exception) -> RewardFailure:
    if isinstance(error, RewardValueError):
        return RewardFailure(
            kind="value",
            reward=name,
            example_id=item.example.id,
            member=member,
            message=f"{error} It was given {where(item, member)}.",
        )
    if isinstance(error, UserError):  # the example is at fault, and the message says how
        return RewardFailure(
            kind="exception",
            reward=name,
            example_id=item.example.id,
            member=member,
            message=f"The reward {name!r} cannot score example {item.example.id!r}: {error}",
        )
    return RewardFailure(
        kind="exception",
        reward=name,
        example_id=item.example.id,
        member=member,
        message=f"The reward {name!r} must return 0.0 for what it cannot parse, but it raised an "
        f"exception on {where(item, member)}:\n{_traceback(error)}",
    )


def _refused(name: str, error: Exception) -> Refused:
    if isinstance(error, UnknownNameError):
        return Refused(name, "unknown", str(error))
    if isinstance(error, UserError):
        return Refused(name, "unsuitable", str(error))
    return Refused(name, "import", _traceback(error))


def _caught(function: Callable[..., Any], *given: object) -> tuple[Any, Exception | None]:
    """What a function returns, and what it raised."""
    try:
        return function(*given), None
    except Exception as error:  # noqa: BLE001  user code may raise anything, and what it raised is reported in full
        return None, error


def _traceback(error: Exception) -> str:
    """The traceback from the frame after `_caught` on."""
    frames = error.__traceback__
    return "".join(
        traceback.format_exception(type(error), error, frames.tb_next if frames else None)
    ).rstrip()
