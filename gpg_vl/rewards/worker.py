"""The inside of a reward worker: load the rewards, score chunks of items, say in shared memory which call is running.

User code runs here and nowhere else, so here, in `_catch`, is the one place where any exception is caught.
"""

import faulthandler
import os
import reprlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, NoReturn

from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.registry import UnknownNameError
from gpg_vl.rewards.descendants import Mark, kill_marked
from gpg_vl.rewards.gold_proof import GoldScore, needs_answer, score_gold
from gpg_vl.rewards.scoring import Item, Parts, Reward, RewardFailure, RewardValueError, call, load
from gpg_vl.types import Example

Outcome = Parts | GoldScore | Verdict | RewardFailure

FLUSH_INTERVAL = 0.05
"""Seconds after which a worker delivers what it has: no more than that is done again if it is killed."""
ORPHAN_GRACE = 5.0
"""Seconds beyond the time limit after which a worker ends itself, because there is no parent to do it."""


Task = Literal["score", "gold", "explain"]
"""What is asked of an item: the values of all rewards that are named, or of the one that is named, its value of the gold
answer (the item has no completions, the worker writes it) or its verdict on the one completion.
"""


class Setting(NamedTuple):
    """What a worker is started with."""

    names: tuple[str, ...]
    folder: str
    """Where it works: a relative file.py:function is found from here."""
    time_limit: float
    gold: str
    """How gold answers are written for rewards that do not declare it."""
    roots: Mapping[str, str | None]
    """By source of the example: the folder that paths of images start from. A run on one set has one source, ""."""
    modules: tuple[str, ...] = ()
    """To be imported first: they register rewards."""


class Chunk(NamedTuple):
    """A message to a worker: the rewards to run, and the items by their place in the caller's list."""

    names: tuple[str, ...]
    items: list[tuple[int, Item]]
    task: Task = "score"


class Ready(NamedTuple):
    """A worker's first message: the declared range of every reward, and those without a gold form."""

    ranges: dict[str, tuple[float, float]]
    unproved: frozenset[str]
    need_answers: frozenset[str]
    """Those that are proved on gold answers."""
    explained: frozenset[str]
    """Those that tell their verdicts."""


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


def serve(pipe: Connection, output: Connection, memory: Any, setting: Setting, mark: Mark) -> None:
    """The worker's life, which ends when the parent closes the pipe or is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then closes the pipe
    with suppress(PermissionError):  # it leads a group already
        os.setsid()  # a SIGTERM to the whole group is for the parent too: it finishes its step and writes a checkpoint
    # what a reward prints is passed on by the parent, which escapes and limits it
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout = sys.stderr
    os.chdir(setting.folder)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _load_and_score(pipe, Place(memory), setting)
    _end_all(mark)


def _end_all(mark: Mark) -> NoReturn:
    """End this process and all that rewards have started: threads and processes must not outlive the pool."""
    sys.stderr.flush()
    kill_marked(mark)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _load_and_score(pipe: Connection, place: Place, setting: Setting) -> None:
    parent = os.getppid()
    for module in setting.modules:
        _, error = _catch(import_module, module)
        if error is not None:
            pipe.send(_make_refused(module, error))
            return

    rewards: dict[str, Reward] = {}
    for name in setting.names:
        reward, error = _catch(load, name, setting.gold)
        if error is not None:
            pipe.send(_make_refused(name, error))
            return
        rewards[name] = reward

    # the parent learns what each reward declares before it hands out work
    pipe.send(
        Ready(
            ranges={name: (reward.low, reward.high) for name, reward in rewards.items()},
            unproved=frozenset(name for name, one in rewards.items() if one.gold is None),
            need_answers=frozenset(name for name, one in rewards.items() if needs_answer(one.gold)),
            explained=frozenset(
                name for name, one in rewards.items() if hasattr(one.function, "explain")
            ),
        )
    )

    # who the parent is, is asked next to the pipe's end, which a fork of the parent may keep open
    scorer = _ChunkScorer(pipe, place, setting)
    while os.getppid() == parent:
        if pipe.poll(2.0):
            chunk = pipe.recv()
            scorer.score([rewards[name] for name in chunk.names], chunk)


class _ChunkScorer:
    """Where a worker scores: its pipe, its place, and the clock that ends it if its parent cannot."""

    def __init__(self, pipe: Connection, place: Place, setting: Setting) -> None:
        self._pipe = pipe
        self._place = place
        self._roots = setting.roots
        self._end_after = setting.time_limit + ORPHAN_GRACE
        self._armed = float("-inf")

    def score(self, rewards: Sequence[Reward], chunk: Chunk) -> None:
        done: list[tuple[int, Outcome]] = []
        flushed = time.monotonic()
        for index, item in chunk.items:
            now = time.monotonic()
            if done and now - flushed > FLUSH_INTERVAL:
                self._pipe.send(done)
                done, flushed = [], now
            root = self._roots.get(item.example.source)
            item = Item(with_absolute_paths(item.example, root), item.completions)
            outcome = (
                self._score_item(rewards, index, item)
                if chunk.task == "score"
                else self._ask_one(_TASKS[chunk.task], rewards[0], index, item)
            )
            done.append((index, outcome))
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
                got, error = _catch(call, reward, given, item.example)
                if error is not None:
                    return _failure(reward.name, item, who, error)
                values += got
            parts[reward.name] = tuple(values)
        return parts

    def _ask_one(
        self, ask: Callable[[Reward, Item], Outcome], reward: Reward, index: int, item: Item
    ) -> Outcome:
        member = 0 if item.completions else None
        self._enter(index, 0, member)
        got, error = _catch(ask, reward, item)
        return got if error is None else _failure(reward.name, item, member, error)

    def _enter(self, index: int, number: int, member: int | None) -> None:
        now = self._place.enter(index, number, -1 if member is None else member)
        if now - self._armed > 1.0:  # not before every call, as it starts a thread
            # If the parent is killed while a reward holds the interpreter lock, only a thread without it can end us.
            faulthandler.dump_traceback_later(self._end_after, exit=True, file=2)
            self._armed = now


def _explain(reward: Reward, item: Item) -> Verdict:
    """Raises RewardValueError if what is next to the reward (`@explained`) returns something else."""
    verdict = reward.function.explain(item.completions[0], item.example)  # type: ignore[attr-defined]  # set by @explained
    if not isinstance(verdict, Verdict):
        raise RewardValueError(
            f"What explains the reward {reward.name!r} returned {reprlib.repr(verdict)} for example {item.example.id!r}. It "
            f"must return a gpg_vl.answers.verdict.Verdict."
        )
    return verdict


_TASKS: Mapping[str, Callable[[Reward, Item], Outcome]] = {
    "gold": lambda reward, item: score_gold(reward, item.example),
    "explain": _explain,
}


def name_place(item: Item, member: int | None) -> str:
    """`completion 3 of example '7' ('<think>...')`, for messages."""
    example = f"example {item.example.id!r}"
    if item.example.source:
        example += f" of {item.example.source}"
    if not item.completions:
        return f"the gold answer of {example}"
    if member is None:
        return f"the completions of {example}"
    return f"completion {member} of {example} ({_short.repr(item.completions[member].response)})"


_short = reprlib.Repr()
_short.maxstring = 200


def _failure(name: str, item: Item, member: int | None, error: Exception) -> RewardFailure:
    if isinstance(error, RewardValueError):
        return RewardFailure(
            kind="value",
            reward=name,
            example_id=item.example.id,
            member=member,
            message=f"{error} It was given {name_place(item, member)}.",
            cause="value",
        )

    # the example is at fault, and the message says how
    if isinstance(error, UserError):
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
        f"exception on {name_place(item, member)}:\n{_traceback(error)}",
        cause=_cause(error),
    )


def _cause(error: Exception) -> str:
    """`KeyError at r.py:7`: the same for the same bug, whatever example brings it up."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" at {last.filename}:{last.lineno}" if last else ""
    return f"{type(error).__name__}{place}"


def with_absolute_paths(example: Example, root: str | None) -> Example:
    """The example as a reward is given it: with absolute paths of its images, where they are paths."""
    if root is None or all(isinstance(image, bytes) for image in example.images):
        return example
    images = tuple(
        image if isinstance(image, bytes) else os.path.join(root, image)  # noqa: PTH118  ten times as fast
        for image in example.images
    )
    return replace(example, images=images)


def _make_refused(name: str, error: Exception) -> Refused:
    if isinstance(error, UnknownNameError):
        return Refused(name, "unknown", str(error))
    if isinstance(error, UserError):
        return Refused(name, "unsuitable", str(error))
    return Refused(name, "import", _traceback(error))


def _catch(function: Callable[..., Any], *given: object) -> tuple[Any, Exception | None]:
    """What a function returns, and what it raised."""
    try:
        return function(*given), None
    except Exception as error:  # noqa: BLE001  user code may raise anything, and what it raised is reported in full
        return None, error


def _traceback(error: Exception) -> str:
    """The traceback from the frame after `_catch` on."""
    frames = error.__traceback__
    return "".join(
        traceback.format_exception(type(error), error, frames.tb_next if frames else None)
    ).rstrip()
