"""Groups change over between processes until none has many more tokens than the others."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import gpg_vl, metrics, write_config

from gpg_vl.training.balance import TOLERANCE, WORTH, Move, excess, plan_moves

tokens_by_process = st.lists(st.lists(st.integers(0, 5000), max_size=6), min_size=1, max_size=5)


def test_half_of_the_difference_changes_over() -> None:
    """30 and 10 tokens are 20 and 20 once 10 change over: neither the largest group nor the smallest."""
    assert plan_moves([[15, 10, 5], [10]]) == [Move(source=0, place=1, to=1)]
    assert excess([[15, 10, 5], [10]], []) == pytest.approx(1.5)
    assert excess([[15, 10, 5], [10]], [Move(0, 1, 1)]) == 1.0


def test_of_equal_groups_the_first_one_moves() -> None:
    assert plan_moves([[0, 7, 7, 7], [7]]) == [Move(source=0, place=1, to=1)]


def test_a_process_that_sampled_nothing_to_learn_from_is_given_its_share() -> None:
    moves = plan_moves([[100, 100, 100, 100], [0, 0, 0, 0]])
    assert moves == [Move(0, 0, 1), Move(0, 1, 1)]


@pytest.mark.parametrize(
    "tokens",
    [
        [[100], [0]],
        [[100, 100], [105, 100]],
        [[0, 0], [0]],
        [[], []],
        [[1000, 3], [900]],
        [[7, 7, 7]],
    ],
)
def test_nothing_moves_where_it_helps_nobody(tokens: list[list[int]]) -> None:
    assert plan_moves(tokens) == []


@given(tokens_by_process)
def test_no_group_is_lost_and_the_fullest_is_never_fuller(tokens: list[list[int]]) -> None:
    moves = plan_moves(tokens)
    assert len({move[:2] for move in moves}) == len(moves), "each moves once"
    for source, place, to in moves:
        assert source != to
        assert tokens[source][place] > 0
    assert excess(tokens, moves) <= excess(tokens, [])
    if excess(tokens, []) <= 1 + TOLERANCE:
        assert not moves


def best(tokens: Sequence[Sequence[int]]) -> float:
    """The lowest excess of all ways to deal the groups."""
    sizes = [size for of_one in tokens for size in of_one]
    loads = []
    for way in product(range(len(tokens)), repeat=len(sizes)):
        held = [0] * len(tokens)
        for process, size in zip(way, sizes, strict=True):
            held[process] += size
        loads.append(max(held))
    return min(loads) * len(tokens) / sum(sizes)


@given(st.lists(st.lists(st.integers(100, 1000), min_size=1, max_size=3), min_size=2, max_size=3))
def test_few_moves_come_near_the_best_of_all_ways(tokens: list[list[int]]) -> None:
    """At most 2 - 2/(n + 1) times it for n processes: the bound of every deal that no single move makes better."""
    bound = 2 - 2 / (len(tokens) + 1) + WORTH
    assert excess(tokens, plan_moves(tokens)) <= max(best(tokens) * bound, 1 + TOLERANCE)


SOMETIMES = '''
def luck(completion, example):
    """Every second row carries a signal."""
    if completion.text.startswith("<think>"):
        return 1.0
    return sum(map(ord, completion.text)) % 5 / 4 if int(example.id) % 2 else 0.5
'''


def test_two_processes_that_exchange_groups_have_the_gradient_of_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config = write_config(
            folder,
            tiny_checkpoint,
            algorithm={"beta_th": 0.0},
            train={"prompts_per_step": 8, "steps": 3},
        )
        (folder / "luck.py").write_text(SOMETIMES)
        result = gpg_vl("train", config, processes=processes)
        assert result.returncode == 0, result.stderr
        runs.append(metrics(folder / "run"))

    alone, together = runs
    for one, two in zip(alone, together, strict=True):
        for name in ("loss", "grad_norm", "entropy", "reward", "valid_used"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
        assert two["fullest_process_trained"] <= two["fullest_process_sampled"]
        assert "moved_groups" not in one
    assert any(row["moved_groups"] for row in together), "nothing was exchanged"
