"""The one box of an answer: how it is read, in which coordinates, and what the three rewards make of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.box import (
    MAX_BOXES,
    Detection,
    format_box,
    frame_of,
    gold_box,
    parse_boxes,
    parse_detections,
    read_box,
)
from gpg_vl.answers.math.rectangles import Box, Frame
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import grounding, grounding_giou, grounding_hit
from gpg_vl.types import Completion, Example

REL = {"coordinates": "rel1000"}
GOLD = "(100,200),(300,400)"
BOX = Box(100, 200, 300, 400)


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer=GOLD, meta=REL):
    return Example(id="7", prompt="Where?", answer=answer, meta=meta)


ONE = [
    "(100,200),(300,400)",
    " ( 100 , 200 ) , ( 300 , 400 ) ",
    "(100,200)(300,400)",
    "(100,200)\n(300,400)",
    "(100,200),(300,400))",  # the stray parenthesis of a well-known prompt
    "(100.0,200.0),(300.0,400.0)",
    "(100,200,300,400)",
    "[100,200,300,400]",
    "[100, 200, 300, 400]",
    "[[100, 200, 300, 400]]",
    "The cup is at (100,200),(300,400).",
    "The cup without a handle is at (100,200),(300,400).",
    "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
    '{"bbox_2d": [100, 200, 300, 400], "label": "cup"}',
    '[{"bbox_2d": [100, 200, 300, 400], "label": "cup 2"}]',
    "[{'bbox_2d': [100, 200, 300, 400], 'label': 'cup'}]",
    "{'Position': [100, 200, 300, 400], 'Confidence': 0.5}",
    '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "cup"}]\n```',
    'Here it is:\n```json\n{"bbox_2d": [100, 200, 300, 400]}\n```',
    'It is {"bbox_2d": [100, 200, 300, 400]}',
    "100,200,300,400",
    "x1=100, y1=200, x2=300, y2=400",
    "100 200 300 400",
    "[[100,200],[300,400]]",
    "<|object_ref_start|>cup 3<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
    "<bbox>100, 200, 300, 400</bbox>",
    "Top left: (100, 200); bottom right: (300, 400)".replace(";", ","),
    '{"x1": 100, "y1": 200, "x2": 300, "y2": 400}',
    '{"objects": [{"name": "cup", "bbox_2d": [100, 200, 300, 400]}]}',
    '{"bounding_box": [100, 200, 300, 400]}',
    '[{"bbox_2d": [100, 200, 300, 400], "label": "cup #3"},]',
    "[100, 200, 300, 400] (confidence 0.9)",
    "（100，200），（300，400）",
]


@pytest.mark.parametrize("text", ONE)
def test_a_box_is_read_in_every_declared_spelling(text):
    assert parse_boxes(text) == [BOX]
    assert grounding(completion(f"<answer>{text}</answer>"), example()) == 1.0


NONE = [
    "",
    "cup",
    "(100,200)",
    "(100,200),(300)",
    "(100,200),(300,400,500)",
    "[100,200,300]",
    "[100,200,300,400,500]",
    "((100,200),300,400)",
    "{100,200,300,400}",
    "(1e2,200),(300,400)",
    "(１００,200),(300,400)",
    "(100,200),(300,400\u200b)",
    "3 cups: (100,200),(300,400)",  # a number that belongs to no box
    "(100,200),(300,400) of 640",
    "It is not (100,200),(300,400)",
    "It isn't [100,200,300,400].",
    "(99999999999,200),(300,400)",
    '{"bbox_2d": [100, 200, 300]}',
    '{"bbox_2d": "100,200,300,400"}',
    '{"bbox_2d": [100, 200, 300, true]}',
    '{"bbox_2d": [100, 200, 300, NaN]}',
    '{"bbox_2d": [100, 200, 300, Infinity]}',
    '{"bbox_2d": [100, 200, 300, 1e999]}',
    '{"bbox_2d": [100, 200, 300, ' + "9" * 5000 + "]}",
    '{"bbox_2d": [1, 2, 3, 4], "bbox": [100, 200, 300, 400]}',
    '{"label": "(100,200),(300,400)"}',
    '[{"bbox_2d": [100, 200, 300, 400]}, {"label": "cup"}]',
    '[{"bbox_2d": [100, 200, 300, 400]}, 7]',
    "[{'Position': [100, 200, 300, 400], 'Confidence': 2}]",
    "[{'Position': [100, 200, 300, 400], 'Confidence': 'high'}]",
    "[{'Position': [100, 200, 300, 400], 'Confidence': null}]",
    "[[[[[[[[[100, 200, 300, 400]]]]]]]]]",
]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_box_is_not_read(text):
    assert not parse_boxes(text)
    assert grounding(completion(f"<answer>{text}</answer>"), example()) == 0.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("(100,200),(300,400)\n(500,500),(600,600)", 2),
        ("[100,200,300,400], [1,2,3,4], [5,6,7,8]", 3),
        ("[[100,200,300,400],[1,2,3,4]]", 2),
        ("(100,200),(300,400) (100,200),(300,401)", 2),
        ("No Objects", 0),
        ("[]", 0),
    ],
)
def test_more_or_less_than_one_box_is_no_answer(text, count):
    assert len(parse_boxes(text)) == count
    assert read_box(text, Frame("rel1000", 1000, 1000)).box is None
    for reward in (grounding, grounding_hit, grounding_giou):
        assert reward(completion(f"<answer>{text}</answer>"), example()) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "(300,400),(100,200)",  # inverted: generalised IoU with swapped corners would call it perfect
        "(300,200),(100,400)",
        "(100,400),(300,200)",
        "(100,200),(100,400)",  # flat
        "(100,200),(100,200)",
        "(100,200),(9000,9000)",
        "(-5,200),(300,400)",
        "(0,0),(1000,1000.5)",
    ],
)
def test_a_box_that_is_inverted_flat_or_outside_scores_0(text):
    assert len(parse_boxes(text)) == 1
    for reward in (grounding, grounding_hit, grounding_giou):
        assert reward(completion(f"<answer>{text}</answer>"), example()) == 0.0


@pytest.mark.parametrize(
    ("text", "overlap", "hit", "giou"),
    [
        (GOLD, 1.0, 1.0, 1.0),
        ("(110,200),(300,400)", 0.95, 1.0, 0.975),
        ("(100,200),(300,300)", 0.5, 1.0, 0.75),
        ("(100,200),(300,299)", 0.495, 0.0, 0.7475),
        (
            "(600,600),(700,700)",
            0.0,
            0.0,
            1 / 12,
        ),  # generalised IoU -5/6: published as 0.1667 = 1 - 5/6
        ("(0,0),(1000,1000)", 0.04, 0.0, 0.52),
    ],
)
def test_values_by_hand(text, overlap, hit, giou):
    given = completion(f"<think>(1,1),(2,2)</think><answer>{text}</answer>")
    assert grounding(given, example()) == pytest.approx(overlap)
    assert grounding_hit(given, example()) == hit
    assert grounding_giou(given, example()) == pytest.approx(giou)


# --- coordinates


def test_the_same_numbers_mean_another_box_in_another_frame():
    """An answer in pixels is compared in pixels: nothing is guessed from how large the numbers are."""
    pixels = {"coordinates": "abs_orig", "image_size": [640, 480]}
    assert grounding(completion("(100,200),(300,400)"), example(meta=pixels)) == 1.0
    assert (
        grounding(completion("(100,200),(650,400)"), example(meta=pixels)) == 0.0
    )  # outside of 640
    assert grounding(completion("(100,200),(650,400)"), example(meta=REL)) == pytest.approx(
        40_000 / 110_000
    )
    fractions = {"coordinates": "rel1"}
    assert (
        grounding(completion("[0.1,0.2,0.3,0.4]"), example("[0.1,0.2,0.3,0.4]", fractions)) == 1.0
    )
    assert (
        grounding(completion("[100,200,300,400]"), example("[0.1,0.2,0.3,0.4]", fractions)) == 0.0
    )


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, r"coordinates None.*column `coordinates`.*rel1000, rel1, abs_resized, abs_orig"),
        ({"coordinates": "pixels"}, r"coordinates 'pixels'.*`gpg_vl.eval` knows"),
        (
            {"coordinates": "abs_orig"},
            r"image_size None.*column `image_size` with \[width, height\]",
        ),
        ({"coordinates": "abs_resized"}, r"input_size None.*after the resizing"),
        ({"coordinates": "abs_resized", "image_size": [640, 480]}, r"input_size None"),
        ({"coordinates": "abs_orig", "image_size": [640]}, r"image_size \[640\]"),
        ({"coordinates": "abs_orig", "image_size": [0, 480]}, r"image_size \[0, 480\]"),
        ({"coordinates": "abs_orig", "image_size": "640x480"}, r"image_size '640x480'"),
    ],
)
def test_missing_coordinates_are_explained(meta, said):
    with pytest.raises(UserError, match=f"Example '7' has.*{said}"):
        frame_of(example(meta=meta))


def test_frames():
    assert frame_of(example()) == Frame("rel1000", 1000, 1000)
    assert frame_of(example(meta={"coordinates": "rel1"})) == Frame("rel1", 1, 1)
    resized = {"coordinates": "abs_resized", "input_size": [644, 476], "image_size": [640, 480]}
    assert frame_of(example(meta=resized)) == Frame("abs_resized", 644, 476)


@pytest.mark.parametrize(
    "answer", ["", "cup", "(300,400),(100,200)", "(1,2),(3,4) (5,6),(7,8)", "(1,2),(3,4000)"]
)
def test_gold_that_is_no_box_is_refused_by_example(answer):
    with pytest.raises(UserError, match="of example '7' is not one box in rel1000"):
        gold_box(example(answer))


def test_gold_may_be_tagged_or_json():
    assert gold_box(example(f"<answer>{GOLD}</answer>")) == BOX
    assert gold_box(example('[{"bbox_2d": [100, 200, 300, 400]}]')) == BOX


# --- detections


def test_confidences():
    text = "[{'Position': [1, 2, 3, 4], 'Confidence': 0.25}, {'Position': [5, 6, 7, 8]}]"
    assert parse_detections(text) == [
        Detection(Box(1, 2, 3, 4), 0.25),
        Detection(Box(5, 6, 7, 8), 1.0),
    ]


@pytest.mark.parametrize(
    "text", ["No Objects", "no objects.", "'No Object'", "[]", "```json\n[]\n```"]
)
def test_no_objects(text):
    assert parse_detections(text) == []


def test_too_many_boxes_are_not_read():
    one = "[1,2,3,4]"
    for text in ("(1,2),(3,4) " * MAX_BOXES, f"[{','.join([one] * MAX_BOXES)}]"):
        assert len(parse_boxes(text)) == MAX_BOXES
    for text in ("(1,2),(3,4) " * (MAX_BOXES + 1), f"[{','.join([one] * (MAX_BOXES + 1))}]"):
        assert parse_boxes(text) is None


coordinates = st.integers(0, 1000)
boxes = st.builds(Box, coordinates, coordinates, coordinates, coordinates)


@given(st.lists(boxes, min_size=1, max_size=5))
def test_what_is_written_is_read(given_boxes):
    for text in (
        "\n".join(map(format_box, given_boxes)),
        json.dumps([list(box) for box in given_boxes]),
        json.dumps([{"bbox_2d": list(box), "label": "cup"} for box in given_boxes]),
        str([{"Position": list(box), "Confidence": 0.5} for box in given_boxes]),
        " and ".join(str(list(box)) for box in given_boxes),
    ):
        assert parse_boxes(text) == given_boxes


@given(st.text(alphabet="()[]{},.-0123456789 \n'\":boxPosition", max_size=80))
def test_any_text_is_read_or_refused(text):
    found = parse_detections(text)
    assert found is None or all(0 <= detection.confidence <= 1 for detection in found)


@given(boxes)
def test_rewards_stay_in_range(box):
    for reward in (grounding, grounding_hit, grounding_giou):
        assert 0.0 <= reward(completion(format_box(box)), example()) <= 1.0


def test_the_explanation():
    told = grounding.explain(completion("<answer>(300,400),(100,200)</answer>"), example())
    assert (told.parsed, told.gold) == (None, "(100,200),(300,400) rel1000")
    assert "inverted" in told.note
    assert (
        grounding.explain(completion("<answer>(110,200),(300,400)</answer>"), example()).note
        == "IoU 0.950"
    )
    assert "2 boxes" in grounding.explain(completion("(1,2),(3,4) (1,2),(3,5)"), example()).note
    assert grounding.explain(completion(""), example()).parsed is None
