"""The groups of one optimizer step: drawn, encoded, answered, scored, and sampled again until enough carry a signal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from accelerate import Accelerator

from gpg_vl.activity import doing
from gpg_vl.algorithms.age import collect, groups_needed
from gpg_vl.clock import Clock
from gpg_vl.errors import RunError
from gpg_vl.rewards.scoring import RewardFailure, Scored
from gpg_vl.rollout.engine import (
    Engine,
    EngineLostError,
    RolloutRequest,
    refuse_non_finite_answers,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.failures import raise_lost
from gpg_vl.training.ranks import gathered, sums
from gpg_vl.training.source import PromptSource
from gpg_vl.training.state import RunState
from gpg_vl.types import Completion, Group


class Rewarder(Protocol):
    """Scores groups; see `gpg_vl.rewards.isolation.RewardPool`."""

    def score(self, groups: Sequence[Group]) -> Scored: ...


class Responder(Protocol):
    """Answers groups that have none yet, in order."""

    @property
    def group_size(self) -> int: ...

    def answer(
        self, groups: Sequence[Group], progress: Callable[[str, int, int], None]
    ) -> list[tuple[Completion, ...]]: ...


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
    ) -> list[tuple[Completion, ...]]:
        total = len(groups) * self.sampling.group_size
        requests = [
            RolloutRequest(prompt=group.prompt, draw=group.draw, images=group.example.images)
            for group in groups
        ]
        answers = self.engine.generate(
            requests, self.sampling, done=lambda number: progress("rollout", number, total)
        )
        refuse_non_finite_answers(requests, answers)
        return answers


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


class Collector:
    """Collects the groups of a step, in step with the other processes.

    drop_broken: groups whose reward breaks are left out and counted, instead of ending the run.
    progress: (phase, done, of): life signs.
    """

    def __init__(
        self,
        source: PromptSource,
        responder: Responder,
        rewarder: Rewarder,
        quota: Quota,
        accelerator: Accelerator,
        *,
        drop_broken: bool,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._source = source
        self._responder = responder
        self._rewarder = rewarder
        self._quota = quota
        self._accelerator = accelerator
        self._drop_broken = drop_broken
        self._progress = progress
        self._slots = quota.prompts_per_step // accelerator.num_processes
        self._clock = Clock()
        self._step = 0
        self._position = 0
        self._failures: list[RewardFailure] = []

    @property
    def group_size(self) -> int:
        """Answers per group."""
        return self._responder.group_size

    def collect(self, state: RunState) -> Collection:
        """The groups of the step after `state`.

        Raises EngineLostError if the engine of any process is lost, and RunError if a reward breaks, unless such groups are
        dropped; on all processes in the same round.
        """
        self._clock = Clock()
        self._step = state.step + 1
        self._position = state.position
        self._failures = []

        collected = collect(
            state.carry,
            slots=self._slots,
            needed=groups_needed(self._quota.beta_th, self._quota.prompts_per_step),
            max_rounds=self._quota.max_resample_attempts,
            is_valid=attrgetter("is_valid"),
            draw=self._draw_round,
            total=lambda number: int(sums(self._accelerator, [number])[0]),
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
        )

    def _draw_round(self, has_room: bool) -> list[Group]:
        """Scored groups for this process's free slots; none without one, but all processes take part in each round."""
        # every process takes the next examples of the common order, those without a free slot none
        drawing = gathered(self._accelerator, has_room)
        first = self._position + self._slots * sum(drawing[: self._accelerator.process_index])
        self._position += self._slots * sum(drawing)
        draws = range(first, first + self._slots) if has_room else ()

        with self._clock.phase("encode"), doing(f"the reading of examples for step {self._step}"):
            fresh = [self._source.group_at(draw) for draw in draws]
        try:
            with self._clock.phase("rollout"), doing(f"the rollout of step {self._step}"):
                answers = self._responder.answer(fresh, self._progress)
        except EngineLostError as error:
            self._report(lost=str(error))
            raise  # the report has raised already, here as on the other processes
        answered = []
        for group, completions in zip(fresh, answers, strict=True):
            answered.append(replace(group, completions=completions))

        with self._clock.phase("reward"), doing(f"the rewards of step {self._step}"):
            scored = self._rewarder.score(answered)
        self._report(failures=scored.failures)
        return scored.groups

    def _report(self, *, lost: str | None = None, failures: Sequence[RewardFailure] = ()) -> None:
        """Tell the other processes what went wrong in this round, and stop with them if that is not to be lived with."""
        reports = gathered(self._accelerator, (lost, list(failures)))
        raise_lost([said for said, _ in reports])

        broken = [failure for _, failures in reports for failure in failures]
        self._failures += broken
        if broken and not self._drop_broken:
            more = f" ({len(broken) - 1} more in this round)" if len(broken) > 1 else ""
            raise RunError(
                f"A reward broke: {broken[0]}{more} Mend the reward, or set rewards.on_error to drop_group to go on "
                f"without such groups."
            )
