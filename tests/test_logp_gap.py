"""The gap between what the engine recorded and what the trainer computes: measured by age, and a gate."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import gpg_vl, metrics, write_config
from test_learner import adamw, load, make_groups, make_learner, weights

from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.config import parse_config
from gpg_vl.errors import UserError
from gpg_vl.models.policy import Policy
from gpg_vl.training.build import max_logp_gap
from gpg_vl.training.failures import LogpGapError
from gpg_vl.training.metrics import update_metrics
from gpg_vl.training.micro_batch import NOT_SAMPLED, Layout, make_micro_batches
from gpg_vl.types import Group

FAULT = 0.01
"""Nats that a planted fault adds to each recorded log-prob."""


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    """Two groups of three with a signal."""
    made = make_groups(tiny_checkpoint)
    return [made[0], made[2]]


def faulty(group: Group, by: float = FAULT, *, version: int = 0) -> Group:
    """The group as an engine would give it that is wrong by so much, sampled by weights of this version."""
    completions = [
        replace(c, logprobs=tuple(logp + by for logp in c.logprobs), version=version)
        for c in group.completions
    ]
    return replace(group, completions=tuple(completions))


class Trained:
    """A learner whose limit is near the fault, what it trains, and what that was at the beginning of a step."""

    def __init__(self, checkpoint: Path, *, updates: int = 1, limit: float) -> None:
        self.policy = load(checkpoint, torch.float32)
        self._made: list[torch.optim.Optimizer] = []
        self.learner = make_learner(
            self.policy,
            gpg() if updates == 1 else grpo(updates=updates, kl_beta=0.0),
            optimizer=self._adamw,
            rate=1e-2,
            max_logp_gap=limit,
        )

    def _adamw(self, policy: Policy) -> torch.optim.Optimizer:
        self._made.append(adamw(policy, weight_decay=0.1))
        return self._made[-1]

    def moments(self) -> list[torch.Tensor]:
        state = self._made[0].state_dict()["state"]
        return [value.clone() for number in sorted(state) for value in state[number].values()]


def refused(trained: Trained, groups: Sequence[Group], *, step: int) -> str:
    """What the learner says; neither weights nor moments have moved by a bit."""
    before, moments = weights(trained.policy), trained.moments()
    with pytest.raises(LogpGapError) as told:
        trained.learner.update(groups, step=step)
    assert torch.equal(weights(trained.policy), before)
    now = trained.moments()
    assert len(now) == len(moments)
    assert all(torch.equal(a, b) for a, b in zip(now, moments, strict=True))
    return str(told.value)


# ---- the gate


def test_a_fault_above_the_limit_stops_before_anything_moves(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Also after a step that was trained, so that there are moments which could have moved."""
    trained = Trained(tiny_checkpoint, limit=0.98 * FAULT)
    assert not trained.moments()
    message = refused(trained, list(map(faulty, groups)), step=0)
    assert "rollout.max_logp_gap allows an average of 0.0098. The update was not applied" in message
    assert "differ from the trainer's by 0.01 on average and 0.01 at most" in message
    for cause in ("normalises a second time", "tied head", "cached", "temperature", "checkpoint"):
        assert cause in message
    assert "model.dtype=float32" in message
    assert "gpg-vl doctor" in message

    assert trained.learner.update(groups, step=0).applied
    assert trained.moments()
    answers = [faulty(group, 10.0, version=1) for group in groups]
    refused(trained, answers, step=1)


def test_a_fault_below_the_limit_is_trained_and_reported(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    trained = Trained(tiny_checkpoint, limit=1.02 * FAULT)
    before = weights(trained.policy)
    report = trained.learner.update(list(map(faulty, groups)), step=0)
    assert report.applied
    assert not torch.equal(weights(trained.policy), before)
    assert report.logp_gap_mean == pytest.approx(FAULT, rel=1e-3)
    assert report.logp_gap_max == pytest.approx(FAULT, rel=1e-2)
    assert report.logp_gap_stale_mean is None
    assert report.logp_gap_stale_max is None


def test_what_older_weights_have_sampled_stands_apart_and_never_stops(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """A group of each age: either gap is that of its own tokens."""
    trained = Trained(tiny_checkpoint, limit=1e-4)
    fresh, stale = faulty(groups[0], 0.0, version=3), faulty(groups[1], 0.5, version=2)
    report = trained.learner.update([stale, fresh], step=3)
    assert report.logp_gap_mean < 1e-5
    assert report.logp_gap_max < 1e-5
    assert report.logp_gap_stale_mean == pytest.approx(0.5, rel=1e-4)
    assert report.logp_gap_stale_max == pytest.approx(0.5, rel=1e-4)
    row = update_metrics(report, group_size=3)
    assert row["logp_gap_stale_mean"] == report.logp_gap_stale_mean
    assert row["logp_gap_stale_max"] == report.logp_gap_stale_max

    alone = Trained(tiny_checkpoint, limit=1e-4).learner.update([stale], step=3)
    assert alone.applied
    assert alone.logp_gap_mean is None
    assert alone.logp_gap_max is None
    assert alone.logp_gap_stale_mean == pytest.approx(0.5, rel=1e-4)


def test_an_old_group_does_not_hide_a_fault_in_a_fresh_one(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    trained = Trained(tiny_checkpoint, limit=0.98 * FAULT)
    fresh, stale = faulty(groups[0], version=3), faulty(groups[1], 0.0, version=2)
    message = refused(trained, [stale, fresh], step=3)
    assert "where older weights have sampled" in message


@pytest.mark.parametrize("limit", [1e-4, math.inf])
@pytest.mark.parametrize("version", [3, 2])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_prob_that_is_no_number_stops_at_any_age(
    tiny_checkpoint: Path, groups: list[Group], value: float, version: int, limit: float
) -> None:
    """One of many, with a limit and without."""
    group = faulty(groups[0], 0.0, version=version)
    first = group.completions[0]
    logprobs = (*first.logprobs[:-1], value)
    broken = replace(group, completions=(replace(first, logprobs=logprobs), *group.completions[1:]))
    trained = Trained(tiny_checkpoint, limit=limit)
    message = refused(trained, [broken, faulty(groups[1], 0.0, version=3)], step=3)
    assert "nan on average" in message or "inf on average" in message


def test_a_later_update_of_a_step_does_not_stop(tiny_checkpoint: Path, groups: list[Group]) -> None:
    """The first has moved the policy by more than the limit; the gap of the step stays that of the first."""
    trained = Trained(tiny_checkpoint, updates=2, limit=1e-4)
    report = trained.learner.update(groups, step=0)
    assert report.applied
    assert report.logp_gap_max < 1e-5
    moved = trained.learner.update([faulty(group, 0.0) for group in groups], step=1)
    assert moved.logp_gap_stale_mean > 1e-4, "or the second update would have shown nothing"


def test_tokens_know_who_has_sampled_them(groups: list[Group]) -> None:
    old = faulty(groups[0], 0.0, version=4)
    gold = replace(groups[1].completions[0], logprobs=(), version=7)
    group = replace(groups[1], completions=(gold, *groups[1].completions[1:]))
    layout = Layout(tokens_per_pass=10**6, shared_prefix=True)
    (micro_batch,) = make_micro_batches([old, group], None, layout)
    lengths = [len(c.token_ids) for g in (old, group) for c in g.completions]
    expected = [4] * sum(lengths[:3]) + [NOT_SAMPLED] * lengths[3] + [0] * sum(lengths[4:])
    assert micro_batch.version_K.tolist() == expected


# ---- the limit


def config_of(**sections: object) -> dict[str, object]:
    return {
        "model": {"path": "m"},
        "data": {"train": "t.jsonl"},
        "rewards": {"weights": {"choice": 1.0}},
        "output": {"folder": "runs/x"},
        **sections,
    }


def test_the_limit_is_that_of_the_dtype_or_the_one_that_is_given() -> None:
    assert max_logp_gap(parse_config(config_of(), "run.yaml")) == 1e-4
    half = {"path": "m", "dtype": "bfloat16"}
    assert max_logp_gap(parse_config(config_of(model=half), "run.yaml")) == 0.1
    given = config_of(model=half, rollout={"max_logp_gap": 0.02})
    assert max_logp_gap(parse_config(given, "run.yaml")) == 0.02


@pytest.mark.parametrize("value", [0, -0.1, "none of it"])
def test_a_limit_that_nothing_could_keep_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"rollout\.max_logp_gap"):
        parse_config(config_of(rollout={"max_logp_gap": value}), "run.yaml")


# ---- end to end

ENGINE = """
import os
from dataclasses import replace

from gpg_vl.rollout.native import NativeEngine


class Wrong:
    \"\"\"Answers like the native engine, and records log-probs that are wrong on one process.\"\"\"

    def __init__(self, setup):
        self._engine = NativeEngine(setup)
        self.sync, self.rest = self._engine.sync, self._engine.rest
        self.counters, self.step = self._engine.counters, self._engine.step

    def generate(self, requests, sampling, done=None):
        answered = self._engine.generate(requests, sampling, done)
        if os.environ.get("RANK", "0") != os.environ["WRONG_RANK"]:
            return answered
        return [tuple(map(shift, completions)) for completions in answered]


def shift(completion):
    by = float(os.environ["WRONG_BY"])
    return replace(completion, logprobs=tuple(logp + by for logp in completion.logprobs))
"""


def wrong_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, *, by: float, rank: int) -> str:
    file = folder / "wrong.py"
    file.write_text(ENGINE)
    monkeypatch.setenv("WRONG_BY", str(by))
    monkeypatch.setenv("WRONG_RANK", str(rank))
    return f"{file}:Wrong"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_with_a_wrong_engine_stops_and_trains_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Of two processes one has the wrong engine, and both stop; with a limit of its own the run goes on."""
    engine = wrong_engine(tmp_path, monkeypatch, by=0.02, rank=processes - 1)
    rollout = {"engine": engine, "group_size": 3, "max_new_tokens": 4}
    few = {"steps": 2, "prompts_per_step": 4}
    config = write_config(tmp_path, tiny_checkpoint, rollout=rollout, train=few)
    result = gpg_vl("train", config, processes=processes)
    assert result.returncode == 1, result.stderr
    for text in (
        "Step 1: The engine's log-probs differ from the trainer's by ",
        "rollout.max_logp_gap allows an average of 0.0001. The update was not applied.",
        "Usual causes: pixels that the engine normalises a second time",
        "Run with model.dtype=float32",
    ):
        assert text in result.stderr, text
    assert processes > 1 or "Traceback" not in result.stderr, "torchrun has one of its own"
    run = tmp_path / "run"
    for process in range(processes):
        kept = run / "broken" / f"step-000001-process-{process}"
        assert f"The groups of the step are saved in {kept}" in result.stderr
        assert (kept / "tensors.safetensors").is_file()
    assert not (run / "metrics.jsonl").exists()
    assert not (run / "checkpoints").exists()

    result = gpg_vl("train", config, "--resume", "rollout.max_logp_gap=0.05", processes=processes)
    assert result.returncode == 0, result.stderr
    gaps = [row["logp_gap_mean"] for row in metrics(run)]
    assert any(0.005 < gap < 0.021 for gap in gaps), json.dumps(gaps)
