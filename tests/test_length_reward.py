"""The soft penalty for long answers, as DAPO's equation 13 has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.errors import UserError
from gpg_vl.rewards.length import length, overlong_penalty, soft_overlong
from gpg_vl.rewards.scoring import Reward, call, load
from gpg_vl.types import Completion, Example


def completion(tokens, reason="stop"):
    return Completion(
        token_ids=(1,) * tokens, logprobs=(0.0,) * tokens, text="x" * 9, finish_reason=reason
    )


def example(**meta):
    return Example(id="7", prompt="?", answer="x", meta=meta)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (79, 0.0),
        (80, 0.0),
        (81, -0.05),
        (90, -0.5),
        (99, -0.95),
        (100, -1.0),
        (101, -1.0),
        (5000, -1.0),
    ],
)
def test_by_hand(tokens, expected):
    assert overlong_penalty(tokens, limit=100, cache=20) == pytest.approx(expected)
    assert length(completion(tokens), example(length_limit=100, length_cache=20)) == pytest.approx(
        expected
    )
    assert soft_overlong(limit=100, cache=20)(completion(tokens), example()) == pytest.approx(
        expected
    )


def test_the_setting_of_the_paper():
    """L_max 20480 with a cache of 4096: no penalty up to 16384."""
    assert overlong_penalty(16384, limit=20480, cache=4096) == 0.0
    assert overlong_penalty(18432, limit=20480, cache=4096) == -0.5
    assert overlong_penalty(20480, limit=20480, cache=4096) == -1.0


@given(st.integers(0, 3000), st.integers(1, 1000), st.integers(0, 1000))
def test_bounds_and_order(tokens, cache, more):
    value = overlong_penalty(tokens, limit=cache + more, cache=cache)
    assert -1.0 <= value <= 0.0
    assert overlong_penalty(tokens + 1, limit=cache + more, cache=cache) <= value


def test_its_range_is_declared():
    assert (load("length").low, load("length").high) == (-1.0, 0.0)
    brief = soft_overlong(limit=100, cache=20)
    reward = Reward(name="my.py:brief", function=brief, batched=False, low=-1.0, high=0.0)
    assert brief.declared_range == (-1.0, 0.0)
    assert call(reward, completion(90), example()) == [-0.5]


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"length_limit": 100},
        {"length_cache": 20},
        {"length_limit": 100, "length_cache": 0},
        {"length_limit": 100, "length_cache": 101},
        {"length_limit": "100", "length_cache": 20},
        {"length_limit": 100.0, "length_cache": 20},
        {"length_limit": True, "length_cache": True},
    ],
)
def test_missing_limits_are_explained(meta):
    with pytest.raises(
        UserError, match=r"example '7'.*`length_limit` and `length_cache`.*soft_overlong"
    ):
        length(completion(1), example(**meta))


def test_a_wrong_limit_is_refused_where_it_is_written():
    with pytest.raises(UserError, match="limit 10 and the cache 20 in soft_overlong"):
        soft_overlong(limit=10, cache=20)


def test_the_explanation():
    told = length.explain(completion(90, "length"), example(length_limit=100, length_cache=20))
    assert (told.parsed, told.gold, told.note) == ("90 tokens", "up to 80 tokens", "cut off")
