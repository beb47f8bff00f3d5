"""Boxes and masks: every convention, every published reading, areas by hand; and the loaders of ReasonSeg and RefCOCO."""

import json
import math
import re
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from benchmark_data import reasonseg as sets
from benchmark_data import refcoco as refcoco_sets
from benchmark_data.files import write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.answers.math.rectangles import COORDINATES, Box
from gpg_vl.data.resizing import resized_size
from gpg_vl.errors import UserError
from gpg_vl.eval.__main__ import main
from gpg_vl.eval.coordinates import model_convention, with_coordinates, write_box
from gpg_vl.eval.display import results_notes
from gpg_vl.eval.loading import with_columns
from gpg_vl.eval.masks import box_of, decode, encode, overlap, polygon
from gpg_vl.eval.predictions import Prediction, Response
from gpg_vl.eval.results import ScoredRow, resample_weights
from gpg_vl.eval.runner import check_gold
from gpg_vl.eval.runner import score as score_all
from gpg_vl.eval.scorers.boxes import (
    last_box,
    lmms_grounding,
    lmms_rec,
    vlm_r1,
    vlm_r1_edges,
    vlmevalkit_box,
)
from gpg_vl.eval.scorers.masks import lisa_mask, regions, segzero_mask, visual_rft_mask
from gpg_vl.eval.scorers.strict import strict_box
from gpg_vl.eval.scorers.visual_rft import visual_rft_box
from gpg_vl.eval.settings import settings_for
from gpg_vl.eval.task import Doc, pick_scorers
from gpg_vl.eval.tasks.reasonseg import lisa
from gpg_vl.eval.tasks.reasonseg import load as load_lisa
from gpg_vl.eval.tasks.refcoco import refcoco, refcocog
from gpg_vl.prompting import PixelLimits
from gpg_vl.types import Example

SETTINGS = settings_for(refcoco())


def make_doc(box=(100, 200, 300, 400), coordinates="rel1000", size=(1000, 1000), first=None):
    columns = {
        "width": size[0],
        "height": size[1],
        "box": list(box),
        "box_first": list(first or box),
    }
    doc = Doc(doc_id=0, example=Example(id="0", prompt="?", answer="", meta=columns))
    (doc,) = with_coordinates([doc], coordinates, SETTINGS)
    return doc


def score(scorer, doc, text):
    return scorer(doc, Response(text=text)).score


# --- conventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((1000, 1000), (3136, 12845056), (1008, 1008)),  # to the nearest 28
        ((56, 28), (0, 10**9), (56, 28)),
        ((640, 480), (3136, 401408), (644, 476)),
        # 1920 x 1080 to at most 401408: divided by sqrt(2073600/401408) = 2.2729 -> 844.8, 475.2; down to 840, 448
        ((1920, 1080), (3136, 401408), (840, 448)),
        # 20 x 10 to at least 3136: times sqrt(3136/200) = 3.9598 -> 79.2, 39.6; up to 84, 56
        ((20, 10), (3136, 401408), (84, 56)),
    ],
)
def test_images_are_resized_as_the_processor_does(size, limits, expected):
    assert resized_size(*size, *limits, side=28) == expected


@given(st.integers(28, 3000), st.integers(28, 3000))
@settings(deadline=None)  # the library is imported by the first example
def test_the_resized_image_is_in_the_limits_and_agrees_with_the_library(width, height):
    from qwen_vl_utils.vision_process import smart_resize

    if max(width, height) / min(width, height) < 100:
        expected = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=401408)
        assert resized_size(width, height, 3136, 401408, side=28) == (expected[1], expected[0])


@given(
    st.sampled_from(COORDINATES),
    st.tuples(st.integers(30, 3000), st.integers(30, 3000)),
    st.tuples(*[st.floats(0.01, 0.99)] * 4),
)
def test_a_right_box_is_read_back_in_every_convention(coordinates, size, fractions):
    (x1, x2), (y1, y2) = sorted(fractions[:2]), sorted(fractions[2:])
    if x2 - x1 < 0.01 or y2 - y1 < 0.01:
        return
    box = (x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
    doc = make_doc(box, coordinates, size)
    assert score(strict_box, doc, f"<answer>{write_box(Box(*box), doc)}</answer>") == pytest.approx(
        1, abs=1e-6
    )


def test_a_wrong_convention_misses():
    box = (600, 300, 700, 400)
    right = write_box(Box(*box), make_doc(box, "rel1000", (2000, 1000)))
    assert right == "(300,300),(350,400)"
    assert score(strict_box, make_doc(box, "abs_orig", (2000, 1000)), right) == 0


def test_the_convention_comes_from_the_model(tmp_path):
    for family, expected in (
        ("qwen2_vl", "rel1000"),
        ("qwen2_5_vl", "abs_resized"),
        ("qwen3_vl", "rel1000"),
    ):
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": family, "vision_config": {"patch_size": 16}})
        )
        assert model_convention(tmp_path) == (expected, 32)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"'llava' writes boxes is not known .* --coordinates"):
        model_convention(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1]", "holds list, not an object of settings"),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json {message}"):
        model_convention(tmp_path)


def test_pixels_of_the_resized_image_depend_on_the_limits():
    # A quarter to a half of the width and of the height, of 840 x 448 pixels as the model sees them.
    doc = make_doc((480, 270, 960, 540), "abs_resized", (1920, 1080))
    assert doc.columns["input_size"] == [840, 448]
    assert score(strict_box, doc, "(210,112),(420,224)") == pytest.approx(1)
    (larger,) = with_coordinates(
        [doc], "abs_resized", replace(SETTINGS, limits=PixelLimits(max_pixels=10**7))
    )
    assert larger.columns["input_size"] == [1932, 1092]
    assert score(strict_box, larger, "(210,112),(420,224)") < 0.2


# --- readings ---------------------------------------------------------------------------------------------------------


# IoU of (110,200,300,400) with (100,200,300,400): 190/200.
@pytest.mark.parametrize(
    ("text", "strict", "official", "visual_rft"),
    [
        ("<answer>(100,200),(300,400)</answer>", 1, 1, 1),
        ("<answer>(110,200),(300,400)</answer>", 0.95, 0.95, 0.95),
        ("<answer>(600,600),(700,700)</answer>", 0, 0, 0),
        ("<answer>(300,400),(100,200)</answer>", 0, 1, 0),  # inverted: no box; sorted; no overlap
        (
            "<answer>(100,200),(300,400)\n(500,500),(600,600)</answer>",
            0,
            0,
            1,
        ),  # two: none; the last; the first
        (
            "<answer>(100,200),(9000,9000)</answer>",
            0,
            40000 / 720000,
            0.04 / (8.9 * 8.8),
        ),  # none; clipped; as it is
        ("<answer>[100,200,300,400]</answer>", 1, 1, 0),
        ("<answer>(100.0,200.0),(300.0,400.0)</answer>", 1, 1, 0),
        ("<answer>(100,200),(300,400)</answer>)", 1, 1, 1),
        ("<think>(100,200),(300,400)</think><answer>(600,600),(700,700)</answer>", 0, 0, 1),
        ("<think>(100,200),(300,400)", 0, 0, 1),
        ("(100,200),(300,400)", 1, 1, 1),
        ('```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "cup"}]\n```', 1, 1, 0),
        ("no box", 0, 0, 0),
    ],
)
def test_three_readings_of_one_answer(text, strict, official, visual_rft):
    doc = make_doc()
    assert score(strict_box, doc, text) == pytest.approx(strict)
    assert score(last_box, doc, text) == pytest.approx(official)
    assert score(visual_rft_box, doc, text) == pytest.approx(
        visual_rft, abs=3e-5
    )  # its union has 1e-6 more


def test_visual_rft_measures_against_the_first_polygon():
    doc = make_doc(first=(0, 0, 100, 100))
    assert score(visual_rft_box, doc, "(0,0),(100,100)") == pytest.approx(1, abs=2e-4)
    assert score(strict_box, doc, "(0,0),(100,100)") == 0


@pytest.mark.parametrize(
    ("text", "iou"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", 1),
        (
            "<think>[0, 0, 1, 1]</think>[0.1,0.2, 0.3 , 0.4]",
            0,
        ),  # a blank before a comma is not in the pattern
        ("<think>[0, 0, 1, 1]</think>[0.1,0.2, 0.3, 0.4 ]", 1),
        ("[100, 200, 300, 400]", 0),  # read as fractions all the same
        ("(0.1, 0.2), (0.3, 0.4)", 0),
        ("", 0),
    ],
)
def test_lmms_rec_reads_fractions(text, iou):
    assert score(lmms_rec, make_doc(), text) == pytest.approx(iou)


def test_lmms_grounding_is_an_oracle():
    doc = make_doc((100, 200, 300, 400), size=(2000, 1000))  # fractions 0.05 to 0.15, 0.2 to 0.4
    grid = [[x, y, x + 100, y + 200] for x in range(0, 1000, 50) for y in range(0, 1000, 100)]
    best = lmms_grounding(doc, Response(text=json.dumps([{"bbox_2d": box} for box in grid])))
    assert best.score == pytest.approx(1)  # 50,200,150,400 in thousandths is among them
    assert best.parts["centre"] == 1
    assert score(strict_box, doc, json.dumps(grid)) == 0
    assert score(lmms_grounding, doc, '{"box": [100, 200, 300, 400]}') == pytest.approx(
        1
    )  # as pixels
    assert score(lmms_grounding, doc, "somewhere near 50 200 150 400") == pytest.approx(
        1
    )  # as thousandths
    none = lmms_grounding(doc, Response(text="nowhere"))
    assert (none.score, none.parsed, none.parts["centre"], none.parts["rows"]) == (0, None, 0, 1)


@pytest.mark.parametrize(
    ("size", "text", "iou"),
    [
        ((1000, 1000), "[100, 200, 300, 400]", 1),
        ((1000, 1000), "[0.1 0.2 0.3 0.4]", 1),
        ((1000, 1000), "(300,400),(100,200)", 1),  # sorted
        ((1000, 1000), "the 2 cups of 4: [100,200,300,400]", 1),  # the bracket before loose numbers
        ((4000, 4000), "[400, 800, 1200, 1600]", 1),  # beyond 1000: pixels
    ],
)
def test_vlmevalkit_guesses_what_the_numbers_mean(size, text, iou):
    box = (0.1 * size[0], 0.2 * size[1], 0.3 * size[0], 0.4 * size[1])
    assert score(vlmevalkit_box, make_doc(box, size=size), text) == pytest.approx(iou)


def test_vlmevalkit_misreads_pixels_of_a_small_image_and_numbers_of_the_reasoning():
    small = make_doc((80, 160, 240, 320), "abs_orig", (800, 800))
    assert score(strict_box, small, "[80, 160, 240, 320]") == 1
    # Read as thousandths: 0.08 to 0.24, 0.16 to 0.32, against 0.1 to 0.3, 0.2 to 0.4.
    inside = (0.24 - 0.1) * (0.32 - 0.2)
    assert score(vlmevalkit_box, small, "[80, 160, 240, 320]") == pytest.approx(
        inside / (0.16 * 0.16 + 0.04 - inside)
    )
    # The first four numbers: (2, 100) to (200, 300) of thousandths.
    doc = make_doc()
    inside = (0.2 - 0.1) * (0.3 - 0.2)
    assert score(vlmevalkit_box, doc, "2 cups at (100,200),(300,400)") == pytest.approx(
        inside / (0.198 * 0.2 + 0.04 - inside)
    )


@pytest.mark.parametrize(
    ("text", "iou"),
    [
        ('<answer>{"bbox": [210, 112, 420, 224]}</answer>', 1),
        ('<answer>{"a": [1, 2, 3, 4], "b": [210, 112, 420, 224]}</answer>', 1),  # the last
        ("<answer>[210, 112, 420, 224]</answer>", 0),  # no braces
        ('{"bbox": [210, 112, 420, 224]}', 0),  # no tag
        ('<answer>{"bbox": [210.0, 112.0, 420.0, 224.0]}</answer>', 0),
        (
            '<answer>{\n"bbox": [210, 112, 420, 224]\n}</answer>',
            0,
        ),  # a point matches no line break,
        ('<answer>{"bbox": [210, 112, 420, 224]\n}</answer>', 1),  # but blanks do
        ('<answer>{"bbox": [210,\n112, 420, 224]}</answer>', 1),
        ('<answer>{"bbox": [210, 112, 420, 224] \n\n "label": "x"}</answer>', 1),
        ('<answer>{"bbox": [210, 112, 420, 224], \n "label": "x"}</answer>', 0),
        ('<answer>{"bbox": [210, 112, 420, 224]}\n{"bbox": [1, 2, 3, 4]}</answer>', 1),
        (
            '<answer>{"bbox": [1, 2, 3, 4]}</answer> <answer>{"bbox": [210, 112, 420, 224]}</answer>',
            0,
        ),  # the first
    ],
)
def test_vlm_r1_reads_braces_in_the_resized_image(text, iou):
    doc = make_doc((480, 270, 960, 540), "abs_resized", (1920, 1080))
    assert score(vlm_r1, doc, text) == pytest.approx(iou, abs=1e-4)


PUBLISHED_VLM_R1 = re.compile(r"\{.*\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]\s*.*\}")


@given(
    st.lists(
        st.sampled_from(
            ["{", "}", "[1, 2,3, 4]", "[5,\n6,7,8]", "[9,9", "]", "\n", " ", "x", "\r", "٣"]
        )
    )
)
@settings(max_examples=500)
def test_vlm_r1_finds_what_the_published_pattern_finds(pieces):
    answer = "".join(pieces)
    found = PUBLISHED_VLM_R1.search(answer)
    assert vlm_r1_edges(answer) == (found.groups() if found else None)


@pytest.mark.parametrize(
    "piece", ["{[1,2,3,4]", "{[1,2,3,4]\n", "[1,\n2,3,4]", "[1,2,3,4] \n\n", "{\n", "[1,2,3,4]}"]
)
def test_vlm_r1_reads_a_million_characters_once(piece):
    """The published pattern would take hours; it is asked for a short text of the same kind."""
    for before, behind in (("", ""), ("{", ""), ("", "}"), ("{", "}")):
        found = PUBLISHED_VLM_R1.search(before + piece * 4 + behind)
        long = before + piece * (10**6 // len(piece)) + behind
        assert vlm_r1_edges(long) == (found.groups() if found else None)


HOSTILE = (
    "[1," * 30_000,
    "1 " * 60_000,
    "{" * 50_000,
    "[" * 50_000,
    "9" * 100_000,
    '{"bbox":' * 10_000,
    "(1,2),(" * 9_000,
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_hostile_texts_are_no_boxes_and_no_crash(text):
    doc = make_doc(coordinates="abs_resized")
    for scorer in (
        strict_box,
        last_box,
        visual_rft_box,
        lmms_rec,
        lmms_grounding,
        vlmevalkit_box,
        vlm_r1,
    ):
        for response in (text, f"<answer>{text}</answer>", f"<answer>{{{text}}}</answer>"):
            assert 0 <= score(scorer, doc, response) <= 1


# --- masks ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_run_lengths_come_back(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    assert (decode(encode(mask)) == mask).all()
    assert (
        decode({"size": [height, width], "counts": packed(encode(mask)["counts"])}) == mask
    ).all()


def packed(runs):
    """The string of pycocotools, written down from its format."""
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + (bits | 32 if more else bits))
    return text


def test_packed_run_lengths_of_a_known_mask():
    # 3 x 3 with the middle column: three outside, three inside, three outside. Bits 00011 each: "3".
    mask = decode({"size": [3, 3], "counts": "333"})
    assert mask.tolist() == [[False, True, False]] * 3


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([3, 3], [1, 2], "add up to 3 pixels instead of 3 x 3"),
        ([3, 3], [-1, 10], "must be run lengths"),
        ([3], [9], r"must be \[height, width\]"),
        ([10**5, 10**5], [10**10], "more than"),
        ([3, 3], "\x7f", "no packed run lengths"),
        ([3, 3], "o", "in the middle of a number"),
        (None, None, r"must be \[height, width\]"),
    ],
)
def test_bad_run_lengths_are_named(size, counts, message):
    with pytest.raises(ValueError, match=message):
        decode({"size": size, "counts": counts})


def test_areas_by_hand():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    one[:2], other[1:3] = True, True
    assert overlap(one, other) == (4, 12)
    ignored = np.zeros((4, 4), bool)
    ignored[1] = True
    assert overlap(one, other, ignored) == (0, 8)
    assert box_of(one) == (0, 0, 4, 2)
    assert box_of(np.zeros((2, 2), bool)) is None
    assert polygon([(1, 1), (2, 1), (2, 3), (1, 3)], (4, 4)).sum() == 6  # the outline is inside
    assert (
        polygon([(1.9, 1.9), (2.9, 1.9), (2.9, 3.9), (1.9, 3.9)], (4, 4)).sum() == 6
    )  # cut, not rounded
    assert polygon([(-9, -9), (9, -9), (9, 9), (-9, 9)], (4, 3)).shape == (3, 4)
    assert polygon([(2, 1)], (4, 4)).sum() == 1


@pytest.fixture
def folder(tmp_path):
    return sets.write("lisa", tmp_path)


def test_lisa_draws_large_before_small_and_leaves_flags_out(folder):
    doc = load_lisa(folder)[0]
    found = regions(doc)
    assert (found.target == sets.mask()).all()
    assert found.ignored.sum() == found.first.sum() == 11 * 11
    # An ignored square inside of a target is cut out of it, as it is smaller.
    shapes = [*doc.columns["shapes"], sets.square("ignore", 25, 15, 29, 19)]
    cut = regions(with_columns(doc, shapes=shapes))
    assert found.target.sum() - cut.target.sum() == 5 * 5
    assert cut.ignored.sum() == 11 * 11 + 5 * 5


def labels_as_published(shapes, size):
    """A map of labels, painted in place as LISA's data set does: 1 is target, 255 is not to be counted."""

    def paint(onto, shape, value):
        corners = np.array([shape["points"]], dtype=np.int32)
        cv2.polylines(onto, corners, True, value, 1)
        cv2.fillPoly(onto, corners, value)

    known, areas = [shape for shape in shapes if shape["label"].lower() != "flag"], []
    for shape in known:
        alone = np.zeros(size[::-1], np.uint8)
        paint(alone, shape, 1)
        areas.append(alone.sum())
    labels = np.zeros(size[::-1], np.uint8)
    # Stable, where the owners leave the order of polygons of one size to NumPy, and so to the processor.
    for number in np.argsort(areas, kind="stable")[::-1]:
        paint(labels, known[number], 255 if "ignore" in known[number]["label"].lower() else 1)
    return labels


def shapes_of(label, *corners):
    return {"label": label, "points": [list(corner) for corner in corners]}


SHAPES = {
    "a border of sloping lines": [shapes_of("target", (3.7, 2.2), (38.9, 7.5), (20.1, 27.8))],
    "an outline that crosses itself": [
        shapes_of("target", (2, 2), (30, 25), (2, 25), (30, 2), (35, 20))
    ],
    "a hole in a target, and a target in it": [
        shapes_of("target", (12, 12), (18, 12), (18, 18), (12, 18)),
        shapes_of("Ignored", (8, 8), (22, 8), (22, 22), (8, 22)),
        shapes_of("Target", (2, 2), (35, 2), (35, 28), (2, 28)),
    ],
    "two of one size, of which the first lies on top": [
        shapes_of("IGNORE", (2, 2), (20, 2), (20, 20), (2, 20)),
        shapes_of("target", (10, 5), (28, 5), (28, 23), (10, 23)),
    ],
    "beyond the edges, and a flag over everything": [
        shapes_of("target", (-8.5, -3.5), (50, 12), (15, 44)),
        shapes_of("Flag", (0, 0), (39, 0), (39, 29), (0, 29)),
        shapes_of("flagpole", (30, 2), (36, 2), (36, 28)),
    ],
}


def doc_of_shapes(shapes, size):
    doc = make_doc(size=size)
    return with_columns(doc, shapes=shapes)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_regions_are_the_published_ones_pixel_by_pixel(shapes):
    labels = labels_as_published(shapes, (40, 30))
    found = regions(doc_of_shapes(shapes, (40, 30)))
    assert (found.target == (labels == 1)).all()
    assert (found.ignored == (labels == 255)).all()


CORNER = st.tuples(st.floats(-10, 50), st.floats(-10, 40))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            lambda label, corners: shapes_of(label, *corners),
            st.sampled_from(["target", "Target", "ignore", "Ignore", "flag", "FLAG", "flagpole"]),
            st.lists(CORNER, min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_regions_are_the_published_ones_whatever_is_drawn(shapes):
    labels = labels_as_published(shapes, (40, 30))
    found = regions(doc_of_shapes(shapes, (40, 30)))
    assert (found.target == (labels == 1)).all()
    assert (found.ignored == (labels == 255)).all()


def test_without_opencv_boxes_are_scored_and_masks_name_the_extra(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    file = tmp_path / "p.jsonl"
    rows = [
        {"doc_id": n, "response": "(100,100),(500,900)", "mask": encode(sets.mask())}
        for n in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["lisa", "--predictions", str(file), "--data", str(folder), "--scorer"]
    assert main([*arguments, "strict,visual_rft"]) == 0
    assert main([*arguments, "strict,official"]) == 2
    assert "pip install 'gpg_vl[masks]', or drop the scorers of masks" in capsys.readouterr().err


def test_the_three_ground_truths_give_three_numbers(folder):
    doc = load_lisa(folder)[0]
    target = sets.mask()
    mine = target.copy()
    mine[:11, :11] = True  # the target and the ignored square
    area, square = float(target.sum()), 121.0
    response = Response(text="", mask=encode(mine))
    assert lisa_mask(doc, response).score == pytest.approx(1)  # the square is not counted
    assert segzero_mask(doc, response).score == 1  # the square is target
    assert visual_rft_mask(doc, response).score == pytest.approx(square / (area + square))
    response = Response(text="", mask=encode(target))
    assert lisa_mask(doc, response).score == pytest.approx(1)
    assert segzero_mask(doc, response).score == pytest.approx(area / (area + square))
    assert visual_rft_mask(doc, response).score == 0
    assert lisa_mask(doc, response).parts == {"intersection": area, "union": area}


@pytest.mark.parametrize(
    ("mask", "skipping"),
    [
        (None, ()),
        ({"size": [5, 5], "counts": [25]}, (segzero_mask, visual_rft_mask)),
        ({"size": [100, 200], "counts": "?"}, (segzero_mask,)),
    ],
    ids=["missing", "mis-sized", "unreadable"],
)
def test_a_mask_that_cannot_be_compared_scores_0_with_the_targets_area_or_is_left_out_as_published(
    folder, mask, skipping
):
    doc = load_lisa(folder)[0]
    for scorer in (lisa_mask, segzero_mask, visual_rft_mask):
        got = scorer(doc, Response(text="", mask=mask))
        assert got.parsed is None
        assert math.isnan(got.score) if scorer in skipping else got.score == 0
        assert got.parts.get("intersection", 0) == 0
        assert (got.parts.get("union", 0) > 0) is (scorer not in skipping)
        assert got.note.startswith("no mask")


def test_a_row_that_a_rule_leaves_out_is_in_no_denominator_of_it(folder):
    task, docs = lisa(), with_coordinates(load_lisa(folder), "rel1000", SETTINGS)
    masks = [encode(sets.mask()), encode(sets.mask()), {"size": [5, 5], "counts": [25]}, None]
    given = {
        doc.doc_id: (Prediction(doc_id=doc.doc_id, response=Response(text="", mask=mask)),)
        for doc, mask in zip(docs, masks, strict=True)
    }
    scorers = pick_scorers(task, ["official", "segzero", "visual_rft_mask"])
    results = score_all(task, docs, given, scorers, seed=0)
    flat = results.flat()
    assert flat["acc_mIoU,official"] == pytest.approx(2 / 4)
    one = segzero_mask(docs[0], Response(text="", mask=masks[0])).score
    assert flat["acc_mIoU,segzero"] == pytest.approx(2 * one / 3)
    assert flat["acc_@0.5,segzero"] == pytest.approx(2 / 3)
    assert flat["acc_sentence,segzero"] == pytest.approx(
        one
    )  # of docs 0 and 2, the latter left out
    assert (flat["skipped,segzero"], flat["skipped,visual_rft_mask"]) == (1, 1)
    assert "skipped,official" not in flat
    assert "segzero leaves 1 rows out, as published" in results_notes(results, prompt="plain")
    json.dumps(flat, allow_nan=False)


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_lisa_boxes_go_around_all_targets_and_visual_rfts_around_the_first_polygon(folder):
    docs = load_lisa(folder)
    assert [doc.columns["box"] for doc in docs] == [sets.TARGET_BOX] * 4
    assert [doc.columns["box_first"] for doc in docs] == [sets.FIRST_BOX] * 4
    assert [doc.columns["query"] for doc in docs] == ["sentence", "phrase"] * 2
    assert docs[0].example.prompt == "what holds water (0)"
    assert docs[1].example.prompt == "the café's cup"  # cp1252
    assert (docs[0].columns["width"], docs[0].columns["height"]) == sets.SIZE
    assert docs[2].example.images == ("002.jpg",)


def test_lisa_reads_visual_rfts_list(tmp_path):
    docs = load_lisa(sets.write_visual_rft(tmp_path))
    assert [doc.columns["box"] for doc in docs] == [sets.FIRST_BOX] * 4
    assert docs[3].example.images == ("images/3.jpg",)
    with pytest.raises(UserError, match="Doc 0 has no segmentation, only a box"):
        lisa_mask(docs[0], Response(text=""))
    task, docs = lisa(), with_coordinates(docs, "rel1000", SETTINGS)
    check_gold(task, docs, pick_scorers(task, ["strict", "visual_rft"]))


def test_lisa_reads_masks_shard_by_shard(tmp_path):
    docs = load_lisa(sets.write_masks(tmp_path))
    assert len(docs) == 6
    for doc in docs:
        assert (regions(doc).target == sets.mask()).all()
        assert doc.columns["box"] == list(sets.UNION)
    assert docs[4].example.prompt == "what holds water (1)"
    task, docs = lisa(), with_coordinates(docs, "rel1000", SETTINGS)
    assert check_gold(task, docs, pick_scorers(task, ["all"]))["segzero"] == 1


def test_a_ceiling_is_what_the_ground_truth_of_a_scorer_can_reach(folder):
    """Ignored pixels are target to one scorer, and another knows the first polygon only: both can be met."""
    task, docs = lisa(), with_coordinates(load_lisa(folder), "rel1000", SETTINGS)
    ceilings = check_gold(task, docs, pick_scorers(task, ["all"]))
    assert ceilings == pytest.approx(
        {"strict": 1, "visual_rft": 1, "official": 1, "segzero": 1, "visual_rft_mask": 1}, abs=1e-3
    )
    target = [
        segzero_mask(doc, Response(text="", mask=encode(regions(doc).target))).score for doc in docs
    ]
    assert 0.9 < target[0] < ceilings["segzero"]


def test_a_table_of_boxes_without_masks(tmp_path):
    row = {"image": sets.image(1, sets.SIZE), "text": "the cup", "bbox": [1, 2, 30, 40]}
    (doc,) = load_lisa(write_parquet(tmp_path / "mine.parquet", [row]))
    assert doc.columns["box"] == [1, 2, 30, 40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": []}, "column 'shapes': the value is .*Allowed is a list of polygons"),
        ({"shapes": [sets.square("flag", 0, 0, 5, 5)]}, "Allowed is a list with a target"),
        (
            {"shapes": [sets.square("target", 500, 500, 600, 600)]},
            "a box with an area in the image",
        ),
        (
            {"shapes": [{"label": "target", "points": [[1, 2], [3]]}]},
            "Allowed is a list of polygons",
        ),
        ({"text": []}, "column 'text': .*an instruction"),
    ],
)
def test_a_broken_annotation_is_named(folder, change, message):
    file = folder / "002.json"
    file.write_text(json.dumps({**sets.annotation(2), **change}), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"002\.json, row 2, {'' if 'column' in message else '.*'}{message}"
    ):
        load_lisa(folder)


def test_the_folder_of_both_splits_is_refused(tmp_path):
    sets.write("lisa", tmp_path / "val")
    with pytest.raises(UserError, match=r"holds the splits of ReasonSeg. Give one of them: .*val"):
        load_lisa(tmp_path)


def test_an_image_without_a_size_is_a_problem_of_its_doc(folder):
    (folder / "001.jpg").write_bytes(b"no picture")
    docs = load_lisa(folder)
    assert [doc.problem is None for doc in docs] == [True, False, True, True]
    assert "no picture that can be read" in docs[1].problem


def test_refcoco_has_a_doc_per_expression_and_draws_pictures(tmp_path):
    task = refcoco()
    docs = task.load(refcoco_sets.write("refcoco", tmp_path))
    # Three objects per split with 1, 2 and 1 expressions.
    assert [doc.columns["split"] for doc in docs] == ["val"] * 4 + ["testA"] * 4 + ["testB"] * 4
    assert [doc.example.prompt for doc in docs[:4]] == [
        "left one 0",
        "left one 1",
        "the val thing",
        "left one 2",
    ]
    assert docs[0].columns["box"] == [10, 5, 50, 25]
    assert task.cluster == "picture"
    assert [doc.columns["picture"] for doc in docs[:4]] == [
        f"COCO_train2014_{n:012}.jpg" for n in (0, 0, 0, 1)
    ]
    weights_R_N = resample_weights(
        task,
        [
            ScoredRow(
                doc=doc, prediction=Prediction(doc_id=0, response=Response(text="")), scores={}
            )
            for doc in docs
        ],
        seed=0,
        draws=50,
    )
    together = (weights_R_N == weights_R_N[:, :1]).all(axis=0)
    assert together[:4].tolist() == [True, True, True, False]
    single = task.load(tmp_path / "data" / "testB-00000-of-00001.parquet")
    assert [doc.columns["split"] for doc in single] == ["testB"] * 4


def test_refcocog_has_no_test_a(tmp_path):
    docs = refcocog().load(refcoco_sets.write("refcocog", tmp_path))
    assert {doc.columns["split"] for doc in docs} == {"val", "test"}


def test_a_missing_shard_is_not_measured_as_the_whole(tmp_path):
    write_parquet(tmp_path / "val-00000-of-00002.parquet", refcoco_sets.rows("val"))
    with pytest.raises(UserError, match="has 1 of the 2 shards of val"):
        refcoco().load(tmp_path)


# --- whose convention -------------------------------------------------------------------------------------------------


def test_a_convention_that_is_asked_for_keeps_the_side_of_the_model(tmp_path):
    """Pixels of the resized image are those of the model's own image tokens, whoever asks for them."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    assert model_convention(tmp_path, "abs_resized") == ("abs_resized", 32)
    assert model_convention(tmp_path) == ("rel1000", 32)
    assert model_convention(None) == ("rel1000", 28)
    assert model_convention(None, "abs_resized") == ("abs_resized", 28)


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_tiles_have_no_pixels_of_a_resized_image(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert model_convention(tmp_path).coordinates == "rel1000"
    assert model_convention(tmp_path, "abs_orig").coordinates == "abs_orig"
    with pytest.raises(
        UserError, match=f"{family} cuts images into tiles.*rel1000, rel1, abs_orig"
    ):
        model_convention(tmp_path, "abs_resized")
