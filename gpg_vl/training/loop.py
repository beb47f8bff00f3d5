"""The training loop: sample groups, score them, keep those that teach something, take one step. Read it top to bottom.

What GPG leaves out, this loop has not: no critic, no reference model, no old log-probs, no ratio, no clip, no KL.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from gpg_vl.algorithms.age import Collected, age_factor, collect, groups_needed
from gpg_vl.data.order import index_at
from gpg_vl.errors import RunError
from gpg_vl.models.encode import Encoder
from gpg_vl.rewards.scoring import RewardFailure, Scored
from gpg_vl.rollout.engine import Engine, EngineWork, Sampling
from gpg_vl.training.batch import Objective
from gpg_vl.training.checkpoint import RunState
from gpg_vl.training.ranks import gathered, most, sums
from gpg_vl.training.record import Record
from gpg_vl.training.step import NonFiniteError, StepOutcome, global_counts, update
from gpg_vl.types import Example, Group


class Rewarder(Protocol):
    """Scores groups; see `gpg_vl.rewards.isolation.RewardPool`."""

    def score(self, groups: Sequence[Group]) -> Scored: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The numbers of the loop. Fields as in the config's `train` and `algorithm` sections."""

    steps: int
    prompts_per_step: int
    beta_th: float
    max_resample_attempts: int
    learning_rate: Callable[[int], float]
    max_grad_norm: float
    tokens_per_pass: int
    shared_prefix: bool
    reuse_prefill: bool
    seed: int
    drop_broken_groups: bool
    eval_every: int
    checkpoint_every: int
    samples_every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop calls and does not know: evaluation, checkpoints, the display, a wish to stop."""

    evaluate: Callable[[], dict[str, Any]] | None
    """Metrics of the current policy, the same on every rank."""
    checkpoint: Callable[[RunState], None]
    show: Callable[[int, dict[str, Any], dict[str, float]], None]
    progress: Callable[[str, int, int], None]
    """(phase, done, of): life signs within a step."""
    stop_wanted: Callable[[], bool]


class Clock:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def train(
    *,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    engine: Engine,
    rewarder: Rewarder,
    encoder: Encoder,
    examples: Sequence[Example],
    sampling: Sampling,
    objective: Objective,
    schedule: Schedule,
    state: RunState,
    record: Record,
    hooks: Hooks,
) -> RunState:
    """Train from `state` to `schedule.steps`. Returns the final state; all that is to be known is in the record.

    Raises RunError if a reward breaks (unless its groups are to be dropped) or a step is not finite.
    """
    while state.step < schedule.steps:
        clock, work = Clock(), replace(engine.work)
        keeping = (
            accelerator.unwrap_model(policy).keeping_prefixes
            if schedule.reuse_prefill
            else nullcontext
        )
        with clock.phase("step"), keeping():
            collected, position, failures = _collect(
                accelerator,
                engine,
                rewarder,
                encoder,
                examples,
                sampling,
                schedule,
                state,
                hooks,
                clock,
            )
            counts, deviation = global_counts(accelerator, collected.used)
            rate = schedule.learning_rate(state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with clock.phase("train"):
                try:
                    outcome = update(
                        policy,
                        optimizer,
                        accelerator,
                        collected.used,
                        counts=counts,
                        batch_std=deviation,
                        objective=objective,
                        tokens_per_pass=schedule.tokens_per_pass,
                        shared_prefix=schedule.shared_prefix,
                        max_grad_norm=schedule.max_grad_norm,
                    )
                except NonFiniteError as error:
                    kept = record.broken(state.step + 1, collected.used)
                    raise NonFiniteError(
                        f"Step {state.step + 1}: {error} The groups of the step are kept in {kept}. A smaller "
                        f"train.learning_rate or another reward may help; go on from the last checkpoint with --resume."
                    ) from None
            engine.sync(state.step + 1)
        state = replace(
            state,
            step=state.step + 1,
            position=position,
            carry=list(collected.carry),
            skipped_steps=state.skipped_steps + (not outcome.applied),
            completions=state.completions
            + int(sums(accelerator, [sum(len(g.completions) for g in collected.seen)])[0]),
        )
        alpha = age_factor(counts, objective.age) if counts.valid_groups else None
        metrics = {
            **_seen(accelerator, collected, failures),
            "alpha": alpha,
            "valid_used": counts.valid_groups,
            "learning_rate": rate,
            "length_all": counts.tokens / max(counts.completions, 1),
            "length_valid": counts.valid_tokens / max(counts.valid_groups * sampling.group_size, 1),
            **_told(outcome),
            "skipped_steps": state.skipped_steps,
            "position": state.position,
            "completions": state.completions,
            **_counted(accelerator, engine.work, work),
        }
        clock.seconds.update(outcome.seconds)
        clock.seconds["prefill"] = engine.work.prefill_seconds - work.prefill_seconds
        clock.seconds["decode"] = engine.work.decode_seconds - work.decode_seconds
        record.metrics(state.step, "train", metrics, clock.seconds)
        hooks.show(state.step, metrics, clock.seconds)
        if schedule.samples_every and (state.step == 1 or state.step % schedule.samples_every == 0):
            record.samples(state.step, collected.seen)
        stop = most(accelerator, float(hooks.stop_wanted())) > 0
        last = stop or state.step == schedule.steps
        if (
            hooks.evaluate
            and (last or (schedule.eval_every and state.step % schedule.eval_every == 0))
            and not stop
        ):
            with clock.phase("eval"):
                scores = hooks.evaluate()
            record.metrics(state.step, "eval", scores, {"eval": clock.seconds["eval"]})
            hooks.show(state.step, scores, {})
        if last or (schedule.checkpoint_every and state.step % schedule.checkpoint_every == 0):
            record.flush()
            hooks.checkpoint(state)
        if stop:
            break
    return state


def _collect(
    accelerator: Accelerator,
    engine: Engine,
    rewarder: Rewarder,
    encoder: Encoder,
    examples: Sequence[Example],
    sampling: Sampling,
    schedule: Schedule,
    state: RunState,
    hooks: Hooks,
    clock: Clock,
) -> tuple[Collected[Group], int, list[RewardFailure]]:
    """The groups of one step on this rank, the data position after them, and what went wrong in rewards."""
    slots = schedule.prompts_per_step // accelerator.num_processes
    position = state.position
    failures: list[RewardFailure] = []

    def refuse_broken(mine: Sequence[RewardFailure]) -> None:
        broken = [failure for rank in gathered(accelerator, list(mine)) for failure in rank]
        failures.extend(broken)
        if broken and not schedule.drop_broken_groups:
            more = f" ({len(broken) - 1} more in this round)" if len(broken) > 1 else ""
            raise RunError(
                f"A reward broke: {broken[0]}{more} Mend the reward, or set rewards.on_error to drop_group to go on "
                f"without such groups."
            )

    def draw(free: bool) -> list[Group]:
        nonlocal position
        # every rank takes the next `slots` examples of the common order, ranks without a free slot none
        drawing = gathered(accelerator, free)
        first = position + slots * sum(drawing[: accelerator.process_index])
        position += slots * sum(drawing)
        if not free:
            refuse_broken([])
            return []
        with clock.phase("encode"):
            fresh = [
                empty_group(encoder, examples, draw, schedule.seed)
                for draw in range(first, first + slots)
            ]
        with clock.phase("rollout"):
            answers = engine.generate(
                [g.prompt for g in fresh],
                sampling,
                [g.draw for g in fresh],
                done=lambda n: hooks.progress("rollout", n, slots * sampling.group_size),
            )
        with clock.phase("reward"):
            scored = rewarder.score(
                [replace(g, completions=a) for g, a in zip(fresh, answers, strict=True)]
            )
        refuse_broken(scored.failures)
        return scored.groups

    collected = collect(
        state.carry,
        slots=slots,
        needed=groups_needed(schedule.beta_th, schedule.prompts_per_step),
        max_rounds=schedule.max_resample_attempts,
        is_valid=lambda group: group.is_valid,
        draw=draw,
        total=lambda number: int(sums(accelerator, [number])[0]),
    )
    return collected, position, failures


def empty_group(encoder: Encoder, examples: Sequence[Example], draw: int, seed: int) -> Group:
    """The example at place `draw` of the data order, encoded, without completions."""
    example = examples[index_at(draw, size=len(examples), seed=seed)]
    return Group(example=example, prompt=encoder.encode(example), completions=(), draw=draw)


def _seen(
    accelerator: Accelerator, collected: Collected[Group], failures: Sequence[RewardFailure]
) -> dict[str, Any]:
    """Shares over all groups sampled in the step, before any was replaced: the used batch would be biased."""
    seen = collected.seen
    rewards = [r for g in seen for r in g.rewards]
    names = sorted(
        {
            name
            for rank in gathered(accelerator, [*(seen[0].reward_parts if seen else ())])
            for name in rank
        }
    )
    parts = [sum(sum(g.reward_parts[name]) for g in seen) for name in names]
    best = [sum(r >= 1.0 for r in next(iter(g.reward_parts.values()))) for g in seen]
    all_right = sum(not g.is_valid and b == len(g.rewards) for g, b in zip(seen, best, strict=True))
    all_wrong = sum(not g.is_valid and b == 0 for g, b in zip(seen, best, strict=True))
    stops = sum(c.finish_reason == "length" for g in seen for c in g.completions)
    totals = sums(
        accelerator,
        [
            len(seen),
            len(rewards),
            sum(rewards),
            sum(g.is_valid for g in seen),
            all_right,
            all_wrong,
            sum(best),
            stops,
            len(collected.carry),
            *parts,
        ],
    )
    groups, completions, reward, valid, right, wrong, full, cut, carried, *part_sums = totals
    groups, completions = max(groups, 1), max(completions, 1)
    return {
        "reward": reward / completions,
        "accuracy": full / completions,
        "valid_share": valid / groups,
        "all_right_share": right / groups,
        "all_wrong_share": wrong / groups,
        "truncated_share": cut / completions,
        "groups_seen": int(totals[0]),
        "carried_groups": int(carried),
        "rounds": int(most(accelerator, collected.rounds)),
        "resample_cap_hit": int(collected.cap_hit),
        "reward_failures": len(failures),
        **{f"reward/{n}": s / completions for n, s in zip(names, part_sums, strict=True)},
    }


def _counted(accelerator: Accelerator, now: EngineWork, before: EngineWork) -> dict[str, Any]:
    """What the rollout of the step has computed, over all ranks."""
    fields = ("vision_patches", "prefilled_tokens", "decoded_tokens", "slot_steps")
    counts = sums(accelerator, [getattr(now, f) - getattr(before, f) for f in fields])
    return {f"rollout_{f}": int(n) for f, n in zip(fields, counts, strict=True)}


def _told(outcome: StepOutcome) -> dict[str, Any]:
    return {
        "step_skipped": int(not outcome.applied),
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "entropy": outcome.entropy,
        "logp_gap_mean": outcome.logp_gap_mean,
        "logp_gap_max": outcome.logp_gap_max,
        "passes": outcome.passes,
        "trained_tokens": outcome.trained_tokens,
        "trained_vision_patches": outcome.vision_patches,
    }
