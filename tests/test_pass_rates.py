"""Pass rates: an estimate that is right on average, a histogram that can be counted, bounds that hold."""

import json
from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.data.pass_rates import (
    RowRate,
    choose_rows,
    parse_rate,
    share_with_signal,
    summarise,
)


def rate(number: int, right: int, samples: int = 4) -> RowRate:
    rewards = (1.0,) * right + (0.0,) * (samples - right)
    parts = {"choice": right / samples}
    return RowRate(
        number=number, id=f"r{number}", digest="ab", right=right, rewards=rewards, parts=parts
    )


# ---- the share of groups with signal


@pytest.mark.parametrize(
    ("rewards", "group_size", "expected"),
    [
        ((1.0, 1.0, 0.0, 0.0), 2, 4 / 6),  # of six pairs two are equal
        ((1.0, 0.0, 0.0, 0.0), 3, 3 / 4),  # of four triples one is without the right answer
        ((1.0, 0.5, 0.0, 0.0), 2, 5 / 6),  # rewards in between: one pair of six is equal
        ((1.0, 0.0, 0.0, 0.0), 4, 1.0),  # the one group there is
        ((1.0, 1.0, 1.0, 1.0), 2, 0.0),
        ((0.0, 0.0, 0.0, 0.0), 4, 0.0),
        ((1.0, 0.0), 8, 1.0),  # fewer answers than a group: the share of groups of two
    ],
)
def test_the_share_of_groups_with_signal_by_hand(
    rewards: tuple[float, ...], group_size: int, expected: float
) -> None:
    assert share_with_signal(rewards, group_size) == pytest.approx(expected, abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=2, max_size=8),
    group_size=st.integers(2, 8),
)
def test_it_is_the_share_of_all_groups_that_the_answers_can_form(
    rewards: list[float], group_size: int
) -> None:
    """By counting every group there is."""
    groups = list(combinations(rewards, min(group_size, len(rewards))))
    mixed = sum(len(set(group)) > 1 for group in groups)
    assert share_with_signal(rewards, group_size) == pytest.approx(mixed / len(groups))


@settings(max_examples=60, deadline=None)
@given(
    chance=st.integers(0, 20),
    group_size=st.integers(2, 8),
    more=st.integers(0, 6),
)
def test_it_is_right_on_average(chance: int, group_size: int, more: int) -> None:
    """Over everything that k answers can come to, exactly: 1 - p^G - (1-p)^G. The plug-in estimate is not."""
    p, k = Fraction(chance, 20), group_size + more
    expected = 1 - p**group_size - (1 - p) ** group_size
    average = Fraction(0)
    for right in range(k + 1):
        found = share_with_signal([1.0] * right + [0.0] * (k - right), group_size)
        average += comb(k, right) * p**right * (1 - p) ** (k - right) * Fraction(found)
    assert float(average) == pytest.approx(float(expected), abs=1e-12)


def test_fewer_answers_than_a_group_give_a_lower_bound_on_average() -> None:
    """p = 1/4, two answers, groups of 8: 2 * 1/4 * 3/4 = 0.375 is below 1 - 0.25^8 - 0.75^8 = 0.8999."""
    shares = [share_with_signal(rewards, 8) for rewards in ([0.0, 0.0], [1.0, 0.0], [1.0, 1.0])]
    average = 9 / 16 * shares[0] + 6 / 16 * shares[1] + 1 / 16 * shares[2]
    assert average == 0.375 < 1 - 0.25**8 - 0.75**8


# ---- a set of rows


def test_rows_are_counted() -> None:
    """0/4, 1/4, 2/4, 2/4 and 4/4: of pairs 0, 3/6, 4/6, 4/6 and 0 carry a signal."""
    found = summarise([rate(n, right) for n, right in enumerate([0, 1, 2, 2, 4])], group_size=2)
    assert found.bins == (1, 0, 1, 0, 0, 2, 0, 0, 0, 1)
    assert (found.rows, found.never, found.always) == (5, 1, 1)
    assert found.mean == pytest.approx(9 / 20)
    assert found.signal == pytest.approx((3 / 6 + 4 / 6 + 4 / 6) / 5)


def test_a_rate_on_the_edge_of_a_bin_is_in_the_upper_one() -> None:
    """3/10 is 0.3, whatever 0.3 is in binary."""
    assert summarise([rate(0, 3, samples=10)], group_size=2).bins[3] == 1


@pytest.mark.parametrize(
    ("low", "high", "numbers", "below", "above"),
    [
        (0.0, 1.0, (0, 1, 2, 3, 4), 0, 0),
        (0.05, 0.95, (1, 2, 3), 1, 1),
        (0.25, 0.5, (1, 2), 1, 2),  # both bounds are included
        (0.26, 0.49, (), 2, 3),
    ],
)
def test_bounds_include_their_ends(
    low: float, high: float, numbers: tuple[int, ...], below: int, above: int
) -> None:
    rates = [rate(number, number) for number in (4, 2, 0, 1, 3)]
    assert choose_rows(rates, low, high) == (numbers, below, above)


def test_one_of_twenty_is_within_a_twentieth() -> None:
    assert choose_rows([rate(0, 1, samples=20)], 0.05, 0.95).numbers == (0,)


# ---- a record


def test_what_is_written_is_read() -> None:
    record = json.loads(json.dumps(rate(3, 1).to_json()))
    assert parse_rate(record, rows=4, samples=4) == rate(3, 1)
    assert (record["pass_rate"], record["reward"], record["samples"]) == (0.25, 0.25, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 4},
        {"number": True},
        {"number": None},
        {"right": 5},
        {"rewards": [1.0, 0.0]},
        {"rewards": [1.0, 0.0, "0", 0.0]},
        {"parts": {"choice": None}},
        {"parts": []},
        {"id": 7},
        {"digest": None},
    ],
)
def test_what_is_no_record_is_none(change: dict[str, object]) -> None:
    assert parse_rate(rate(3, 1).to_json() | change, rows=4, samples=4) is None


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_json_is_a_record_or_none(value: object) -> None:
    assert parse_rate(value, rows=4, samples=4) is None
