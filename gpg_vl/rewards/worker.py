"""The code that runs in a reward worker: load the rewards, score chunks of items, and write to shared memory which call is
running.

User code runs only here. So `_catch` is the only place where every exception is caught.
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
"""Seconds after which a worker sends its results, so that at most this much work is repeated if it is killed."""
ORPHAN_GRACE = 5.0
"""Seconds after the time limit at which a worker ends itself if its parent has not ended it."""


Task = Literal["score", "gold", "explain"]
"""What to compute for an item. `score`: the values of all named rewards. `gold`: the value of the one named reward for the gold
answer, which the worker writes itself. `explain`: the verdict of the one named reward on the single completion.
"""


class Setting(NamedTuple):
    """The settings of a worker."""

    names: tuple[str, ...]
    folder: str
    """Its working folder; a relative file.py:function is looked up from here."""
    time_limit: float
    gold: str
    """The form of gold answers for rewards that do not declare one."""
    roots: Mapping[str, str | None]
    """By source of the example: the folder that image paths are relative to. A run on one data set has one source, ""."""
    modules: tuple[str, ...] = ()
    """Modules to import first, because they register rewards."""


class Chunk(NamedTuple):
    """A message to a worker: the rewards to run, and the items by their index in the caller's list."""

    names: tuple[str, ...]
    items: list[tuple[int, Item]]
    task: Task = "score"


class Ready(NamedTuple):
    """A worker's first message: the declared range of every reward, and those without a gold form."""

    ranges: dict[str, tuple[float, float]]
    unproved: frozenset[str]
    need_answers: frozenset[str]
    """The rewards whose check needs gold answers."""
    explained: frozenset[str]
    """The rewards that return verdicts."""


class Refused(NamedTuple):
    """A worker's first and last message: a reward that cannot be used."""

    name: str
    why: Literal["unknown", "unsuitable", "import"]
    message: str


class Place:
    """Which call a worker is in and since when, in memory shared with the parent, which can read it after the worker has
    died."""

    def __init__(self, memory: Any) -> None:
        """`memory` is a shared array of four doubles: the time, then item, reward and member, or -1 for none."""
        self._memory = memory

    def enter(self, index: int, reward: int, member: int) -> float:
        now = time.monotonic()  # the same clock in all processes of a machine
        self._memory[:] = (now, index, reward, member)
        return now

    def leave(self) -> None:
        self._memory[1] = -1

    @property
    def since(self) -> float:
        return float(self._memory[0])

    def read(self) -> tuple[int, int, int] | None:
        """Item, reward and member of the call that is running; None between calls. Member -1 means all."""
        _, index, reward, member = self._memory
        return None if index < 0 else (int(index), int(reward), int(member))


def serve(pipe: Connection, output: Connection, memory: Any, setting: Setting, mark: Mark) -> None:
    """Run the worker until the parent closes the pipe or has ended."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent handles Ctrl-C and then closes the pipe
    with suppress(PermissionError):  # it is already a group leader
        os.setsid()  # do not get a SIGTERM sent to the group: the parent handles it, finishes its step and writes a checkpoint
    # the parent prints the rewards' output, escaped and limited
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

    # tell the parent what each reward declares before it sends work
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

    # check the parent's id too: a fork of the parent may keep the pipe open
    scorer = _ChunkScorer(pipe, place, setting)
    while os.getppid() == parent:
        if pipe.poll(2.0):
            chunk = pipe.recv()
            scorer.score([rewards[name] for name in chunk.names], chunk)


class _ChunkScorer:
    """Scores chunks in a worker. Holds its pipe, its place, and the timer that ends it if its parent cannot."""

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
        """The values of every reward, or the first failure. After a failure the group is lost, so nothing more of it is
        run."""
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
        if now - self._armed > 1.0:  # not before every call, because it starts a thread
            # If the parent is killed while a reward holds the interpreter lock, only a thread without it can end us.
            faulthandler.dump_traceback_later(self._end_after, exit=True, file=2)
            self._armed = now


def _explain(reward: Reward, item: Item) -> Verdict:
    """The verdict of the reward's explain function. Raises RewardValueError if it returns something else."""
    verdict = reward.function.explain(item.completions[0], item.example)  # type: ignore[attr-defined]  # set by @explained
    if not isinstance(verdict, Verdict):
        raise RewardValueError(
            f"The explain function of the reward {reward.name!r} returned {reprlib.repr(verdict)} for example "
            f"{item.example.id!r}. It must return a gpg_vl.answers.verdict.Verdict."
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

    # the example is wrong, and the message says how
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
    """`KeyError at r.py:7`: equal for the same bug, whichever example triggers it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" at {last.filename}:{last.lineno}" if last else ""
    return f"{type(error).__name__}{place}"


def with_absolute_paths(example: Example, root: str | None) -> Example:
    """The example with absolute image paths, as rewards get it."""
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
    """Call a function. Returns (its result, the exception it raised or None)."""
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
