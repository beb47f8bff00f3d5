"""Several boxes with confidences, scored by hand and against the order of what is better."""

import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpg_vl.answers.box import Detection
from gpg_vl.answers.boxes import detection_score, gold_boxes, match_boxes, read_detections
from gpg_vl.answers.math.rectangles import Box, Frame
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import detection
from gpg_vl.types import Completion, Example

FRAME = Frame("rel1000", 1000, 1000)
A, B = Box(0, 0, 100, 100), Box(500, 500, 600, 600)
HALF_A = Box(0, 0, 100, 50)  # IoU 0.5 with A
AWAY = Box(800, 0, 900, 100)


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer):
    return Example(id="7", prompt="Find them", answer=answer, meta={"coordinates": "rel1000"})


@pytest.mark.parametrize(
    ("found", "gold", "expected"),
    [
        ([(A, 1), (B, 1)], [A, B], 1.0),
        ([(B, 1), (A, 1)], [A, B], 1.0),
        ([(A, 1)], [A, B], 0.5),  # one missed
        ([(A, 1), (B, 1), (AWAY, 1)], [A, B], 2 / 3),  # one too many, sure of it
        ([(A, 1), (B, 1), (AWAY, 0.5)], [A, B], 2 / 2.5),  # one too many, half sure
        ([(A, 1), (B, 1), (AWAY, 0)], [A, B], 1.0),  # one too many that it does not believe in
        ([(A, 0.5), (B, 1)], [A, B], 0.75),
        ([(HALF_A, 1)], [A], 0.5),
        ([(Box(0, 0, 100, 49), 1)], [A], 0.0),  # IoU 0.49: no match, 0 / (1 + 1)
        ([(AWAY, 1)], [A], 0.0),
        ([(AWAY, 0)], [A], 0.0),
        ([], [A], 0.0),
        ([], [], 1.0),
        ([(A, 1)], [], 0.0),
        ([(A, 0)], [], 0.0),
        ([(A, 1), (HALF_A, 1)], [A], 0.5),  # a second box on the same object is one too many
    ],
)
def test_by_hand(found, gold, expected):
    assert detection_score([Detection(*one) for one in found], gold) == pytest.approx(expected)


def test_the_matching_is_optimal_not_greedy():
    """The box that fits the first gold best is needed for the second one."""
    gold = [Box(0, 0, 100, 100), Box(0, 30, 100, 130)]
    between, above = Detection(Box(0, 10, 100, 110)), Detection(Box(0, -0.0, 100, 75))
    pairs = dict(match_boxes([between, above], gold))
    assert pairs == {0: 1, 1: 0}


def test_nothing_is_gained_by_junk_that_is_not_believed():
    """The published confidence reward, the mean of c or 1 - c, gives full marks for junk with confidence 0."""
    assert detection_score([Detection(AWAY, 0.0)] * 1, [A]) == 0.0
    assert detection_score([Detection(A, 1.0), Detection(AWAY, 0.0)], [A]) == 1.0


def test_of_two_boxes_on_one_object_the_one_that_is_believed_is_matched():
    close = Box(0, 0, 100, 80)  # IoU 0.8 with A
    found = [Detection(A, 0.0), Detection(close, 1.0)]
    assert match_boxes(found, [A]) == [(1, 0)]
    assert detection_score(found, [A]) == pytest.approx(0.8)


def test_a_duplicate_counts_once_with_its_greatest_confidence():
    found = read_detections(
        "[{'Position': [0,0,100,100], 'Confidence': 0.2}, [0,0,100,100]]", FRAME
    )
    assert found == [Detection(A, 1.0)]


@pytest.mark.parametrize(
    "text", ["[[0,0,100,100],[5,5,1,1]]", "[[0,0,100,1001]]", "cups", "", "[[0,0,100]]"]
)
def test_what_cannot_be_read_scores_0(text):
    assert read_detections(text, FRAME) is None
    assert detection(completion(f"<answer>{text}</answer>"), example("[[0,0,100,100]]")) == 0.0


coordinates = st.integers(0, 9)
boxes = st.builds(
    lambda x, y, w, h: Box(
        x * 100, y * 100, (x + 1 + w % (10 - x)) * 100, (y + 1 + h % (10 - y)) * 100
    ),
    *(coordinates,) * 4,
)
detections = st.builds(Detection, boxes, st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(st.lists(detections, max_size=5), st.lists(boxes, max_size=4, unique=True))
def test_bounds_and_order(found, gold):
    score = detection_score(found, gold)
    assert 0.0 <= score <= 1.0
    assert detection_score(list(reversed(found)), gold) == pytest.approx(score)
    assert detection_score([Detection(box) for box in gold], gold) == pytest.approx(1.0)


@given(
    st.lists(detections, max_size=4), st.lists(boxes, min_size=1, max_size=4, unique=True), boxes
)
def test_a_box_that_matches_nothing_never_helps(found, gold, extra):
    assume(not match_boxes([Detection(extra)], gold))
    assert detection_score([*found, Detection(extra)], gold) <= detection_score(found, gold) + 1e-12


@pytest.mark.parametrize("nothing", ["No Objects", "[]"])
def test_right_that_there_is_nothing(nothing):
    assert detection(completion(f"<answer>{nothing}</answer>"), example("No Objects")) == 1.0
    assert detection(completion("<answer>[[0,0,100,100]]</answer>"), example("No Objects")) == 0.0
    assert detection(completion(f"<answer>{nothing}</answer>"), example("[[0,0,100,100]]")) == 0.0
    assert detection(completion("<answer></answer>"), example("No Objects")) == 0.0
    assert detection(completion(""), example("No Objects")) == 0.0


def test_the_published_format():
    one, other = (
        "{'Position': [0, 0, 100, 100], 'Confidence': 1.0}",
        "{'Position': [500, 500, 600, 600], 'Confidence': 1}",
    )
    gold = f"<answer>[{one}, {other}]</answer>"
    assert gold_boxes(example(gold)) == [A, B]
    answer = (
        "<think>two</think>\n<answer>[{'Position': [0, 0, 100, 50], 'Confidence': 0.80}]</answer>"
    )
    assert detection(completion(answer), example(gold)) == pytest.approx(0.8 * 0.5 / 2)


def test_gold_that_cannot_be_read_is_refused_by_example():
    with pytest.raises(UserError, match="of example '7' is no list of boxes in rel1000"):
        gold_boxes(example("two cups"))


def test_the_explanation():
    told = detection.explain(completion("<answer>[[0,0,100,100]]</answer>"), example("No Objects"))
    assert (told.parsed, told.gold) == ("(0,0),(100,100) 1", "no objects")


@pytest.mark.parametrize(
    "label",
    [r"a\d", r"50\% off", r"\400"],  # each is a slip of which Python warns
)
@pytest.mark.parametrize("shown", ["always", "ignore", "error"])
def test_a_label_with_a_stray_backslash_is_read_alike_however_warnings_are_treated(label, shown):
    text = "[{'Position': (0, 0, 100, 100), 'label': '" + label + "'}]"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(shown)
        assert read_detections(text, FRAME) == [Detection(A, 1.0)]
    assert seen == []


def test_a_box_under_any_of_its_keys_is_read_outside_of_json_too():
    assert read_detections("box_2d: [0, 0, 100, 100]", FRAME) == [Detection(A, 1.0)]
    assert read_detections("bbox_2d: [0, 0, 100, 100]", FRAME) == [Detection(A, 1.0)]
