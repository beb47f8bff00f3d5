"""The order of the rows: permutations of one set, turns of several, and a list that is followed as it is."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.data.joined import Joined
from gpg_vl.data.order import Interleaved, Listed, Shuffled, Turns
from gpg_vl.data.order_file import read_order
from gpg_vl.errors import UserError
from gpg_vl.types import Example

fixed = settings(max_examples=60, deadline=None, derandomize=True)
weights = st.one_of(
    st.integers(1, 40), st.decimals(min_value="0.01", max_value="5", places=2).map(float)
)


def examples(*ids: str) -> list[Example]:
    return [Example(id=one, prompt=f"question {one}", answer="a") for one in ids]


# ---- one set


@given(size=st.integers(1, 60), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 3))
@fixed
def test_a_set_alone_is_drawn_as_numpy_permutes_it(size: int, seed: int, epoch: int) -> None:
    order = Shuffled(rows=range(size), seed=seed)
    drawn = [order.row_at(epoch * size + place) for place in range(size)]
    assert drawn == np.random.default_rng((seed, epoch)).permutation(size).tolist()


def test_sets_of_one_size_have_permutations_of_their_own() -> None:
    orders = [Shuffled(rows=range(40), seed=3, number=number) for number in range(3)]
    drawn = {tuple(order.row_at(place) for place in range(40)) for order in orders}
    assert len(drawn) == 3
    assert all(sorted(one) == list(range(40)) for one in drawn)


def test_some_rows_of_a_set_may_be_drawn_alone() -> None:
    order = Shuffled(rows=[2, 5, 11], seed=0)
    assert sorted(order.row_at(place) for place in range(3, 6)) == [2, 5, 11]


# ---- turns


@given(given_weights=st.lists(weights, min_size=1, max_size=6))
@fixed
def test_after_any_number_of_turns_each_has_its_share_to_less_than_one(
    given_weights: list[float],
) -> None:
    turns = Turns(given_weights)
    exact = [Fraction(str(weight)) for weight in given_weights]
    shares = [weight / sum(exact) for weight in exact]
    had = [0] * len(shares)
    lead: list[list[Fraction]] = [[Fraction(0)] for _ in shares]
    for number in range(1, 401):
        which, before = turns.at(number - 1)
        assert before == had[which]
        had[which] += 1
        for one, share in enumerate(shares):
            lead[one].append(had[one] - number * share)
            assert abs(lead[one][-1]) < 1, (number, one)

    # how far any window is off is the most that a lead can change
    widest = max(max(one) - min(one) for one in lead)
    assert widest <= 1 if len(shares) == 2 else widest < 2


@given(given_weights=st.lists(weights, min_size=2, max_size=4), seed=st.integers(0, 99))
@fixed
def test_a_turn_depends_on_its_position_alone(given_weights: list[float], seed: int) -> None:
    """Whatever was asked before: the turns of several blocks, by chance, and each by an object that knows nothing yet."""
    one = Turns(given_weights)
    in_order = [one.at(position) for position in range(2500)]
    other = Turns(given_weights)
    for position in np.random.default_rng(seed).integers(0, 2500, 40).tolist():
        assert other.at(position) == in_order[position]
    assert Turns(given_weights).at(2499) == in_order[2499]


def test_turns_repeat_and_are_worked_out_for_no_more_than_one_cycle() -> None:
    turns = Turns([0.7, 0.3])
    first = [turns.at(position) for position in range(10)]
    assert [which for which, _ in first] == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0], (
        "due at 0.7, 2.1, 3.6, 5, 6.4, 7.9, 9.3 and at 1.7, 5, 8.3; of a tie the first"
    )
    far = 10**15
    assert [turns.at(far + place) for place in range(10)] == [
        (which, far // 10 * (7, 3)[which] + before) for which, before in first
    ]


def test_shares_are_of_all_turns() -> None:
    assert Turns([3, 1]).shares == (0.75, 0.25)
    assert Counter(Turns([3, 1]).at(place)[0] for place in range(100)) == {0: 75, 1: 25}


def test_sets_in_turns_go_through_epochs_of_their_own() -> None:
    first, second = range(5), range(5, 8)
    order = Interleaved(
        orders=[
            Shuffled(rows=rows, seed=9, number=number)
            for number, rows in enumerate((first, second))
        ],
        turns=Turns([5, 3]),
    )
    drawn = [order.row_at(position) for position in range(16)]
    for rows in (first, second):
        own = [row for row in drawn if row in rows]
        assert sorted(own[: len(rows)]) == sorted(own[len(rows) :]) == list(rows)
    assert [row for row in drawn if row in first] == [
        Shuffled(rows=first, seed=9).row_at(place) for place in range(10)
    ], "the first set is drawn in the order that it has alone"


# ---- several sets as one


def test_joined_sets_are_numbered_through_and_their_rows_name_them() -> None:
    joined = Joined({"a": examples("0", "1"), "b": examples("0", "1", "2")})
    assert [(one.source, one.id) for one in joined] == [
        ("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("b", "2"),
    ]  # fmt: skip
    assert list(joined) == [joined[number] for number in range(5)] == joined[0:5]
    assert joined[-1] == joined[4]
    assert joined.ranges == [range(2), range(2, 5)]
    with pytest.raises(IndexError):
        joined[5]


# ---- a list


def written(folder: Path, content: object) -> Path:
    text = isinstance(content, str)
    file = folder / ("order.txt" if text else "order.json")
    file.write_text(content if text else json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("c\na\n", [2, 0]),
        ("b\r\n\n c \n", None),
        ("ä x\nb", [3, 1]),
        (["c", "a"], [2, 0]),
        ([2, 0, 1], [2, 0, 1]),
        ("7", [4]),
        ([4], [4]),
        (["7"], [4]),
    ],
)
def test_a_list_of_rows_is_read_as_ids_or_as_numbers(
    tmp_path: Path, content: object, expected: list[int] | None
) -> None:
    data = examples("a", "b", "c", "ä x", "7")
    if expected is None:
        with pytest.raises(UserError, match="does not have: ' c '"):
            read_order(written(tmp_path, content), data)
        return
    assert read_order(written(tmp_path, content), data).tolist() == expected


@given(chosen=st.permutations(range(12)), rows=st.integers(1, 12))
@fixed
def test_a_list_is_followed_as_it_is_epoch_after_epoch(chosen: list[int], rows: int) -> None:
    order = Listed(rows=chosen[:rows])
    assert [order.row_at(place) for place in range(2 * rows)] == 2 * chosen[:rows]


def test_ids_of_several_sets_have_their_source_in_front(tmp_path: Path) -> None:
    joined = Joined({"a": examples("0", "x/y"), "b": examples("0")})
    assert read_order(written(tmp_path, "b/0\na/x/y"), joined).tolist() == [2, 1]
    with pytest.raises(UserError, match=r"does not have: '0'.* Each is SOURCE/ID"):
        read_order(written(tmp_path, "0\n"), joined)
    with pytest.raises(UserError, match=r"each with a row 0.* Write SOURCE/ID"):
        read_order(written(tmp_path, [0]), joined)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no row"),
        ([], "lists no row"),
        ("a\nbb\nc", r"1 id\(s\) that the data does not have: 'bb'. .* Did you mean 'b'\?"),
        ("q\n" * 7, r"7 id\(s\) .*: 'q', 'q', 'q', 'q', 'q' and 2 more"),
        ("a\nb\na", r"1 row\(s\) twice: 'a' \(entries 1 and 3\).* Take the repetitions out"),
        ([0, 0], r"twice: 0 \(entries 1 and 2\)"),
        ([3], r"1 row number\(s\) that there are not: 3. The data has the rows 0 to 2"),
        ([-1], "that there are not: -1"),
        ([0, "b"], "which holds int, str. A list of ids"),
        ([True], "which holds bool"),
        ({"a": 1}, "which holds dict"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_order(written(tmp_path, content), examples("a", "b", "c"))


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which cannot be read: .*No such file"):
        read_order(tmp_path / "nowhere.txt", examples("a"))
    (tmp_path / "torn.json").write_text("[1, ")
    with pytest.raises(UserError, match="which is not JSON"):
        read_order(tmp_path / "torn.json", examples("a"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read: 'utf-8' codec"):
        read_order(tmp_path / "binary.txt", examples("a"))
