"""Rewards in worker processes with a time limit: a reward that hangs, dies or raises costs its group, not the run.

The parent hands an idle worker a chunk of items in one message. The worker notes in shared memory which call it is in
and since when, so the parent can tell which completion hangs or kills without a message for each; results come back
together. A worker that is late is killed and replaced, and what it had not delivered is given out again.

Workers are spawned, so they inherit no threads and no device; they import the rewards, but not torch.
"""

import atexit
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from gpg_vl.rewards.output import Printed
from gpg_vl.rewards.process import START_LIMIT, Worker
from gpg_vl.rewards.scoring import Item, Parts, RewardFailure, Scored, checked_weights, with_rewards
from gpg_vl.rewards.worker import Chunk, Outcome, Ready, Refused, Setting, Task, where
from gpg_vl.types import Example, Group

CHUNKS_PER_WORKER = 4
"""Small enough that one slow chunk at the end does not leave the other workers idle."""
MAX_CHUNK = 64
"""Items in a chunk: examples may carry their images."""
MAX_STILLBORN = 3
"""Workers in a row that may die outside of any reward before the pool gives up."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """One call of `evaluate` under way."""

    items: Sequence[Item]
    names: tuple[str, ...]
    queue: deque[list[int]]
    """Chunks that no worker has, as places in `items`."""
    outcomes: dict[int, Outcome]
    task: Task = "score"

    causes: Counter[str] = field(default_factory=Counter)
    """How often calls have failed, by cause."""

    def keep(self, outcomes: Mapping[int, Outcome]) -> None:
        self.outcomes.update(outcomes)
        failed = [one for one in outcomes.values() if isinstance(one, RewardFailure)]
        self.causes.update(one.cause for one in failed if one.cause)

    @property
    def is_hopeless(self) -> bool:
        """True for gold answers on which the reward has failed too often for one cause."""
        return self.task == "gold" and max(self.causes.values(), default=0) >= SAME_FAILURES

    @property
    def is_over(self) -> bool:
        return len(self.outcomes) == len(self.items) or self.is_hopeless


class RewardPool:
    """Scores groups in worker processes. Use it as a context manager; one call at a time.

    The workers start at the first call, or with `start`. `time_limit` is in seconds, for one call of a reward: one
    completion, or all of an example if it is batched. A relative `file.py:function` is found from the present folder.
    `gold` is how gold answers are written for rewards that do not declare it. `root` is the folder that paths of images
    start from: rewards are given absolute ones.

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
    ) -> None:
        self.weights = checked_weights(weights)
        if not 0.0 < time_limit < float("inf"):
            raise UserError(
                f"The time limit of the rewards is {time_limit!r}. It must be a positive number of "
                f"seconds; 10 is ample for most rewards."
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
            root=None if root is None else str(Path(root).absolute()),
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
        nothing = _Job(items=(), names=(), queue=deque(), outcomes={})
        while self._declared is None:
            self._fill()
            self._advance(nothing)
        return self._declared

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value that each reward declares. Starts the workers."""
        return dict(self._declarations().ranges)

    def unproved(self) -> frozenset[str]:
        """The rewards that declare to have no gold form. Starts the workers."""
        return self._declarations().unproved

    def need_answers(self) -> frozenset[str]:
        """The rewards for which every row needs a gold answer. Starts the workers."""
        return self._declarations().need_answers

    def explained(self) -> frozenset[str]:
        """The rewards that tell their verdicts. Starts the workers."""
        return self._declarations().explained

    def score(self, groups: Sequence[Group]) -> Scored:
        """The groups with their rewards. A group in which a call fails is left out, and its first failure reported.

        Raises UserError if a reward cannot be loaded, RunError if workers die without a reward being at fault.
        """
        outcomes = self.evaluate([Item(group.example, group.completions) for group in groups])
        scored = [
            with_rewards(group, outcome, self.weights)
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
        """The values of the named rewards (default: all) for every item, or why there are none; in the order given."""
        job = self._job(items, tuple(self.weights if names is None else names))
        self._run(job)
        return [cast(Parts | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def prove(self, examples: Sequence[Example], name: str) -> list[GoldOutcome]:
        """What a reward gives to the gold answer of every example, in the order given.

        Once it has failed for one cause `SAME_FAILURES` times, examples that were not tried by then have None.
        """
        job = self._job([Item(example, ()) for example in examples], (name,), "gold")
        self._run(job)
        return [cast(GoldOutcome, job.outcomes.get(index)) for index in range(len(examples))]

    def explain(self, items: Sequence[Item], name: str) -> list[Verdict | RewardFailure]:
        """The verdict of a reward that tells it (`explained`) on the one completion of every item, in the order given."""
        job = self._job(items, (name,), "explain")
        self._run(job)
        return [cast(Verdict | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def _job(self, items: Sequence[Item], names: tuple[str, ...], task: Task = "score") -> _Job:
        size = min(MAX_CHUNK, max(1, -(-len(items) // (self._size * CHUNKS_PER_WORKER))))
        queue = deque(
            list(range(start, min(start + size, len(items))))
            for start in range(0, len(items), size)
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
            # workers in the middle of something must not answer the next call
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
        if not self._workers:  # at its end, this process would wait for them before they are closed
            atexit.register(self.close)
        while len(self._workers) < self._size:
            self._workers.append(Worker(self._setting, self._printed))

    def _hand_out(self, job: _Job) -> None:
        for worker in self._workers:
            if job.queue and worker.ready and not worker.pending:
                items = [(index, job.items[index]) for index in job.queue.popleft()]
                worker.give(Chunk(job.names, items, job.task))

    def _advance(self, job: _Job) -> None:
        """Wait until something happens, and deal with it: results, a death, a deadline."""
        timeout = min(worker.deadline for worker in self._workers) - time.monotonic()
        timeout = min(
            max(timeout, 0.0), self._setting.time_limit
        )  # a call that begins from now on is not late before that
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
        """A worker is dead or too late. Charge the group whose call it was in, and give out the rest again."""
        entered = worker.place.since
        self._workers.remove(worker)
        code = worker.end(patience=0.0 if late else 1.0)
        place = worker.place.read()
        how = f"was killed after {START_LIMIT:g} s" if late else _ended(code)
        if place is None or place[0] not in worker.pending:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                raise RunError(
                    f"A reward worker {how} while no reward was running, {MAX_STILLBORN} times in a row. "
                    f"Its own messages stand above; look at the memory that is left, and for a module of a "
                    f"reward that ends the process when it is imported."
                )
        elif not (
            late and worker.place.since != entered
        ):  # else it came through at the last moment and was in another
            self._stillborn = 0
            index, number, member = place
            at = None if member < 0 else member
            limit = self._setting.time_limit if late else None
            job.keep({index: _fatal(job.names[number], job.items[index], at, how, limit=limit)})
        rest = [index for index in worker.pending if index not in job.outcomes]
        if rest:
            job.queue.appendleft(rest)


def _fatal(
    name: str, item: Item, member: int | None, how: str, *, limit: float | None
) -> RewardFailure:
    """The failure of a call that took its worker with it: a time limit, or else a crash."""
    if limit is not None:
        message = (
            f"The reward {name!r} gave no result within {limit:g} s on {where(item, member)}. "
            f"Make it faster, or raise rewards.time_limit."
        )
    else:
        message = (
            f"The reward {name!r} {how} on {where(item, member)}. A reward must return or raise; "
            f"look for sys.exit, os._exit, native code and memory."
        )
    return RewardFailure(
        kind="crash" if limit is None else "timeout",
        reward=name,
        example_id=item.example.id,
        member=member,
        message=message,
        cause=how if limit is None else "timeout",
    )


def _refusal(refused: Refused) -> str:
    if refused.why == "unknown" and refused.name in rewards.names():
        return (
            f"The reward {refused.name!r} was registered by a decorator in this process only, and the processes "
            f"that run rewards cannot find it. Name it as path/to/file.py:function, or announce it as an entry "
            f"point of the group 'gpg_vl.rewards' in an installed package."
        )
    if refused.why == "import":
        return (
            f"The reward {refused.name!r} cannot be imported. Correct its module, or install what it needs:\n"
            f"{refused.message}"
        )
    return refused.message


def _ended(code: int | None) -> str:
    """`ended its process (exit code 3)`, `brought its process down (SIGSEGV)`"""
    if code is None or code >= 0:
        return f"ended its process (exit code {code})"
    with suppress(ValueError):
        return f"brought its process down ({signal.Signals(-code).name})"
    return f"brought its process down (signal {-code})"
