"""What the loop does in which order, with parts that do nothing: evaluations, checkpoints, stops, weights that are no numbers."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.errors import RunError, UserError
from gpg_vl.rollout.engine import EngineLostError
from gpg_vl.training.balance import Dealt
from gpg_vl.training.collect import Collection
from gpg_vl.training.evaluation_files import Evaluated
from gpg_vl.training.finite_weights import NonFiniteWeightsError
from gpg_vl.training.loop import Hooks, Intervals, train
from gpg_vl.training.state import RunState
from gpg_vl.training.step_totals import UpdateReport

ACCELERATOR = SimpleNamespace(num_processes=1, is_main_process=True, process_index=0)
COUNTS = StepCounts(groups=0, valid_groups=0, completions=0, tokens=0, valid_tokens=0)


class Parts:
    """A run that only writes down what is asked of it."""

    def __init__(
        self,
        *,
        stop_in: tuple[int, ...] = (),
        lose_in: tuple[int, ...] = (),
        stop_evaluating_in: int | None = None,
        break_in: int | None = None,
        applied: bool = True,
    ) -> None:
        self.log: list[str] = []
        self.saved: list[RunState] = []
        self._stop_in, self._lose_in = stop_in, lose_in
        self._stop_evaluating_in = stop_evaluating_in
        self._break_in, self._applied = break_in, applied
        self._step = 0

    # ---- what the loop calls

    def collect(self, state: RunState) -> Collection:
        self._step = state.step + 1
        return Collection(
            used=(),
            carry=(),
            seen=(),
            position=0,
            rounds=1,
            cap_hit=False,
            failures=(),
            seconds={"encode": 0.0},
        )

    def update(self, groups: Any, *, step: int) -> UpdateReport:
        return UpdateReport(applied=self._applied, counts=COUNTS, metrics={})

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        broken = self._break_in is not None and self._step >= self._break_in
        yield "a.weight", torch.ones(2, 2)
        yield "b.weight", torch.tensor([1.0, torch.nan if broken else 2.0])

    def evaluate(self) -> Evaluated | None:
        if self._step == self._stop_evaluating_in:
            self._stop_in = (self._step,)
            return None
        if self._step in self._lose_in:
            self._lose_in = ()
            raise EngineLostError("gone")
        return Evaluated(metrics={"accuracy": 1.0})

    def checkpoint(self, state: RunState) -> Path:
        self.saved.append(state)
        self.log.append(f"checkpoint {state.step}")
        return Path("checkpoint")

    def stop_wanted(self) -> bool:
        return self._step in self._stop_in

    def row(self, step: int, kind: str, values: Any, seconds: Any, shares: Any = None) -> None:
        self.log.append(f"{kind} {step}")

    # ---- how it is started

    def train(
        self, state: RunState, *, steps: int, eval_every: int = 0, scores: bool = True
    ) -> RunState:
        self._step = state.step
        learner: Any = SimpleNamespace(
            update=self.update,
            weights=self.weights,
            keep_old_logps=tuple,
            deal=lambda groups: Dealt(groups=groups, moved=0, before=1.0, after=1.0),
            learning_rates=lambda step: {},
        )
        engine: Any = SimpleNamespace(
            sync=lambda weights, version: None, counters=dict, step=nullcontext, rest=lambda: None
        )
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        record: Any = SimpleNamespace(
            metrics=self.row, evaluation=nothing, flush=nothing, samples=nothing
        )
        return train(
            collector=SimpleNamespace(collect=self.collect, group_size=2),  # type: ignore[arg-type]
            learner=learner,
            engine=engine,
            state=state,
            intervals=Intervals(
                steps=steps, eval_every=eval_every, checkpoint_every=0, samples_every=0
            ),
            record=record,
            hooks=Hooks(
                evaluate=self.evaluate if scores else None,
                checkpoint=self.checkpoint,
                show=nothing,
                stop_wanted=self.stop_wanted,
            ),
            accelerator=ACCELERATOR,  # type: ignore[arg-type]
        )


def test_a_run_evaluates_and_keeps_its_last_step() -> None:
    parts = Parts()
    final = parts.train(RunState(), steps=2)
    assert parts.log == ["train 1", "train 2", "eval 2", "checkpoint 2"]
    assert not final.evaluation_due


@pytest.mark.parametrize("stop", [2, 4])
def test_an_evaluation_that_a_stop_has_left_out_is_made_on_resume(stop: int) -> None:
    """Within the run and in its last step: together the rows are those of a run that was never stopped."""
    parts = Parts(stop_in=(stop,))
    state = parts.train(RunState(), steps=4, eval_every=2)
    assert state.evaluation_due
    assert parts.saved[-1].evaluation_due, "the checkpoint has to know"
    assert f"eval {stop}" not in parts.log

    again = Parts()
    final = again.train(state, steps=4, eval_every=2)
    assert not final.evaluation_due
    assert not again.saved[-1].evaluation_due
    rows = [line for line in parts.log + again.log if "checkpoint" not in line]
    assert rows == ["train 1", "train 2", "eval 2", "train 3", "train 4", "eval 4"]
    assert (final.step, again.log[-1]) == (4, "checkpoint 4")


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_an_evaluation_that_a_stop_has_cut_short_is_made_on_resume(stop: int) -> None:
    """Before the first step, within the run and at its end; no step is made in between."""
    parts = Parts(stop_evaluating_in=stop)
    state = parts.train(RunState(evaluation_due=True), steps=4, eval_every=2)
    assert (state.step, state.evaluation_due) == (stop, True)
    assert [one.step for one in parts.saved] == ([stop] if stop else []), "0 steps: nothing to keep"

    again = Parts()
    assert not again.train(state, steps=4, eval_every=2).evaluation_due
    rows = [line for line in parts.log + again.log if "checkpoint" not in line]
    assert rows == ["eval 0", "train 1", "train 2", "eval 2", "train 3", "train 4", "eval 4"]


def test_a_stop_at_the_end_of_an_evaluation_is_not_put_off_by_a_step() -> None:
    parts = Parts(stop_in=(2,))
    state = parts.train(RunState(step=2, evaluation_due=True), steps=4, eval_every=2)
    assert (state.step, state.evaluation_due) == (2, False)
    assert parts.log == ["eval 2", "checkpoint 2"]
    assert not parts.saved[-1].evaluation_due


def test_a_stop_in_a_step_without_evaluation_owes_none() -> None:
    parts = Parts(stop_in=(1,))
    state = parts.train(RunState(), steps=4, eval_every=2)
    assert (state.step, state.evaluation_due) == (1, False)
    assert parts.log == ["train 1", "checkpoint 1"]


@pytest.mark.parametrize("lost", [2, 4])
def test_an_evaluation_that_was_lost_with_the_engine_is_made_on_resume(lost: int) -> None:
    parts = Parts(lose_in=(lost,))
    with pytest.raises(EngineLostError, match=rf"after step {lost} was due; it will be made"):
        parts.train(RunState(), steps=4, eval_every=2)
    [kept] = parts.saved
    assert kept.evaluation_due

    again = Parts(lose_in=(lost,))
    with pytest.raises(EngineLostError, match=rf"after step {lost} was due"):
        again.train(kept, steps=4, eval_every=2)
    assert again.train(again.saved[-1], steps=4, eval_every=2).evaluation_due is False
    assert again.log.count(f"eval {lost}") == 1


def test_a_config_that_evaluates_no_more_owes_nothing() -> None:
    parts = Parts()
    state = RunState(step=4, evaluation_due=True)
    assert parts.train(state, steps=4, scores=False).evaluation_due is False


# ---- weights that are no numbers


def test_a_run_does_not_begin_with_weights_that_are_no_numbers() -> None:
    parts = Parts(break_in=0)
    with pytest.raises(UserError, match=r"initial weights are not finite: b\.weight has NaN"):
        parts.train(RunState(), steps=2)
    assert parts.log == []


def test_skipped_steps_look_at_the_weights() -> None:
    """Where every answer gets the same reward, nothing else would."""
    parts = Parts(break_in=2, applied=False)
    with pytest.raises(NonFiniteWeightsError, match=r"after step 2 are not finite: b\.weight"):
        parts.train(RunState(), steps=4)
    assert parts.log == ["train 1"]
    assert issubclass(NonFiniteWeightsError, RunError)
