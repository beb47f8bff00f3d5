"""Rewards in worker processes with a time limit: a reward that hangs, dies or raises costs its group, not the run.

The parent hands an idle worker a chunk of items in one message. The worker notes in shared memory which call it is in
and since when, so the parent can tell which completion hangs or kills without a message for each; results come back
together. A worker that is late is killed and replaced, and what it had not delivered is given out again.

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
"""Small enough that one slow chunk at the end does not leave the other workers idle."""
MAX_CHUNK = 64
"""Items in a chunk: examples may carry their images."""
MAX_STILLBORN = 3
"""Workers in a row that may die outside of any reward before the pool gives up."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """One call of `evaluate` under way."""

    items: Sequence[Item]
    names: Sequence[tuple[str, ...]]
    """The rewards of each item."""
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
            where = "in a notebook or in the script that was started"
            where = where if module == "__main__" else f"inside of another function, as {function}"
            raise UserError(
                f"The reward {name!r} is defined {where}. Rewards run in processes of their own, which cannot import it "
                f"from there. Write the function into a file, such as my_rewards.py, and name it in rewards.weights as "
                f"my_rewards.py:{function.rpartition('.')[2]}; in a notebook a cell that starts with %%writefile "
                f"my_rewards.py does so."
            )
        modules.append(module)
    return tuple(dict.fromkeys(modules))


class RewardPool:
    """Scores groups in worker processes. Use it as a context manager; one call at a time.

    The workers start at the first call, or with `start`. `time_limit` is in seconds, for one call of a reward: one
    completion, or all of an example if it is batched. A relative `file.py:function` is found from the present folder.
    `gold` is how gold answers are written for rewards that do not declare it. `root` is the folder that paths of images
    start from: rewards are given absolute ones. An example whose `source` is in `sources` has the rewards, weights and
    root of its own that are said there; `weights` names the rewards of all.

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

        # what cannot work is refused before a process is started for it
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

    def weights_of(self, example: Example) -> Mapping[str, float]:
        """The rewards that an example is scored by, with their weights."""
        return self._weights_of[example.source]

    def score(self, groups: Sequence[Group]) -> Scored:
        """The groups with their rewards. A group in which a call fails is left out, and its first failure reported.

        Raises UserError if a reward cannot be loaded, RunError if workers die without a reward being at fault.
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
        """The values of the named rewards for every item (default: of all that its source asks for), or why there are none; in
        the order given.
        """
        if names is None:
            job = self._job(items, [tuple(self.weights_of(item.example)) for item in items])
        else:
            job = self._job(items, [tuple(names)] * len(items))
        self._run(job)
        return [cast(Parts | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def prove(self, examples: Sequence[Example], name: str) -> list[GoldOutcome]:
        """What a reward gives to the gold answer of every example, in the order given.

        Once it has failed for one cause `SAME_FAILURES` times, examples that were not tried by then have None.
        """
        items = [Item(example, ()) for example in examples]
        job = self._job(items, [(name,)] * len(items), "gold")
        self._run(job)
        return [cast(GoldOutcome, job.outcomes.get(index)) for index in range(len(examples))]

    def explain(self, items: Sequence[Item], name: str) -> list[Verdict | RewardFailure]:
        """The verdict of a reward that tells it (`explained`) on the one completion of every item, in the order given."""
        job = self._job(items, [(name,)] * len(items), "explain")
        self._run(job)
        return [cast(Verdict | RewardFailure, job.outcomes[index]) for index in range(len(items))]

    def _job(
        self, items: Sequence[Item], names: Sequence[tuple[str, ...]], task: Task = "score"
    ) -> _Job:
        size = min(MAX_CHUNK, max(1, -(-len(items) // (self._size * CHUNKS_PER_WORKER))))

        # a chunk is of items that are asked for the same rewards
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
                indices = job.queue.popleft()
                items = [(index, job.items[index]) for index in indices]
                worker.give(Chunk(job.names[indices[0]], items, job.task))

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

        # where it died says whose fault it is: in no call, in one, or in one that had just come through
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
        ):  # else it came through at the last moment and was in another
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
