"""The groups of one optimizer step: selected, encoded, answered, scored, and sampled again until enough carry a signal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import add, attrgetter
from typing import Protocol

from accelerate import Accelerator

from gpg_vl.activity import doing
from gpg_vl.algorithms.age import collect, groups_needed
from gpg_vl.clock import Clock
from gpg_vl.data.solved_rows import Judged, SkipRule, Solved, list_solved, next_draws
from gpg_vl.errors import RunError
from gpg_vl.rewards.scoring import RewardFailure, Scored
from gpg_vl.rollout.engine import (
    Engine,
    EngineLostError,
    RolloutRequest,
    refuse_non_finite_answers,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.collectives import gather, sums
from gpg_vl.training.dropped_groups import refuse_too_many
from gpg_vl.training.failures import raise_lost
from gpg_vl.training.prompt_source import Source
from gpg_vl.training.signals import Seen, count_seen
from gpg_vl.training.state import RunState
from gpg_vl.types import Completion, GreedyAnswer, Group


class Rewarder(Protocol):
    """Scores groups; see `gpg_vl.rewards.isolation.RewardPool`."""

    def score(self, groups: Sequence[Group]) -> Scored: ...


class Responder(Protocol):
    """Answers groups that have none yet, in order."""

    @property
    def group_size(self) -> int: ...

    def answer(
        self, groups: Sequence[Group], progress: Callable[[str, int, int], None]
    ) -> list[Group]: ...


class Progress(Protocol):
    """Receives the progress of a step; see `gpg_vl.training.display.Display`."""

    def phase(self, phase: str, done: int, of: int) -> None: ...

    def round(self, number: int, of: int, *, valid: int, needed: int, seen: Seen) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResponder:
    """Samples the answers of a group."""

    engine: Engine
    sampling: Sampling

    @property
    def group_size(self) -> int:
        return self.sampling.group_size

    def answer(
        self, groups: Sequence[Group], progress: Callable[[str, int, int], None]
    ) -> list[Group]:
        total = len(groups) * self.sampling.answers
        requests = [
            RolloutRequest(prompt=group.prompt, draw=group.draw, images=group.example.images)
            for group in groups
        ]
        answers = self.engine.generate(
            requests, self.sampling, done=lambda number: progress("rollout", number, total)
        )
        refuse_non_finite_answers(requests, answers)
        return [
            _with_answers(group, completions, has_greedy=self.sampling.with_greedy)
            for group, completions in zip(groups, answers, strict=True)
        ]


def _with_answers(group: Group, answers: tuple[Completion, ...], *, has_greedy: bool) -> Group:
    """The group with what an engine has answered, a greedy answer last."""
    if not has_greedy:
        return replace(group, completions=answers)
    *sampled, last = answers
    # nobody has sampled it, so it has no log-probs either
    greedy = GreedyAnswer(completion=replace(last, logprobs=()))
    return replace(group, completions=tuple(sampled), greedy=greedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many groups a step has, and how many of them must carry a signal. Fields as in the config."""

    prompts_per_step: int
    beta_th: float
    max_resample_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The groups of one optimizer step on this process, and how they were found."""

    used: tuple[Group, ...]
    """What is trained on."""
    carry: tuple[Group, ...]
    """Valid groups that found no place; first in line for the next step."""
    seen: tuple[Group, ...]
    """Every group sampled in this step, before any was replaced."""
    position: int
    """The data position after it, over all processes."""
    rounds: int
    cap_hit: bool
    """True if the cap on rounds ended the search below the threshold."""
    failures: tuple[RewardFailure, ...]
    """What went wrong in rewards, on all processes."""
    seconds: Mapping[str, float]
    solved: Solved | None = None
    """The rows that are solved after it, over all processes; None in a run that skips none."""


class Collector:
    """Collects the groups of a step, in step with the other processes.

    drop_broken: groups whose reward breaks are left out and counted, up to half of a step, instead
    of ending the run. skip: which rows are passed over because they are solved; None passes over none.
    """

    def __init__(
        self,
        source: Source,
        responder: Responder,
        rewarder: Rewarder,
        quota: Quota,
        accelerator: Accelerator,
        *,
        drop_broken: bool,
        progress: Progress,
        skip: SkipRule | None = None,
    ) -> None:
        self._source = source
        self._responder = responder
        self._rewarder = rewarder
        self._quota = quota
        self._accelerator = accelerator
        self._drop_broken = drop_broken
        self._progress = progress
        self._skip = skip
        self._slots = quota.prompts_per_step // accelerator.num_processes
        self._needed = groups_needed(quota.beta_th, quota.prompts_per_step)
        self._clock = Clock()
        self._step = 0
        self._answered = 0
        self._position = 0
        self._round = 0
        self._valid = 0
        self._own = self._seen = Seen(groups=0, valid=0, all_right=0, all_wrong=0)
        self._solved: frozenset[int] = frozenset()
        self._failures: list[RewardFailure] = []

    @property
    def group_size(self) -> int:
        """Answers per group."""
        return self._responder.group_size

    def collect(self, state: RunState) -> Collection:
        """The groups of the step after `state`.

        Raises EngineLostError if the engine of any process is lost, and RunError if a reward breaks, unless such groups are
        dropped, or if more than half of them are; on all processes in the same round.
        """
        self._clock = Clock()
        self._step = state.step + 1
        self._position = state.position
        self._answered = self._round = self._valid = 0
        self._own = self._seen = count_seen(())
        if self._skip is not None:
            self._solved = list_solved(state.streaks, needed=self._skip.needed)
        self._failures = []

        collected = collect(
            state.carry,
            slots=self._slots,
            needed=self._needed,
            max_rounds=self._quota.max_resample_attempts,
            is_valid=attrgetter("is_valid"),
            draw=self._draw_round,
            total=self._count_valid,
        )
        return Collection(
            used=collected.used,
            carry=collected.carry,
            seen=collected.seen,
            position=self._position,
            rounds=collected.rounds,
            cap_hit=collected.cap_hit,
            failures=tuple(self._failures),
            seconds=self._clock.seconds,
            solved=self._settle(state, collected.seen),
        )

    def _settle(self, state: RunState, seen: Sequence[Group]) -> Solved | None:
        """Which rows are solved after the groups of all processes."""
        if self._skip is None:
            return None
        own = [Judged(g.draw, self._source.row_at(g.draw), g.is_all_right) for g in seen]
        judged = [group for of_one in gather(self._accelerator, own) for group in of_one]
        return self._skip.settle(state.streaks, judged)

    def _count_valid(self, number: int) -> int:
        """Places that hold a group with signal, over all processes."""
        valid, *seen = sums(self._accelerator, [number, *self._own])
        self._valid, self._seen = int(valid), Seen(*map(int, seen))
        return self._valid

    def _draw_round(self, has_room: bool) -> list[Group]:
        """Scored groups for this process's free slots; none without one, but all processes take part in each round."""
        self._round += 1
        if self._round > 1:
            rounds = self._quota.max_resample_attempts
            self._progress.round(
                self._round, rounds, valid=self._valid, needed=self._needed, seen=self._seen
            )
        draws = self._next_draws(has_room)

        with self._clock.phase("encode"), doing(f"the reading of examples for step {self._step}"):
            fresh = [self._source.group_at(draw) for draw in draws]
        try:
            with self._clock.phase("rollout"), doing(f"the rollout of step {self._step}"):
                answered = self._responder.answer(fresh, self._progress.phase)
        except EngineLostError as error:
            self._report(lost=str(error))
            raise  # the report has raised already, here as on the other processes

        with self._clock.phase("reward"), doing(f"the rewards of step {self._step}"):
            scored = self._rewarder.score(answered)
        self._report(failures=scored.failures)
        self._own = Seen(*map(add, self._own, count_seen(scored.groups)))
        return scored.groups

    def _next_draws(self, has_room: bool) -> Sequence[int]:
        """The places of this process in a round: each takes the next ones of the common order, those without room none."""
        drawing = gather(self._accelerator, has_room)
        number = self._slots * sum(drawing)
        draws = next_draws(self._position, number, self._source.row_at, self._solved)
        if draws:
            self._position = draws[-1] + 1
        self._answered += number

        first = self._slots * sum(drawing[: self._accelerator.process_index])
        return draws[first : first + self._slots] if has_room else ()

    def _report(self, *, lost: str | None = None, failures: Sequence[RewardFailure] = ()) -> None:
        """Tell the other processes what went wrong in this round, and stop with them if that is not to be lived with."""
        reports = gather(self._accelerator, (lost, list(failures)))
        raise_lost([message for message, _ in reports])

        broken = [failure for _, failures in reports for failure in failures]
        self._failures += broken
        if broken and not self._drop_broken:
            more = f" ({len(broken) - 1} more in this round)" if len(broken) > 1 else ""
            raise RunError(
                f"A reward broke: {broken[0]}{more} Correct the reward, or set rewards.on_error to drop_group to continue "
                f"without such groups."
            )
        refuse_too_many(self._failures, self._answered, self._step)
