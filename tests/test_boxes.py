"""Boxes: IoU by hand, matching against scipy, frames there and back."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from gpg_vl.answers.math.rectangles import (
    COORDINATES,
    Box,
    Frame,
    best_matching,
    convert,
    generalized_iou,
    hits,
    iou,
)

UNIT = Box(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("one", "other", "overlap", "generalized"),
    [
        (UNIT, UNIT, 1.0, 1.0),
        (UNIT, Box(0, 0, 10, 5), 0.5, 0.5),  # inside: the enclosing box is the larger one
        (UNIT, Box(5, 0, 15, 10), 1 / 3, 1 / 3),  # 50 of 150, and the enclosing box is full
        (UNIT, Box(5, 5, 15, 15), 25 / 175, 25 / 175 - 50 / 225),
        (UNIT, Box(10, 0, 20, 10), 0.0, 0.0),  # touching
        (UNIT, Box(20, 0, 30, 10), 0.0, -100 / 300),  # a gap of 10: 300 enclosed, 200 covered
        (Box(100, 200, 300, 400), Box(110, 200, 300, 400), 0.95, 0.95),
        (Box(100, 200, 300, 400), Box(600, 600, 700, 700), 0.0, -(300_000 - 50_000) / 300_000),
        (UNIT, Box(10, 10, 0, 0), 0.0, -1.0),  # inverted
        (UNIT, Box(5, 5, 5, 9), 0.0, -1.0),  # flat
        (Box(3, 3, 3, 3), Box(3, 3, 3, 3), 0.0, -1.0),
        (Box(10, 10, 0, 0), Box(10, 10, 0, 0), 0.0, -1.0),
    ],
)
def test_by_hand(one, other, overlap, generalized):
    for a, b in ((one, other), (other, one)):
        assert iou(a, b) == pytest.approx(overlap, abs=1e-12)
        assert generalized_iou(a, b) == pytest.approx(generalized, abs=1e-12)


def test_a_hit_is_an_iou_of_at_least_the_threshold():
    assert hits(UNIT, Box(0, 0, 10, 5))
    assert not hits(UNIT, Box(0, 0, 10, 4.999))
    assert hits(UNIT, Box(0, 0, 10, 7), 0.7)
    assert not hits(UNIT, Box(0, 0, 10, 7), 0.9)


numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
boxes = st.builds(Box, numbers, numbers, numbers, numbers)


@given(boxes, boxes)
def test_bounds_symmetry_and_order(one, other):
    assert 0.0 <= iou(one, other) <= 1.0 + 1e-12
    assert -1.0 <= generalized_iou(one, other) <= iou(one, other) + 1e-12
    assert iou(one, other) == pytest.approx(iou(other, one))
    assert iou(one, one) == (1.0 if one.area > 0 else 0.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(1, 8)),
        min_size=2,
        max_size=2,
    )
)
def test_iou_counts_cells(corners):
    one, other = (Box(x, y, x + w, y + h) for x, y, w, h in corners)
    cells = [
        {(x, y) for x in range(int(b.x1), int(b.x2)) for y in range(int(b.y1), int(b.y2))}
        for b in (one, other)
    ]
    assert iou(one, other) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


# --- matching


def total(gain, pairs):
    return sum(gain[row][column] for row, column in pairs)


gains = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(
        st.lists(
            st.sampled_from([0.0, 0.0, 0.5, 0.6, 0.7, 1.0]) | st.floats(0, 1),
            min_size=shape[1],
            max_size=shape[1],
        ),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(gains)
def test_the_matching_is_the_best_one(gain):
    pairs = best_matching(gain)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(gain[row][column] > 0 for row, column in pairs)
    table = np.array(gain)
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert total(gain, pairs) == pytest.approx(best, abs=1e-9)


def test_greedy_matching_would_be_worse():
    assert best_matching([[0.9, 0.8], [0.85, 0.0]]) == [
        (0, 1),
        (1, 0),
    ]  # greedily 0.9, now 0.8 + 0.85


def test_nothing_to_match():
    assert best_matching([]) == []
    assert best_matching([[]]) == []
    assert best_matching([[0.0, 0.0]]) == []


# --- frames


def test_a_frame_holds_what_lies_inside_with_its_corners_in_order():
    frame = Frame("rel1000", 1000, 1000)
    assert frame.holds(Box(0, 0, 1000, 1000))
    assert frame.holds(Box(1, 2, 3, 4))
    for box in (
        Box(-1, 0, 5, 5),
        Box(0, -0.1, 5, 5),
        Box(0, 0, 1000.1, 5),
        Box(0, 0, 5, 1001),
        Box(5, 0, 5, 5),
        Box(0, 9, 5, 5),
        Box(math.nan, 0, 5, 5),
        Box(0, 0, math.inf, 5),
    ):
        assert not frame.holds(box)


def test_a_known_box_in_every_frame():
    """An image of 640 x 480, seen by the model at 644 x 476 (multiples of 28)."""
    frames = {
        "rel1": (Frame("rel1", 1, 1), Box(0.25, 0.5, 0.5, 1.0)),
        "rel1000": (Frame("rel1000", 1000, 1000), Box(250, 500, 500, 1000)),
        "abs_orig": (Frame("abs_orig", 640, 480), Box(160, 240, 320, 480)),
        "abs_resized": (Frame("abs_resized", 644, 476), Box(161, 238, 322, 476)),
    }
    assert set(frames) == set(COORDINATES)
    for source, box in frames.values():
        for target, expected in frames.values():
            assert convert(box, source, target) == pytest.approx(expected)


def test_a_wrong_convention_is_no_slight_error():
    """Why it is never guessed: a perfect box of thousandths, taken for pixels of a large image, misses."""
    gold = Box(700, 700, 900, 900)
    taken = convert(gold, Frame("abs_orig", 4000, 4000), Frame("rel1000", 1000, 1000))
    assert iou(gold, taken) == 0.0
