"""Run rewards in worker processes with a time limit: a reward that hangs, dies or raises makes its group fail, not the run.

The parent sends an idle worker a chunk of items in one message. The worker writes to shared memory which call it is in and
since when, so the parent knows which completion makes it hang or die without a message per call. Results come back together.
A worker that exceeds the time limit is killed and replaced, and its unfinished items are given to another worker.

Workers are spawned, so they inherit no threads and no device; they import the rewards, but not torch.
"""

import atexit
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import RunError, UserError
from gpg_vl.registry import did_you_mean
from gpg_vl.rewards import GOLD_FORM, rewards
from gpg_vl.rewards.gold_proof import SAME_FAILURES, GoldOutcome
from gpg_vl.rewards.lost_call import describe_end, lost_call
from gpg_vl.rewards.scoring import (
    Item,
    Parts,
    RewardFailure,
    Scored,
    SourceRewards,
    checked_weights,
    with_rewards,
)
from gpg_vl.rewards.worker import Chunk, Outcome, Ready, Refused, Setting, Task
from gpg_vl.rewards.worker_output import Printed
from gpg_vl.rewards.worker_process import START_LIMIT, Worker
from gpg_vl.types import Example, Group

CHUNKS_PER_WORKER = 4
"""Many enough that one slow chunk at the end does not leave the other workers idle."""
MAX_CHUNK = 64
"""Maximum number of items in a chunk, because examples may contain their images."""
MAX_STILLBORN = 3
"""The pool gives up after this many workers in a row have died outside any reward."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """One call of `evaluate` in progress."""

    items: Sequence[Item]
    names: Sequence[tuple[str, ...]]
    """The rewards of each item."""
    queue: deque[list[int]]
    """Chunks that are not assigned to a worker yet, as indices into `items`."""
    outcomes: dict[int, Outcome]
    task: Task = "score"

    causes: Counter[str] = field(default_factory=Counter)
    """Number of failed calls by cause."""

    def keep(self, outcomes: Mapping[int, Outcome]) -> None:
        self.outcomes.update(outcomes)
        failed = [one for one in outcomes.values() if isinstance(one, RewardFailure)]
        self.causes.update(one.cause for one in failed if one.cause)

    @property
    def is_hopeless(self) -> bool:
        """True in a gold check if the reward has failed too often with one cause."""
        return self.task == "gold" and max(self.causes.values(), default=0) >= SAME_FAILURES

    @property
    def is_over(self) -> bool:
        return len(self.outcomes) == len(self.items) or self.is_hopeless


def _modules_of(names: Iterable[str]) -> tuple[str, ...]:
    """The modules that workers import for rewards which this process has registered with `@reward`.

    Raises UserError for a reward that no other process can import.
    """
    modules = []
    for name in names:
        origin = rewards.origin(name)
        if origin is None:
            continue
        module, function = origin
        if module == "__main__" or "<locals>" in function:
            where = "in a notebook or in the main script"
            where = where if module == "__main__" else f"inside another function, as {function}"
            raise UserError(
                f"The reward {name!r} is defined {where}. Rewards run in other processes, which cannot import it from "
                f"there. Write the function into a file, such as my_rewards.py, and name it in rewards.weights as "
                f"my_rewards.py:{function.rpartition('.')[2]}. In a notebook a cell that starts with %%writefile "
                f"my_rewards.py writes the file."
            )
        modules.append(module)
    return tuple(dict.fromkeys(modules))


class RewardPool:
    """Scores groups in worker processes. Use it as a context manager and make one call at a time.

    The workers start at the first call, or with `start`.

    weights: reward name to weight.
    time_limit: seconds for one call of a reward: for one completion, or for all completions of an example if it is batched.
    gold: the form of gold answers for rewards that do not declare one.
    root: the folder that image paths are relative to; rewards get absolute paths.
    sources: rewards, weights and root of examples by their `source`; `weights` must name the rewards of all sources.
    A relative `file.py:function` is looked up from the current folder.

    Example:
        `with RewardPool({"choice": 1.0, "format": 0.2}) as pool: scored = pool.score(groups)`
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        time_limit: float = 10.0,
        workers: int = 2,
        gold: str = GOLD_FORM,
        root: str | Path | None = None,
        sources: Mapping[str, SourceRewards] | None = None,
    ) -> None:
        self.weights = checked_weights(weights)
        by_source = {"": SourceRewards(weights=self.weights, root=root), **(sources or {})}
        self._weights_of = {name: checked_weights(one.weights) for name, one in by_source.items()}

        # refuse wrong arguments before starting any process
        if not 0.0 < time_limit < float("inf"):
            raise UserError(
                f"The time limit of the rewards is {time_limit!r}. It must be a positive number of seconds; 10 is enough "
                f"for most rewards."
            )
        if workers < 1:
            raise UserError(
                f"The number of reward workers is {workers!r}. It must be at least 1; 2 is the default."
            )

        known = rewards.names()
        for name in self.weights:
            if name not in known and ".py:" not in name:
                raise UserError(
                    f"There is no reward called {name!r}. {did_you_mean(name, known)} "
                    f"A function of your own is named as path/to/file.py:function."
                )

        self._size = workers
        self._setting = Setting(
            names=tuple(self.weights),
            folder=str(Path.cwd()),
            time_limit=time_limit,
            gold=gold,
            roots={name: _absolute(one.root) for name, one in by_source.items()},
            modules=_modules_of(self.weights),
        )
        self._printed = Printed()
        self._workers: list[Worker] = []
        self._declared: Ready | None = None
        self._stillborn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers and wait until one has loaded the rewards. Raises UserError if they cannot be loaded."""
        self._fill()
        self._declarations()

    def _declarations(self) -> Ready:
        nothing = _Job(items=[], names=[], queue=deque(), outcomes={})
        while self._declared is None:
            self._fill()
            self._advance(nothing)
        return self._declared

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The minimum and maximum value that each reward declares. Starts the workers."""
        return dict(self._declarations().ranges)

    def unproved(self) -> frozenset[str]:
        """The rewards that declare that they have no gold form. Starts the workers."""
        return self._declarations().unproved

    def need_answers(self) -> frozenset[str]:
        """The rewards for which every row needs a gold answer. Starts the workers."""
        return self._declarations().need_answers

    def explained(self) -> frozenset[str]:
        """The rewards that explain their verdicts (`@explained`). Starts the workers."""
        return self._declarations().explained

    def weights_of(self, example: Example) -> Mapping[str, float]:
        """The rewards of an example with their weights."""
        return self._weights_of[example.source]

    def score(self, groups: Sequence[Group]) -> Scored:
        """Score the groups. A group in which a call fails is left out of the result, and its first failure is reported.

        Raises UserError if a reward cannot be loaded, RunError if workers die outside any reward.
        """
        outcomes = self.evaluate([Item(group.example, group.answers) for group in groups])
        scored = [
            with_rewards(group, outcome, self.weights_of(group.example))
            for group, outcome in zip(groups, outcomes, strict=True)
            if not isinstance(outcome, RewardFailure)
        ]
        return Scored(
            groups=scored,
            failures=[outcome for outcome in outcomes if isinstance(outcome, RewardFailure)],
        )

    def evaluate(
        self, items: Sequence[Item], names: Sequence[str] | None = None
    ) -> list[Parts | RewardFailure]:
        """The values of the named rewards for every item (default: all rewards of its source), or the failure; in the order
        given.
        """
        if names is None:
            job = self._job(items, [tuple(self.weights_of(item.example)) for item in items])
        else:
            job = self._job(items, [tuple(names)] * len(items))
        self._run(job)
        return [cast(Parts | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def prove(self, examples: Sequence[Example], name: str) -> list[GoldOutcome]:
        """The reward's score of the gold answer of every example, in the order given.

        After `SAME_FAILURES` failures with one cause the check ends; examples that were not scored by then get None.
        """
        items = [Item(example, ()) for example in examples]
        job = self._job(items, [(name,)] * len(items), "gold")
        self._run(job)
        return [cast(GoldOutcome, job.outcomes.get(index)) for index in range(len(examples))]

    def explain(self, items: Sequence[Item], name: str) -> list[Verdict | RewardFailure]:
        """The verdict of an explained reward (`explained`) on the single completion of every item, in the order given."""
        job = self._job(items, [(name,)] * len(items), "explain")
        self._run(job)
        return [cast(Verdict | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def _job(
        self, items: Sequence[Item], names: Sequence[tuple[str, ...]], task: Task = "score"
    ) -> _Job:
        size = min(MAX_CHUNK, max(1, -(-len(items) // (self._size * CHUNKS_PER_WORKER))))

        # all items of a chunk are scored with the same rewards
        alike: dict[tuple[str, ...], list[int]] = {}
        for index, asked in enumerate(names):
            alike.setdefault(asked, []).append(index)
        queue = deque(
            indices[start : start + size]
            for indices in alike.values()
            for start in range(0, len(indices), size)
        )
        return _Job(items=items, names=names, queue=queue, outcomes={}, task=task)

    def _run(self, job: _Job) -> None:
        self._printed.renew()
        try:
            while not job.is_over:
                self._fill()
                self._hand_out(job)
                self._advance(job)
        finally:
            # a worker that is still busy must not answer the next call
            if len(job.outcomes) < len(job.items):
                self.close(patience=0.0)

    def close(self, *, patience: float = 2.0) -> None:
        """End the workers; those that are busy are killed after `patience` seconds. A later call starts new ones."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end(patience=patience)
        self._workers = []
        atexit.unregister(self.close)

    def _fill(self) -> None:
        if (
            not self._workers
        ):  # without it this process would wait for the workers at its exit before they are closed
            atexit.register(self.close)
        while len(self._workers) < self._size:
            self._workers.append(Worker(self._setting, self._printed))

    def _hand_out(self, job: _Job) -> None:
        for worker in self._workers:
            if job.queue and worker.ready and not worker.pending:
                indices = job.queue.popleft()
                items = [(index, job.items[index]) for index in indices]
                worker.give(Chunk(job.names[indices[0]], items, job.task))

    def _advance(self, job: _Job) -> None:
        """Wait for the next event and handle it: results, the death of a worker, or a deadline."""
        timeout = min(worker.deadline for worker in self._workers) - time.monotonic()
        timeout = min(
            max(timeout, 0.0), self._setting.time_limit
        )  # a call that begins from now on cannot be late before then
        sentinels = [worker.process.sentinel for worker in self._workers]
        connection.wait([*(worker.pipe for worker in self._workers), *sentinels], timeout)
        for worker in list(self._workers):
            try:
                for message in worker.messages():
                    self._take(worker, message, job)
            except EOFError:
                self._lose(worker, job, late=False)
            else:
                if time.monotonic() >= worker.deadline:
                    self._lose(worker, job, late=True)

    def _take(self, worker: Worker, message: Any, job: _Job) -> None:
        if isinstance(message, Refused):
            self.close(patience=0.0)
            raise UserError(_refusal(message))
        if isinstance(message, Ready):
            worker.ready, self._declared = True, message
            return
        job.keep(dict(message))
        worker.pending = [index for index in worker.pending if index not in job.outcomes]
        self._stillborn = 0

    def _lose(self, worker: Worker, job: _Job, *, late: bool) -> None:
        """Handle a worker that is dead or late: its current call fails, and its other items are given out again."""
        entered = worker.place.since
        self._workers.remove(worker)
        code = worker.end(patience=0.0 if late else 1.0)

        # the call it was in decides which group fails: none, the current one, or one that had just finished
        place = worker.place.read()
        how = f"was killed after {START_LIMIT:g} s" if late else describe_end(code)
        if place is None or place[0] not in worker.pending:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                raise RunError(
                    f"A reward worker {how} while no reward was running, {MAX_STILLBORN} times in a row. "
                    f"Its own messages are printed above; look at the memory that is left, and for a module of a "
                    f"reward that ends the process when it is imported."
                )
        elif not (
            late and worker.place.since != entered
        ):  # otherwise that call finished at the last moment and the worker was already in another
            self._stillborn = 0
            index, number, member = place
            at = None if member < 0 else member
            limit = self._setting.time_limit if late else None
            job.keep(
                {index: lost_call(job.names[index][number], job.items[index], at, how, limit=limit)}
            )

        rest = [index for index in worker.pending if index not in job.outcomes]
        if rest:
            job.queue.appendleft(rest)


def _absolute(root: str | Path | None) -> str | None:
    return None if root is None else str(Path(root).absolute())


def _refusal(refused: Refused) -> str:
    if refused.why == "unknown" and refused.name in rewards.names():
        return (
            f"The reward {refused.name!r} was registered by a decorator in this process only, and the processes that run "
            f"rewards cannot find it. Name it as path/to/file.py:function, or declare it as an entry point of the group "
            f"'gpg_vl.rewards' in an installed package."
        )
    if refused.why == "import":
        return (
            f"The reward {refused.name!r} cannot be imported. Correct its module, or install what it needs:\n"
            f"{refused.message}"
        )
    return refused.message
