"""Boxes whose gold answer and whose answers count in different coordinates: what is decided, measured, converted and said."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import gpg_vl
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from gpg_vl.answers.box import frame_of, gold_box, gold_frame_of, parse_boxes
from gpg_vl.answers.box_text import answer_as_stated
from gpg_vl.answers.math.rectangles import COORDINATES, Box, Frame, convert
from gpg_vl.errors import UserError
from gpg_vl.models.box_frames import Sizes, with_frames
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import families
from gpg_vl.models.load import load_processing
from gpg_vl.prompting import DEFAULT_STYLE, PixelLimits
from gpg_vl.rewards.builtin import detection, grounding
from gpg_vl.rewards.gold_proof import check_gold
from gpg_vl.types import Completion, Example

LIMITS = PixelLimits()
SEEN = families.get("qwen2_5_vl")
"""Taught to write pixels of the image as it sees it."""
THOUSANDTHS = families.get("qwen2_vl")
TILES = ("internvl", "smolvlm")


def row(answer: str = "[30, 40, 150, 120]", **meta: object) -> Example:
    return Example(
        id="7",
        prompt="Where?",
        answer=answer,
        meta={"coordinates": "abs_orig"} | meta,
        images=("p",),
    )


def placed(example: Example, family=SEEN, wanted=None, sizes=(((300, 200), (308, 196)),)):
    return with_frames(example, family, wanted, lambda: [Sizes(*one) for one in sizes])


def iou(one: tuple, other: tuple) -> Fraction:
    """Of two boxes in one frame, in whole fractions."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = Fraction(width) * Fraction(height)
    areas = [(Fraction(b[2]) - b[0]) * (Fraction(b[3]) - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared)


# ---- conversions by hand


@pytest.mark.parametrize(
    "stored, seen, gold, stated",
    [
        # 300 / 28 = 10.7 and 200 / 28 = 7.1: 11 x 7 image tokens of 28 pixels
        ((300, 200), (308, 196), (75, 50, 150, 100), (77, 49, 154, 98)),
        # 1920 x 1080 are shrunk to 401,408 pixels: by 2.2728, to 844.8 x 475.2, so to 30 x 16 tokens
        ((1920, 1080), (840, 448), (480, 270, 960, 540), (210, 112, 420, 224)),
        # 40 x 30 are enlarged to 3,136 pixels: by 1.6166, to 64.7 x 48.5, so to 3 x 2 tokens
        ((40, 30), (84, 56), (10, 15, 20, 30), (21, 28, 42, 56)),
        # on the grid already
        ((280, 140), (280, 140), (1, 2, 3, 4), (1, 2, 3, 4)),
    ],
)
def test_pixels_of_the_file_become_pixels_that_the_model_sees(stored, seen, gold, stated) -> None:
    rows, columns = smart_resize(stored[1], stored[0], min_pixels=3136, max_pixels=401408)
    assert (columns, rows) == seen, "the library's own arithmetic"
    measured = SEEN.image_size(*stored, min_pixels=3136, max_pixels=401408)
    example = placed(row(str(list(gold))), sizes=((stored, measured),))
    assert frame_of(example) == Frame("abs_resized", *seen)
    assert gold_frame_of(example) == Frame("abs_orig", *stored)
    assert gold_box(example) == pytest.approx(Box(*stated), abs=1e-9)
    assert grounding(Completion(text=f"<answer>{list(stated)}</answer>"), example) == 1.0


def test_an_answer_beside_the_gold_box_gets_the_iou_of_the_file_s_pixels() -> None:
    """(35, 42)-(161, 120) of 308 x 196 pixels is, in the file's 300 x 200, times 300/308 and 200/196."""
    answer = (35, 42, 161, 120)
    scale = (Fraction(300, 308), Fraction(200, 196)) * 2
    in_file = tuple(edge * by for edge, by in zip(answer, scale, strict=True))
    expected = iou(in_file, (30, 40, 150, 120))
    assert float(expected) == pytest.approx(0.8576, abs=1e-4)
    got = grounding(Completion(text="<answer>(35,42),(161,120)</answer>"), placed(row()))
    assert got == pytest.approx(float(expected), abs=1e-12)


def test_the_same_numbers_in_the_wrong_frame_are_worth_less() -> None:
    text = Completion(text="<answer>[30, 40, 150, 120]</answer>")
    assert grounding(text, placed(row(), wanted="abs_orig")) == 1.0
    assert grounding(text, placed(row())) < 0.95
    assert grounding(text, placed(row(), wanted="rel1000")) < 0.2


def test_every_box_of_a_detection_is_converted() -> None:
    gold = "[{'Position': [75, 50, 150, 100], 'Confidence': 1.0}, {'Position': [0, 0, 30, 20], 'Confidence': 1.0}]"
    example = placed(row(gold))
    stated = "[{'Position': [77, 49, 154, 98]}, {'Position': [0, 0, 30.8, 19.6]}]"
    assert detection(Completion(text=f"<answer>{stated}</answer>"), example) == 1.0
    assert detection(Completion(text=f"<answer>{gold}</answer>"), example) < 0.95
    assert detection(Completion(text="No Objects"), placed(row("No Objects"))) == 1.0


# ---- who decides


@pytest.mark.parametrize(
    "family, wanted, named, answered",
    [
        ("qwen2_5_vl", None, None, "abs_resized"),
        ("qwen2_vl", None, None, "rel1000"),
        ("qwen3_vl", None, None, "rel1000"),
        ("internvl", None, None, "rel1000"),
        ("smolvlm", None, None, "rel1000"),
        ("qwen2_5_vl", "rel1000", None, "rel1000"),
        ("qwen2_5_vl", "rel1000", "rel1", "rel1"),
        ("internvl", None, "abs_orig", "abs_orig"),
    ],
)
def test_the_row_goes_before_the_config_and_the_config_before_the_family(
    family: str, wanted: str | None, named: str | None, answered: str
) -> None:
    example = placed(row(answer_coordinates=named), families.get(family), wanted)
    assert frame_of(example).coordinates == answered
    assert gold_frame_of(example).coordinates == "abs_orig"


def test_without_a_model_answers_are_in_the_gold_answer_s_coordinates() -> None:
    example = row(image_size=[300, 200])
    assert frame_of(example) == gold_frame_of(example) == Frame("abs_orig", 300, 200)
    assert placed(example, families.get("qwen2")) == example, "reads text alone"
    others = Example(id="7", prompt="Where?", answer="cup", meta={"coordinates": [3.2, 4.1]})
    assert placed(others) == others, "a column of another meaning"


def test_sizes_are_measured_only_where_pixels_are_counted_and_rows_keep_their_own() -> None:
    def never():
        raise AssertionError("no image has to be opened")

    relative = row(coordinates="rel1")
    assert with_frames(relative, THOUSANDTHS, None, never).meta["answer_coordinates"] == "rel1000"
    # the numbers of a row may count pixels of a size that no file has any more
    example = placed(row(image_size=[600, 400], input_size=[10, 10]))
    assert gold_frame_of(example) == Frame("abs_orig", 600, 400)
    assert frame_of(example) == Frame("abs_resized", 308, 196)


def test_gold_pixels_of_another_resizing_keep_their_size() -> None:
    example = placed(row(coordinates="abs_resized", input_size=[616, 392]))
    assert gold_frame_of(example) == Frame("abs_resized", 616, 392)
    assert frame_of(example) == Frame("abs_resized", 308, 196)
    assert gold_box(example) == Box(15, 20, 75, 60)
    assert frame_of(placed(row(coordinates="abs_resized"))) == Frame("abs_resized", 308, 196)


@pytest.mark.parametrize("name", TILES)
def test_tiles_have_no_resized_frame(name: str) -> None:
    family = families.get(name)
    for example, wanted in (
        (row(), "abs_resized"),
        (row(answer_coordinates="abs_resized"), None),
        (row(coordinates="abs_resized"), None),
    ):
        with pytest.raises(UserError, match=f"Example 7: {name} cuts images into tiles.*rel1000"):
            placed(example, family, wanted)
    told = placed(row(coordinates="abs_resized", input_size=[308, 196]), family)
    assert gold_box(told) == pytest.approx(
        convert(Box(30, 40, 150, 120), gold_frame_of(told), frame_of(told))
    )


def test_images_of_several_sizes_are_refused_only_where_one_is_needed() -> None:
    sizes = (((300, 200), (308, 196)), ((100, 100), (112, 112)))
    with pytest.raises(UserError, match=r"Example 7: .*2 image.* 112x112, 308x196.*rel1000"):
        placed(row(), sizes=sizes)
    assert frame_of(placed(row(), sizes=sizes[:1] * 2)) == Frame("abs_resized", 308, 196)
    assert placed(row(coordinates="rel1"), wanted="rel1000", sizes=sizes)


def test_an_unknown_convention_is_named() -> None:
    with pytest.raises(
        UserError, match=r"Example 7: .*'pixels'.*rel1000, rel1, abs_resized, abs_orig"
    ):
        placed(row(answer_coordinates="pixels"))


# ---- gold answers as they are stated


sides = st.integers(30, 3000)


@given(
    st.sampled_from(COORDINATES),
    st.sampled_from(COORDINATES),
    st.tuples(sides, sides),
    st.tuples(*[st.integers(0, 999)] * 4),
    st.sampled_from(
        ("({},{}),({},{})", "[{}, {}, {}, {}]", '[{{"bbox_2d": [{}, {}, {}, {}], "label": "2"}}]')
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_gold_answer_gets_full_marks_in_every_frame(source, target, size, edges, form) -> None:
    """Written in one frame and stated in another, and there and back again."""
    (x1, x2), (y1, y2) = sorted(edges[:2]), sorted(edges[2:])
    if x1 == x2 or y1 == y2:
        return
    width, height = size
    seen = (28 * max(1, round(width / 28)), 28 * max(1, round(height / 28)))
    extents = {"rel1000": (1000, 1000), "rel1": (1, 1), "abs_resized": seen, "abs_orig": size}
    own = [
        round(e / 1000 * s, 6) for e, s in zip((x1, y1, x2, y2), extents[source] * 2, strict=True)
    ]
    if own[0] == own[2] or own[1] == own[3]:
        return
    meta = {"coordinates": source, "answer_coordinates": target}
    text = form.format(*(f"{edge:.6f}" for edge in own))
    example = placed(row(text, **meta), sizes=((size, seen),))

    stated = answer_as_stated(example)
    assert grounding(Completion(text=f"<answer>{stated}</answer>"), example) == 1.0
    assert not check_gold({"grounding": 1.0, "detection": 1.0}, [example])

    # a row that has this as its gold answer says the same box
    turned = {"coordinates": target, "answer_coordinates": source}
    back = answer_as_stated(placed(row(stated, **turned), sizes=((size, seen),)))
    (box,) = parse_boxes(back)
    assert box == pytest.approx(Box(*own), abs=2e-9 * max(*size, 1000) * 30)


@pytest.mark.parametrize(
    "answer, stated, whole",
    [
        ("(75,50),(150,100)", "(77,49),(154,98)", "(77,49),(154,98)"),
        ("[30, 40, 150, 120]", "[30.8, 39.2, 154, 117.6]", "[31, 39, 154, 118]"),
        (
            '{"bbox_2d": [30, 40, 150, 120], "label": "cup 2"}',
            '{"bbox_2d": [30.8, 39.2, 154, 117.6], "label": "cup 2"}',
            '{"bbox_2d": [31, 39, 154, 118], "label": "cup 2"}',
        ),
        (
            "<think>30 it is</think><answer>[30, 40, 150, 120]</answer>",
            "<think>30 it is</think><answer>[30.8, 39.2, 154, 117.6]</answer>",
            "<think>30 it is</think><answer>[31, 39, 154, 118]</answer>",
        ),
        # corners in another order: no run of four numbers is the box
        (
            '{"x2": 150, "y2": 100, "x1": 75, "y1": 50}',
            '[{"bbox_2d": [77.0, 49.0, 154.0, 98.0]}]',
            '[{"bbox_2d": [77.0, 49.0, 154.0, 98.0]}]',
        ),
        # rounded it would be flat
        (
            "[30, 40, 30.2, 120]",
            "[30.8, 39.2, 31.005333333, 117.6]",
            "[30.8, 39.2, 31.005333333, 117.6]",
        ),
        ("a cup", "a cup", "a cup"),
        ("No Objects", "No Objects", "No Objects"),
    ],
)
def test_only_the_numbers_of_boxes_change(answer: str, stated: str, whole: str) -> None:
    example = placed(row(answer))
    assert answer_as_stated(example) == stated
    assert answer_as_stated(example, whole=True) == whole
    same = placed(row(answer), wanted="abs_orig")
    assert answer_as_stated(same) == answer


# ---- the encoder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.new("RGB", (200, 300), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: it is seen with 300 x 200 pixels
    image.save(folder / "p", "JPEG", exif=exif)
    return folder


def test_the_encoder_measures_what_it_encodes(newer_checkpoint: Path, picture: Path) -> None:
    encoder = Encoder(
        processing=load_processing(str(newer_checkpoint)),
        style=DEFAULT_STYLE,
        limits=LIMITS,
        root=picture,
    )
    example = encoder.place(row())
    assert example.meta == {
        "coordinates": "abs_orig",
        "image_size": [300, 200],
        "answer_coordinates": "abs_resized",
        "answer_size": [308, 196],
    }
    assert encoder.place(example) == example
    ((_, rows, columns),) = encoder.encode(row()).grid_thw_I_3.tolist()
    assert example.meta["answer_size"] == [14 * columns, 14 * rows]


def test_tiles_are_refused_before_any_row_is_read(tiled_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="internvl cuts images into tiles"):
        Encoder(
            processing=load_processing(str(tiled_checkpoint)),
            style=DEFAULT_STYLE,
            limits=LIMITS,
            root=None,
            coordinates="abs_resized",
        )


# ---- the command line


def write_run(folder: Path, picture: Path, checkpoint: Path, **changes: dict) -> Path:
    """A run of one step on one row, whose answers begin with a known box."""
    line = {
        "id": "7",
        "images": [str(picture / "p")],
        "prompt": "Where?",
        "answer": "[30, 40, 150, 120]",
        "coordinates": "abs_orig",
    }
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    tree = {
        "model": {"path": str(checkpoint)},
        "data": {"train": str(folder / "train.jsonl"), "root": str(picture)},
        "prompt": {"prefill": "<answer>(35,42),(161,120)</answer>"},
        "rollout": {"group_size": 2, "max_new_tokens": 1},
        "rewards": {"weights": {"grounding": 1.0}},
        "train": {"prompts_per_step": 1, "steps": 1, "tokens_per_pass": 400},
        "output": {"folder": str(folder / "run"), "samples_every": 1},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(tree | {k: tree.get(k, {}) | v for k, v in changes.items()}))
    return config


def test_a_run_judges_pixels_that_the_model_sees_against_pixels_of_the_file(
    newer_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    """The IoU by hand, in the file's 300 x 200 pixels: 0.8576, as above."""
    config = write_run(tmp_path, picture, newer_checkpoint)
    check = gpg_vl("data", "check", config)
    assert check.returncode == 0, check.stderr
    assert "(30.8,39.2),(154,117.6) abs_resized" in check.stdout

    done = gpg_vl("train", config)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "answered in abs_resized, as qwen2_5_vl was taught; gold answers in abs_orig" in said

    (file,) = (tmp_path / "run").rglob("samples*.jsonl")
    group = json.loads(file.read_text().splitlines()[0])
    assert group["meta"]["answer_size"] == [308, 196]
    scale = (Fraction(300, 308), Fraction(200, 196)) * 2
    in_file = tuple(edge * by for edge, by in zip((35, 42, 161, 120), scale, strict=True))
    expected = float(iou(in_file, (30, 40, 150, 120)))
    rewards = [one["reward"] for one in group["completions"]]
    assert rewards == pytest.approx([expected] * 2, abs=1e-8)


def test_sft_teaches_whole_pixels_that_the_model_sees(
    newer_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    changes = {"algorithm": {"name": "sft"}, "prompt": {"prefill": ""}}
    config = write_run(tmp_path, picture, newer_checkpoint, **changes)
    done = gpg_vl("train", config)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run").rglob("samples*.jsonl")
    (group,) = map(json.loads, file.read_text().splitlines())
    assert "[31, 39, 154, 118]" in json.dumps(group["completions"])


def test_a_config_asks_for_other_coordinates(
    newer_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    done = gpg_vl(
        "train",
        write_run(tmp_path, picture, newer_checkpoint),
        "--dry-run",
        "prompt.coordinates=rel1000",
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "answered in rel1000, by prompt.coordinates; gold answers in abs_orig" in said
    assert "(100,200),(500,600) rel1000" in said
