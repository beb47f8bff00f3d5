"""The training loop: collect groups that teach something, take one step, hand the weights on. Read it top to bottom.

What GPG leaves out, this loop has not: no critic, no reference model, no ratio, no clip, no KL. An algorithm that wants
them declares it, and the learner provides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gpg_vl.activity import doing
from gpg_vl.clock import Clock
from gpg_vl.rollout.engine import Engine, EngineLostError
from gpg_vl.training.balance import Dealt
from gpg_vl.training.collect import Collection, Collector
from gpg_vl.training.collectives import maximum, sum_named
from gpg_vl.training.evaluation_files import Evaluated
from gpg_vl.training.failures import RefusedUpdateError, explain_lost, locate
from gpg_vl.training.finite_weights import refuse_non_finite
from gpg_vl.training.learner import Learner
from gpg_vl.training.metrics import (
    advance,
    collection_metrics,
    count_collection,
    count_rollout,
    deal_metrics,
    rollout_metrics,
    rollout_seconds,
    shares_of_step,
    update_metrics,
)
from gpg_vl.training.run_writer import Record
from gpg_vl.training.state import RunState, better
from gpg_vl.training.step_totals import UpdateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How long a run is, and what it does every so many steps (0: never before its end). Fields as in the config."""

    steps: int
    eval_every: int
    checkpoint_every: int
    samples_every: int
    keep_best: str | None = None
    """A metric of the evaluation: the step with its best value is checkpointed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop calls and does not know: evaluation, checkpoints, the display, a wish to stop."""

    evaluate: Callable[[], Evaluated | None] | None
    """What the current policy answers, the same on every process; None if it was cut short by a wish to stop.

    May raise EngineLostError, on all processes.
    """
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
    run = _Run(
        collector=collector,
        learner=learner,
        engine=engine,
        intervals=intervals,
        record=record,
        hooks=hooks,
        accelerator=accelerator,
    )
    with doing(f"the check of the weights of step {state.step}"):
        refuse_non_finite(learner.weights(), state.step)
    with doing(f"the handing over of the weights of step {state.step}"):
        engine.sync(learner.weights, state.step)
    if state.evaluation_due:
        state, stop = _evaluate_missed(state, run)
        if stop:
            return state

    # what is done between two phases has no name of its own
    with doing("the training"):
        while state.step < intervals.steps:
            # collect, update, sync: whatever is lost from here on, this step is kept
            clock, counters = Clock(), engine.counters()
            done = _take_step(state, run, clock)
            state, lost = _log_step(state, run, done, clock, counters), done.lost

            # evaluate: the policy as it is now, and once more at the end; not if the run is to stop, which is to be quick
            stop = _stop_wanted(hooks, accelerator)
            last = state.step == intervals.steps
            is_due = hooks.evaluate is not None and (
                last or _is_due(state.step, intervals.eval_every)
            )
            state = replace(state, evaluation_due=is_due)
            if is_due and not stop and not lost:
                try:
                    state = _evaluate(state, intervals, record, hooks)
                except EngineLostError as error:
                    lost = error
                stop = _stop_wanted(hooks, accelerator)

            # checkpoint: complete or absent, and never ahead of the log
            if lost:
                raise _save_lost_run(lost, state, record, hooks)
            if stop or last or _is_best(state) or _is_due(state.step, intervals.checkpoint_every):
                _checkpoint(state, record, hooks)
            if stop:
                break
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What `train` is given, for the parts of a step."""

    collector: Collector
    learner: Learner
    engine: Engine
    intervals: Intervals
    record: Record
    hooks: Hooks
    accelerator: Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """A step that was taken: what it was made of, and what it did."""

    collection: Collection
    dealt: Dealt
    report: UpdateReport
    lost: EngineLostError | None
    """Why the engine could not take the new weights over."""


def _take_step(state: RunState, run: _Run, clock: Clock) -> _Done:
    """Collect the groups of the step after `state`, train on them, and hand the weights on."""
    learner, engine, step = run.learner, run.engine, state.step + 1
    with clock.phase("step"), engine.step():
        # collect: groups of answers to the next prompts, until enough of them carry a signal
        try:
            collection = run.collector.collect(state)
        except EngineLostError as error:
            raise _save_lost_run(error, state, run.record, run.hooks) from error
        carry = learner.keep_old_logps(collection.carry)

        # deal: whoever has sampled more to learn from than the others hands some of it over
        with clock.phase("deal"), doing(f"the dealing of the groups of step {step}"):
            dealt = learner.deal(collection.used)
        collection = replace(collection, carry=carry, used=dealt.groups)

        # rest: until the next sync nobody samples, and training needs the memory
        engine.rest()

        # update: once or more often on the same groups, as the algorithm says
        with clock.phase("train"), doing(f"the training of step {step}"):
            try:
                report = learner.update(collection.used, step=state.step)
            except RefusedUpdateError as error:
                folder = run.record.broken(step, collection.used)
                raise locate(error, step, folder) from None

        # sync: whoever samples next does so with these weights; who cannot ends the run, once this
        # step is kept
        lost: EngineLostError | None = None
        with doing(f"the handing over of the weights of step {step}"):
            try:
                engine.sync(learner.weights, step)
            except EngineLostError as error:
                lost = error

    # a step without signal may be one of weights that mean nothing any more
    if not report.applied:
        with doing(f"the check of the weights of step {step}"):
            refuse_non_finite(learner.weights(), step)
    return _Done(collection=collection, dealt=dealt, report=report, lost=lost)


def _log_step(
    state: RunState, run: _Run, done: _Done, clock: Clock, counters: Mapping[str, float]
) -> RunState:
    """Write down what was seen, what was trained and what it cost, over all processes.

    Returns the state after the step.

    counters: the engine's, before the step.
    """
    collection, report, accelerator = done.collection, done.report, run.accelerator
    seen = sum_named(accelerator, count_collection(collection, version=state.step))
    computed = count_rollout(run.engine.counters(), counters)
    state = advance(state, collection, report, completions=seen["completions"])
    rounds = int(maximum(accelerator, collection.rounds))
    metrics = {
        **collection_metrics(seen, collection, rounds=rounds),
        **(deal_metrics(done.dealt) if accelerator.num_processes > 1 else {}),
        **update_metrics(report, group_size=run.collector.group_size),
        **run.learner.learning_rates(state.step - 1),
        **rollout_metrics(sum_named(accelerator, computed)),
        "skipped_steps": state.skipped_steps,
        "position": state.position,
        "completions": state.completions,
    }
    for seconds in (collection.seconds, report.seconds, rollout_seconds(computed)):
        clock.add(seconds)
    shares = shares_of_step(clock.seconds)
    run.record.metrics(state.step, "train", metrics, clock.seconds, shares)
    run.hooks.show(state.step, metrics, clock.seconds)

    every = run.intervals.samples_every
    if every and (state.step == 1 or _is_due(state.step, every)):
        run.record.samples(state.step, collection.seen)
    return state


def _evaluate(state: RunState, intervals: Intervals, record: Record, hooks: Hooks) -> RunState:
    """Score the policy as it is, and keep what it answered. Returns the state, in which no evaluation is due any more.

    One that is cut short by a wish to stop leaves nothing behind, and is due still. Raises EngineLostError.
    """
    assert hooks.evaluate is not None
    clock = Clock()
    with clock.phase("eval"), doing(f"the evaluation after step {state.step}"):
        found = hooks.evaluate()
    if found is None:
        return state
    record.evaluation(state.step, found)
    record.metrics(state.step, "eval", found.metrics, clock.seconds)
    hooks.show(state.step, found.metrics, {})
    best = better(state.best, intervals.keep_best, state.step, found.metrics)
    return replace(state, evaluation_due=False, best=best)


def _evaluate_missed(state: RunState, run: _Run) -> tuple[RunState, bool]:
    """The evaluation before the first step, or one that a stop or a lost engine has left undone, if one is wanted.

    Returns the state, and whether the run is to stop; whatever continues from it begins with the evaluation if it is still due.
    """
    record, hooks = run.record, run.hooks
    if hooks.evaluate is None:
        return replace(state, evaluation_due=False), False
    try:
        state = _evaluate(state, run.intervals, record, hooks)
    except EngineLostError as error:
        raise _save_lost_run(error, state, record, hooks) from error

    # no later checkpoint would know that it was made, or be the best
    stop = _stop_wanted(hooks, run.accelerator)
    last = state.step == run.intervals.steps
    if not state.evaluation_due and (stop or last or _is_best(state)):
        _checkpoint(state, record, hooks)
    return state, stop


def _stop_wanted(hooks: Hooks, accelerator: Accelerator) -> bool:
    """Whether any of the processes was asked to stop."""
    return maximum(accelerator, float(hooks.stop_wanted())) > 0


def _checkpoint(state: RunState, record: Record, hooks: Hooks) -> Path:
    record.flush()
    with doing(f"the checkpoint of step {state.step}"):
        return hooks.checkpoint(state)


def _save_lost_run(
    error: EngineLostError, state: RunState, record: Record, hooks: Hooks
) -> EngineLostError:
    """Write the checkpoint of a run that cannot continue. Returns the error with where to resume."""
    checkpoint = _checkpoint(state, record, hooks)
    return explain_lost(error, state.step, checkpoint, unscored=state.evaluation_due)


def _is_best(state: RunState) -> bool:
    """Whether the evaluation of these very weights is the best so far."""
    return state.best is not None and state.best.step == state.step


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
