"""Rows that a run has solved: counted in the order of draws, passed over in the data order, kept in checkpoints."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from runs import gpg_vl, metrics, write_config
from test_equally_often import make_group
from test_train import last_checkpoint

from gpg_vl.config import load_config
from gpg_vl.data.order import index_at
from gpg_vl.data.solved_rows import (
    Judged,
    SkipRule,
    Solved,
    count_streaks,
    list_solved,
    next_draws,
)
from gpg_vl.errors import UserError
from gpg_vl.rewards.scoring import Scored
from gpg_vl.training.collect import Collection, Collector, Quota
from gpg_vl.training.display import Display
from gpg_vl.training.prepare import prepare
from gpg_vl.training.state import RunState, dump_state, read_state
from gpg_vl.types import Group

# ---- counting


def test_a_streak_ends_with_a_group_that_is_not_all_right() -> None:
    judged = [
        Judged(draw=5, row=1, all_right=True),
        Judged(draw=4, row=1, all_right=False),
        Judged(draw=7, row=2, all_right=False),
        Judged(draw=6, row=3, all_right=True),
    ]
    counted = count_streaks({1: 2, 2: 2, 3: 2, 4: 1}, judged, needed=3)
    assert counted == {1: 1, 3: 3, 4: 1}
    assert list_solved(counted, needed=3) == {3}


def test_the_order_in_which_processes_tell_does_not_matter() -> None:
    """Right, wrong, right: by draw the streak is 1; in another order it would be 2 or 0."""
    judged = [Judged(1, 8, True), Judged(2, 8, False), Judged(3, 8, True)]
    for told in (judged, judged[::-1], [judged[1], judged[2], judged[0]]):
        assert count_streaks({}, told, needed=9) == {8: 1}


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9),
    position=st.integers(0, 30),
    number=st.integers(0, 12),
    lots=st.sets(st.integers(0, 8)),
)
def test_places_of_solved_rows_are_passed_over_and_no_other_is(
    rows: int, position: int, number: int, lots: set[int]
) -> None:
    solved = frozenset(row for row in lots if row < rows)
    if len(solved) == rows:
        return

    def row_at(draw: int) -> int:
        return index_at(draw, size=rows, seed=3)

    drawn = list(next_draws(position, number, row_at, solved))
    assert len(drawn) == number
    end = drawn[-1] + 1 if drawn else position
    assert drawn == [draw for draw in range(position, end) if row_at(draw) not in solved]


def test_when_too_few_are_left_all_are_drawn_again() -> None:
    """Five rows, steps of three: two may be solved, a third may not."""
    rule = SkipRule(needed=1, rows=5, least=3)
    first = rule.settle({}, [Judged(0, 4, True), Judged(1, 2, True)])
    assert first == Solved(streaks={4: 1, 2: 1}, rows=2, again=0)
    assert rule.settle(first.streaks, [Judged(2, 0, True)]) == Solved(streaks={}, rows=0, again=3)


def test_the_state_of_a_checkpoint_has_them(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    state = RunState(step=3, position=9, streaks={11: 2, 7: 1})
    file.write_text(dump_state(state, processes=1, sharding="none"))
    assert read_state(file).state == state

    assert "streaks" not in dump_state(RunState(step=3), processes=1, sharding="none")
    for broken in ([], {"x": 1}, {"1": -1}, {"1": True}):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"streaks": broken}))
        with pytest.raises(ValueError, match="not a count"):
            read_state(file)


# ---- in a step


def make_collector(solves: Sequence[int], *, rows: int, skip: int = 1) -> Collector:
    """Steps of two groups from so many rows, of which some are always answered right and the others half."""

    def score(groups: Sequence[Group]) -> Scored:
        scored = []
        for group in groups:
            values = (1.0, 1.0) if group.draw % rows in solves else (0.0, 1.0)
            scored.append(replace(group, rewards=values, reward_parts={"r": values}))
        return Scored(groups=scored, failures=[])

    source: Any = SimpleNamespace(group_at=make_group, row_at=lambda draw: draw % rows)
    responder: Any = SimpleNamespace(group_size=2, answer=lambda groups, progress: list(groups))
    rewarder: Any = SimpleNamespace(score=score)
    return Collector(
        source,
        responder,
        rewarder,
        Quota(prompts_per_step=2, beta_th=0.0, max_resample_attempts=1),
        Accelerator(cpu=True),
        drop_broken=False,
        progress=Display(Console(), steps=1, done=0, enabled=False),
        skip=SkipRule(needed=skip, rows=rows, least=2) if skip else None,
    )


def run_steps(collector: Collector, steps: int) -> tuple[list[list[int]], list[Collection]]:
    """The draws of each step, and what was collected."""
    state, collections = RunState(), []
    for _ in range(steps):
        found = collector.collect(state)
        collections.append(found)
        streaks = found.solved.streaks if found.solved else {}
        state = replace(state, position=found.position, streaks=streaks)
    return [[group.draw for group in found.seen] for found in collections], collections


def test_a_solved_row_is_not_drawn_any_more() -> None:
    """Four rows in turn, row 1 and row 2 solved at their first group."""
    draws, collections = run_steps(make_collector([1, 2], rows=4), 4)
    assert draws == [[0, 1], [2, 3], [4, 7], [8, 11]]
    assert [found.position for found in collections] == [2, 4, 8, 12]
    assert [found.solved.rows for found in collections if found.solved] == [1, 2, 2, 2]


def test_two_groups_are_asked_for_where_two_are_needed() -> None:
    draws, _ = run_steps(make_collector([1], rows=4, skip=2), 5)
    assert draws == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 10]]


def test_rows_return_when_the_last_but_one_is_solved() -> None:
    """Three of four rows solved leave one, and a step wants two."""
    draws, collections = run_steps(make_collector([0, 1, 2], rows=4), 3)
    assert draws == [[0, 1], [2, 3], [4, 5]]
    assert [found.solved.again for found in collections if found.solved] == [0, 3, 0]


def test_a_run_that_skips_none_knows_of_none() -> None:
    draws, collections = run_steps(make_collector([0, 1, 2, 3], rows=4, skip=0), 3)
    assert draws == [[0, 1], [2, 3], [4, 5]]
    assert all(found.solved is None for found in collections)


# ---- in a run

EASY = '''
def easy(completion, example):
    """Full marks for rows of an even number and for gold answers; for others a number that depends on the text alone."""
    if completion.text.startswith("<think>") or int(example.id) % 2 == 0:
        return 1.0
    return sum(map(ord, completion.text)) % 5 / 5
'''


def write_easy(folder: Path, checkpoint: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "easy.py").write_text(EASY)
    return write_config(
        folder,
        checkpoint,
        data={"skip_solved": 1},
        rewards={"weights": {f"{folder / 'easy.py'}:easy": 1.0}},
        train={"steps": 10},
        output={"samples_every": 1, "checkpoint_every": 5},
    )


def drawn_ids(run: Path) -> list[list[int]]:
    """The ids of the groups of each step."""
    files = sorted(run.glob("samples/*/samples.jsonl"))
    return [[int(json.loads(row)["id"]) for row in file.read_text().splitlines()] for file in files]


def test_a_run_passes_over_solved_rows_and_resumes_bit_for_bit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """12 rows of which six are always solved. One process and two agree, and so does a run that is stopped in between."""
    config = write_easy(tmp_path, tiny_checkpoint)
    whole = gpg_vl("train", config)
    assert whole.returncode == 0, whole.stderr
    rows, ids = metrics(tmp_path / "run"), drawn_ids(tmp_path / "run")
    assert len(ids) == 10

    solved: set[int] = set()
    for step, row in zip(ids, rows, strict=True):
        assert not solved & set(step), "a solved row is drawn"
        solved |= {number for number in step if number % 2 == 0}
        assert (row["solved_rows"], row["solved_rows_again"]) == (len(solved), 0)
    assert len(solved) == 6, "an epoch has shown every row"
    assert rows[-1]["position"] > 2 * 10

    other = f"output.folder={tmp_path / 'other'}"
    assert gpg_vl("train", config, other, "train.steps=5").returncode == 0
    shutil.rmtree(tmp_path / "other" / "samples")
    again = gpg_vl("train", config, other, "--resume")
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path / "other") == rows
    state = (last_checkpoint(tmp_path / "run") / "state.json").read_text()
    assert (last_checkpoint(tmp_path / "other") / "state.json").read_text() == state
    assert len(json.loads(state)["streaks"]) == 6

    two = gpg_vl("train", config, f"output.folder={tmp_path / 'two'}", processes=2)
    assert two.returncode == 0, two.stderr
    places = [(row["position"], row["solved_rows"]) for row in metrics(tmp_path / "two")]
    assert places == [(row["position"], row["solved_rows"]) for row in rows]


def test_fewer_rows_than_a_step_draws_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = load_config(
        write_config(tmp_path, tiny_checkpoint, data={"skip_solved": 1, "limit": 1})
    )
    with pytest.raises(UserError, match="there are 1 rows and a step draws 2"):
        prepare(config, processes=1, console=None)


def test_an_algorithm_that_samples_nothing_skips_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = write_config(
        tmp_path, tiny_checkpoint, data={"skip_solved": 1}, algorithm={"name": "sft"}
    )
    with pytest.raises(UserError, match=r"skip_solved is 1, but algorithm sft trains on gold"):
        load_config(file)
