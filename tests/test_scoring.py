"""Values, totals, signatures and the check of gold answers; all in this process."""

import functools
import json
import math
import re
import textwrap
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.errors import UserError
from gpg_vl.rewards.gold_proof import gold_completion
from gpg_vl.rewards.scoring import (
    Reward,
    RewardValueError,
    call,
    check_signature,
    checked_value,
    checked_weights,
    load,
    totals,
    with_rewards,
)
from gpg_vl.types import Completion, Example, GreedyAnswer, Group

EXAMPLE = Example(id="ex-7", prompt="Which?", answer="(B)", choices=("ball", "cube"))
COMPLETION = Completion(token_ids=(1,), logprobs=(-0.1,), text="(B)", finish_reason="stop")


def returning(value, *, batched=False, low=0.0, high=1.0):
    return Reward(
        name="mine.py:f", function=lambda given, example: value, batched=batched, low=low, high=high
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (0, 0.0),
        (1, 1.0),
        (True, 1.0),
        (False, 0.0),
        (np.float32(0.25), 0.25),
        (np.float64(1.0), 1.0),
        (np.int64(1), 1.0),
        (Fraction(1, 4), 0.25),
        (1 + 1e-12, 1.0),
        (-1e-12, 0.0),
    ],
)
def test_any_real_number_in_range_is_a_value(value, expected):
    got = call(returning(value), COMPLETION, EXAMPLE)
    assert got == [expected]
    assert type(got[0]) is float


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned None.*every path ends in a `return`"),
        ("1.0", "returned '1.0'"),
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (-math.inf, "returned -inf"),
        (1.1, r"returned 1\.1.*@in_range"),
        (2, "returned 2"),
        (-0.1, "returned -0.1"),
        (10**400, "returned 1000"),
        (1j, "returned 1j"),
        ([1.0], r"returned \[1\.0\]"),
        ((), r"returned \(\)"),
        (np.float32("nan"), "returned np.float32"),
        (np.array([1.0]), r"returned array.*`value\.item\(\)`"),
        (torch.tensor(1.0), r"returned tensor.*`value\.item\(\)`"),
        (1 + 1e-6, "returned 1.000001"),
    ],
)
def test_anything_else_is_refused_by_reward_example_and_value(value, said):
    with pytest.raises(RewardValueError, match=said) as error:
        call(returning(value), COMPLETION, EXAMPLE)
    for part in ("'mine.py:f'", "'ex-7'", "must return a number from 0 to 1"):
        assert part in str(error.value)


def test_the_declared_range_is_the_limit():
    giou = returning(None, low=-1.0, high=2.0)
    assert checked_value(-1, giou, "7") == -1.0
    assert checked_value(2, giou, "7") == 2.0
    with pytest.raises(RewardValueError, match="from -1 to 2"):
        checked_value(2.1, giou, "7")


def test_a_batched_reward_gives_one_number_per_completion():
    assert call(returning([True, 0.5], batched=True), [COMPLETION] * 2, EXAMPLE) == [1.0, 0.5]
    assert call(returning((0, 1), batched=True), [COMPLETION] * 2, EXAMPLE) == [0.0, 1.0]
    for wrong in ([1.0], [1.0, 0.0, 1.0], [], 1.0, None, np.ones(2), "ab"):
        with pytest.raises(
            RewardValueError,
            match=r"'mine.py:f' returned .* 'ex-7'.*must return a list of 2 numbers",
        ):
            call(returning(wrong, batched=True), [COMPLETION] * 2, EXAMPLE)
    with pytest.raises(RewardValueError, match="returned nan for example 'ex-7'"):
        call(returning([0.0, math.nan], batched=True), [COMPLETION] * 2, EXAMPLE)


def test_what_a_reward_raises_is_not_caught():
    def f(completion, example):
        raise KeyError("colour")

    with pytest.raises(KeyError, match="colour"):
        call(Reward(name="f", function=f, batched=False, low=0.0, high=1.0), COMPLETION, EXAMPLE)


def test_totals_are_weighted_sums():
    parts = {"choice": (1.0, 0.0, 1.0), "format": (1.0, 1.0, 0.0)}
    assert totals(parts, {"choice": 1.0, "format": 0.2}) == (1.2, 0.2, 1.0)
    assert totals(parts, {"format": -2.0, "choice": 0.0}) == (-2.0, -2.0, 0.0)


def test_different_parts_that_tie_give_equal_totals():
    assert 0.1 + 0.2 != 0.3
    parts = {"a": (1.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0)}
    one, other = totals(parts, {"a": 0.1, "b": 0.2, "c": 0.3})
    assert one == other == 0.3


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_equal_parts_give_equal_totals_and_the_order_of_parts_does_not_matter(weights, values):
    names = dict(zip("abc", weights, strict=True))
    results = {
        totals({name: (values["abc".index(name)],) * 2 for name in order}, names)
        for order in permutations("abc")
    }
    assert len(results) == 1
    one, other = results.pop()
    assert one == other
    assert one == pytest.approx(
        math.fsum(w * v for w, v in zip(weights, values, strict=True)), abs=1e-8
    )


def test_a_scored_group_keeps_what_it_was():
    group = Group(example=EXAMPLE, prompt=None, completions=(COMPLETION,) * 2, draw=5)
    scored = with_rewards(
        group, {"choice": (1.0, 0.0), "format": (0.0, 0.0)}, {"choice": 1.0, "format": 0.2}
    )
    assert scored.rewards == (1.0, 0.0)
    assert scored.reward_parts == {"choice": (1.0, 0.0), "format": (0.0, 0.0)}
    assert (scored.example, scored.completions, scored.draw) == (EXAMPLE, group.completions, 5)
    assert scored.is_valid
    assert group.rewards == ()


def test_a_greedy_answer_is_scored_last_and_kept_apart():
    """By hand: 1 + 0.2, 0, and 0.2 for the greedy answer; equal rewards carry a signal if it has another."""
    group = Group(
        example=EXAMPLE,
        prompt=None,
        completions=(COMPLETION,) * 2,
        greedy=GreedyAnswer(completion=replace(COMPLETION, text="greedy")),
    )
    assert [answer.text for answer in group.answers] == [COMPLETION.text] * 2 + ["greedy"]
    parts = {"choice": (1.0, 0.0, 0.0), "format": (1.0, 0.0, 1.0)}
    scored = with_rewards(group, parts, {"choice": 1.0, "format": 0.2})
    assert scored.rewards == (1.2, 0.0)
    assert scored.reward_parts == {"choice": (1.0, 0.0), "format": (1.0, 0.0)}
    assert scored.greedy.reward == 0.2
    assert scored.greedy.reward_parts == {"choice": 0.0, "format": 1.0}

    for rewards, greedy, is_valid in (((1, 1), 1, False), ((1, 1), 0, True), ((1, 0), 1, True)):
        one = replace(scored, rewards=rewards, greedy=replace(scored.greedy, reward=greedy))
        assert one.is_valid == is_valid


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "No reward is named"),
        ({"choice": math.nan}, "'choice' is nan"),
        ({"choice": "1"}, "'choice' is '1'"),
        ({"a": 1, "b": math.inf}, "'b' is inf"),
        ({"choice": None}, "'choice' is None"),
        ({"choice": True}, "'choice' is True"),
    ],
)
def test_weights_are_finite_numbers(weights, message):
    with pytest.raises(UserError, match=message):
        checked_weights(weights)


def test_weights_keep_their_order():
    assert list(checked_weights({"b": 1, "a": -0.5}).items()) == [("b", 1.0), ("a", -0.5)]


def plain(completion, example): ...
def defaults(completion, example, strict=True): ...
def anything(*given): ...
def other_names(answer, row): ...
def one(completion): ...
def three(completion, example, tokenizer): ...
def keywords(*, completion, example): ...
def other_style(completions, **kwargs): ...
def swapped(example, completion): ...
def example_first(example, answer): ...
def completion_last(row, completion): ...
def plural(completions, example): ...
async def coroutine(completion, example): ...
def generator(completion, example):
    yield 1.0


@pytest.mark.parametrize(
    "function", [plain, defaults, anything, other_names, min, functools.partial(three, tokenizer=1)]
)
def test_a_function_of_completion_and_example_is_accepted(function):
    check_signature("mine", function, is_batched=False)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            one,
            r"declared as `\(completion\)`.*exactly two arguments, \(completion, example\).*def one\(completion, ",
        ),
        (three, "missing a required argument: 'tokenizer'"),
        (keywords, "exactly two"),
        (other_style, "exactly two"),
        (swapped, "the completion comes first"),
        (example_first, "the completion comes first"),
        (completion_last, "the completion comes first"),
        (plural, "one completion at a time.*@batched"),
        (coroutine, "coroutine or a generator"),
        (generator, "coroutine or a generator"),
    ],
)
def test_any_other_function_is_refused(function, message):
    with pytest.raises(UserError, match=message) as error:
        check_signature("mine", function, is_batched=False)
    assert "'mine'" in str(error.value)


def test_a_batched_function_takes_completions():
    check_signature("mine", plural, is_batched=True)
    with pytest.raises(UserError, match=r"def one\(completions, example\)"):
        check_signature("mine", one, is_batched=True)


def test_load_reads_the_declarations(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gpg_vl.rewards import batched, in_range\n"
        "@in_range(-1, 2)\ndef wide(completion, example): return 2\n"
        "@batched\ndef many(completions, example): return [1] * len(completions)\n"
        "def bad(example, completion): return 1\n"
    )
    wide, many = load(f"{tmp_path}/mine.py:wide"), load(f"{tmp_path}/mine.py:many")
    assert (wide.batched, wide.low, wide.high) == (False, -1.0, 2.0)
    assert (many.batched, many.low, many.high) == (True, 0.0, 1.0)
    with pytest.raises(UserError, match="the completion comes first"):
        load(f"{tmp_path}/mine.py:bad")
    assert load("choice").name == "choice"


def test_the_reward_of_the_readme_accepts_the_row_of_the_readme(tmp_path: Path) -> None:
    """The code and the row are read out of README.md; gold gets full marks, anything else nothing."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = re.search(r"( {4}from gpg_vl\.answers\.extract.*?)\n\n[^ ]", readme, re.DOTALL)
    row = re.search(r'    (\{"id": "7".*\})', readme)
    assert code
    assert row
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(code[1]))
    fields = json.loads(row[1])
    example = Example(
        id=fields["id"],
        prompt=fields["prompt"],
        answer=fields["answer"],
        choices=tuple(fields["choices"]),
    )
    reward = load(f"{tmp_path / 'my_rewards.py'}:exact")
    assert call(reward, gold_completion(example), example) == [1.0]
    wrong = replace(gold_completion(example), text="<answer>(A)</answer>")
    assert call(reward, wrong, example) == [0.0]
