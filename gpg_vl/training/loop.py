"""The training loop: collect groups that teach something, take one step, hand the weights on. Read it top to bottom.

What GPG leaves out, this loop has not: no critic, no reference model, no ratio, no clip, no KL. An algorithm that wants
them declares it, and the learner provides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gpg_vl.activity import doing
from gpg_vl.clock import Clock
from gpg_vl.rollout.engine import Engine, EngineLostError
from gpg_vl.training.collect import Collector
from gpg_vl.training.evaluation_files import Evaluated
from gpg_vl.training.failures import RefusedUpdateError, explain_lost, locate
from gpg_vl.training.finite import refuse_non_finite
from gpg_vl.training.learner import Learner
from gpg_vl.training.metrics import (
    advance,
    collection_metrics,
    count_collection,
    count_rollout,
    rollout_metrics,
    rollout_seconds,
    update_metrics,
)
from gpg_vl.training.ranks import most, sum_named
from gpg_vl.training.record import Record
from gpg_vl.training.state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How long a run is, and what it does every so many steps (0: never before its end). Fields as in the config."""

    steps: int
    eval_every: int
    checkpoint_every: int
    samples_every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop calls and does not know: evaluation, checkpoints, the display, a wish to stop."""

    evaluate: Callable[[], Evaluated] | None
    """What the current policy answers, the same on every process. May raise EngineLostError, on all processes."""
    checkpoint: Callable[[RunState], Path]
    """Returns the folder that was written."""
    show: Callable[[int, dict[str, Any], dict[str, float]], None]
    stop_wanted: Callable[[], bool]


def train(
    *,
    collector: Collector,
    learner: Learner,
    engine: Engine,
    state: RunState,
    intervals: Intervals,
    record: Record,
    hooks: Hooks,
    accelerator: Accelerator,
) -> RunState:
    """Train from `state` to the last step. Returns the final state; all that is to be known is in the record.

    Raises RunError if a reward breaks (unless its groups are to be dropped), an update is not to be applied, or the engine
    is lost; the last with a checkpoint of every step that was trained.
    """
    with doing(f"the check of the weights of step {state.step}"):
        refuse_non_finite(learner.weights(), state.step)
    with doing(f"the handing over of the weights of step {state.step}"):
        engine.sync(learner.weights, state.step)
    if state.evaluation_due:
        state = _catch_up(state, intervals, record, hooks)

    while state.step < intervals.steps:
        clock, counters = Clock(), engine.counters()
        version = state.step

        with clock.phase("step"), engine.step():
            # collect: groups of answers to the next prompts, until enough of them carry a signal
            try:
                collection = collector.collect(state)
            except EngineLostError as error:
                raise _keep(error, state, record, hooks) from error
            carry = learner.keep_old_logps(collection.carry)
            collection = replace(collection, carry=carry)

            # rest: until the next sync nobody samples, and training needs the memory
            engine.rest()

            # update: once or more often on the same groups, as the algorithm says
            with clock.phase("train"), doing(f"the training of step {state.step + 1}"):
                try:
                    report = learner.update(collection.used, step=state.step)
                except RefusedUpdateError as error:
                    folder = record.broken(state.step + 1, collection.used)
                    raise locate(error, state.step + 1, folder) from None

            # sync: whoever samples next does so with these weights; who cannot ends the run, once this step is kept
            lost: EngineLostError | None = None
            with doing(f"the handing over of the weights of step {state.step + 1}"):
                try:
                    engine.sync(learner.weights, state.step + 1)
                except EngineLostError as error:
                    lost = error

        # a step without signal may be one of weights that mean nothing any more
        if not report.applied:
            with doing(f"the check of the weights of step {state.step + 1}"):
                refuse_non_finite(learner.weights(), state.step + 1)

        # log: what was seen, what was trained, what it cost, over all processes
        seen = sum_named(accelerator, count_collection(collection, version=version))
        computed = count_rollout(engine.counters(), counters)
        state = advance(state, collection, report, completions=seen["completions"])
        metrics = {
            **collection_metrics(
                seen, collection, rounds=int(most(accelerator, collection.rounds))
            ),
            **update_metrics(report, group_size=collector.group_size),
            **learner.learning_rates(state.step - 1),
            **rollout_metrics(sum_named(accelerator, computed)),
            "skipped_steps": state.skipped_steps,
            "position": state.position,
            "completions": state.completions,
        }
        for seconds in (collection.seconds, report.seconds, rollout_seconds(computed)):
            clock.add(seconds)
        record.metrics(state.step, "train", metrics, clock.seconds)
        hooks.show(state.step, metrics, clock.seconds)
        if intervals.samples_every and (
            state.step == 1 or _is_due(state.step, intervals.samples_every)
        ):
            record.samples(state.step, collection.seen)

        # evaluate: the policy as it is now, and once more at the end; not if the run is to stop, which is to be quick
        stop = most(accelerator, float(hooks.stop_wanted())) > 0
        last = state.step == intervals.steps
        is_due = hooks.evaluate is not None and (last or _is_due(state.step, intervals.eval_every))
        state = replace(state, evaluation_due=is_due)
        if is_due and not stop and not lost:
            try:
                state = _evaluate(state, record, hooks)
            except EngineLostError as error:
                lost = error

        # checkpoint: complete or absent, and never ahead of the log
        if lost:
            raise _keep(lost, state, record, hooks)
        if stop or last or _is_due(state.step, intervals.checkpoint_every):
            _checkpoint(state, record, hooks)
        if stop:
            break
    return state


def _evaluate(state: RunState, record: Record, hooks: Hooks) -> RunState:
    """Score the policy as it is, and keep what it answered. Returns the state, in which no evaluation is due any more.

    Raises EngineLostError.
    """
    assert hooks.evaluate is not None
    clock = Clock()
    with clock.phase("eval"), doing(f"the evaluation after step {state.step}"):
        found = hooks.evaluate()
    record.evaluation(state.step, found)
    record.metrics(state.step, "eval", found.metrics, clock.seconds)
    hooks.show(state.step, found.metrics, {})
    return replace(state, evaluation_due=False)


def _catch_up(state: RunState, intervals: Intervals, record: Record, hooks: Hooks) -> RunState:
    """The evaluation before the first step, or one that a stop or a lost engine has left undone, if one is wanted."""
    if hooks.evaluate is None:
        return replace(state, evaluation_due=False)
    try:
        state = _evaluate(state, record, hooks)
    except EngineLostError as error:
        raise _keep(error, state, record, hooks) from error

    # no later checkpoint would know of it
    if state.step == intervals.steps:
        _checkpoint(state, record, hooks)
    return state


def _checkpoint(state: RunState, record: Record, hooks: Hooks) -> Path:
    record.flush()
    with doing(f"the checkpoint of step {state.step}"):
        return hooks.checkpoint(state)


def _keep(error: EngineLostError, state: RunState, record: Record, hooks: Hooks) -> EngineLostError:
    """Write the checkpoint of a run that cannot go on. Returns the error with where it goes on."""
    checkpoint = _checkpoint(state, record, hooks)
    return explain_lost(error, state.step, checkpoint, unscored=state.evaluation_due)


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
