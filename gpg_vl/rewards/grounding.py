"""Grounding: the one box that an answer states, and three rewards for how well it agrees with the gold box.

A box is read where it is stated in full: `(x1,y1),(x2,y2)`, `(x1,y1,x2,y2)`, `[x1,y1,x2,y2]`, or JSON such as
`[{"bbox_2d": [x1, y1, x2, y2]}]`. Its numbers are in the coordinates that the example declares. A box that is inverted,
flat or reaches out of the image is no box, and neither are two boxes where one is asked for.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.rewards.boxes import (
    COORDINATES,
    HIT,
    Box,
    Frame,
    generalized_iou,
    hits,
    iou,
)
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.numerals import denials, hides, word_spans
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

MAX_BOXES = 100
"""A text that states more boxes is not read: no answer needs them, and pairing them takes time."""
MAX_JSON = 20_000
"""Characters of JSON that are read, and below, how deep it may be nested."""
MAX_DEPTH = 6
BOX_KEYS = ("bbox_2d", "bbox", "box", "Position", "position", "coordinates")
CONFIDENCE_KEYS = ("Confidence", "confidence", "score")

_N = r"\s*+(-?[0-9]{1,9}+(?>(?:\.[0-9]{1,9}+)?))\s*+"  # possessive: nothing is tried twice
_BOX = re.compile(
    rf"\({_N},{_N}\)\s*+,?+\s*+\({_N},{_N}\)|\({_N},{_N},{_N},{_N}\)|\[{_N},{_N},{_N},{_N}\]"
)
_KEY = re.compile("|".join(BOX_KEYS))
_FENCE = re.compile(r"```(?>(?:json|JSON)?)")
_NOTHING = re.compile(r"no objects?", re.IGNORECASE)

_META = {"coordinates": "rel1000"}
_GOLD = "(100,200),(300,400)"
EXAMPLES = (
    Sample(
        response="<think>left</think><answer>(100,200),(300,400)</answer>", answer=_GOLD, meta=_META
    ),
    Sample(response="<answer>[110, 200, 300, 400]</answer>", answer=_GOLD, meta=_META),
    Sample(
        response='<answer>[{"bbox_2d": [100, 200, 300, 300], "label": "cup"}]</answer>',
        answer=_GOLD,
        meta=_META,
    ),
    Sample(response="<answer>(600,600),(700,700)</answer>", answer=_GOLD, meta=_META),
    Sample(response="<answer>(300,400),(100,200)</answer>", answer=_GOLD, meta=_META),
    Sample(response="<answer>(100,200),(9000,9000)</answer>", answer=_GOLD, meta=_META),
    Sample(
        response="<answer>(100,200),(300,400) or (1,1),(5,5)</answer>", answer=_GOLD, meta=_META
    ),
)


class Detection(NamedTuple):
    """One stated box with its confidence, 1.0 where none is stated.

    Example: `Detection(Box(1, 2, 30, 40), 0.95)`
    """

    box: Box
    confidence: float = 1.0


def explain(completion: Completion, example: Example) -> Explanation:
    """How the three rewards of this module read a completion."""
    frame = frame_of(example)
    candidate = extract_answer(completion.response).candidate
    box, why = (None, "") if candidate is None else read_box(candidate, frame)
    note = why or ("" if box is None else f"IoU {iou(box, gold_box(example)):.3f}")
    return explanation(
        completion,
        lambda _: None if box is None else shown(box),
        f"{shown(gold_box(example))} {frame.coordinates}",
        note,
    )


@explained(explain, EXAMPLES)
def grounding(completion: Completion, example: Example) -> float:
    """The IoU of the stated box with the gold box, 0.0 if no box, or more than one, can be read.

    Needs `example.meta["coordinates"]`, one of rel1000, rel1, abs_resized, abs_orig; for the last two also the size of
    the image in pixels as [width, height], in `input_size` or `image_size`. The gold answer is written in the same way
    and in the same coordinates as the model is asked to answer in.
    """
    box, gold = _stated(completion, example), gold_box(example)
    return 0.0 if box is None else iou(box, gold)


@explained(explain, EXAMPLES)
def grounding_hit(completion: Completion, example: Example) -> float:
    """1.0 if the stated box has an IoU of at least 0.5 with the gold box, else 0.0. Needs what `grounding` needs."""
    box, gold = _stated(completion, example), gold_box(example)
    return float(box is not None and hits(box, gold, HIT))


@explained(explain, EXAMPLES)
def grounding_giou(completion: Completion, example: Example) -> float:
    """(1 + generalised IoU) / 2 of the stated box with the gold box, 0.0 if no box, or more than one, can be read.

    It tells boxes that miss apart by how far off they are, which `grounding` does not; in return any box earns something,
    and the whole image at least 0.5. Use it where a model rarely hits at first. Needs what `grounding` needs.
    """
    box, gold = _stated(completion, example), gold_box(example)
    return 0.0 if box is None else (1.0 + generalized_iou(box, gold)) / 2.0


def _stated(completion: Completion, example: Example) -> Box | None:
    candidate = extract_answer(completion.response).candidate
    frame = frame_of(example)
    return None if candidate is None else read_box(candidate, frame).box


def frame_of(example: Example) -> Frame:
    """The coordinates that an example declares. Raises UserError that names the example and what to set."""
    coordinates = example.meta.get("coordinates")
    if coordinates not in COORDINATES:
        raise UserError(
            f"Example {example.id!r} has the coordinates {coordinates!r}, and boxes cannot be compared without knowing what "
            f"their numbers mean. Give the data a column `coordinates` with one of {', '.join(COORDINATES)} "
            f"(`gpg_vl.eval` knows the one that a checkpoint was taught)."
        )
    if coordinates == "rel1000":
        return Frame("rel1000", 1000.0, 1000.0)
    if coordinates == "rel1":
        return Frame("rel1", 1.0, 1.0)
    column = "input_size" if coordinates == "abs_resized" else "image_size"
    size = example.meta.get(column)
    if not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(_is_number(n) and n > 0 for n in size)
    ):
        raise UserError(
            f"Example {example.id!r} has coordinates {coordinates} and the {column} {size!r:.80}. Pixels need the size of "
            f"their image. Give the data a column `{column}` with [width, height]"
            f"{', after the resizing that the model sees' if column == 'input_size' else ''}."
        )
    return Frame(coordinates, float(size[0]), float(size[1]))


def gold_box(example: Example) -> Box:
    """The gold box. Raises UserError that names the example if the gold answer is not one box inside of the image."""
    frame = frame_of(example)
    box, why = read_box(gold_text(example.answer), frame)
    if box is None:
        raise UserError(
            f"The gold answer {example.answer!r} of example {example.id!r} is not one box in {frame.coordinates} "
            f"({frame.width:g} x {frame.height:g}): {why}. Correct the row or its `coordinates`; for several boxes use the "
            f"reward 'detection'."
        )
    return box


class Read(NamedTuple):
    """A box, or why there is none."""

    box: Box | None
    why: str = ""


def read_box(text: str, frame: Frame) -> Read:
    """The one box that a text states in a frame. Total, and linear in the length of the text."""
    boxes = parse_boxes(text)
    if boxes is None:
        return Read(None, "no box can be read")
    if len(boxes) != 1:
        return Read(None, f"{len(boxes)} boxes where one is asked for")
    if not frame.holds(boxes[0]):
        return Read(None, f"{shown(boxes[0])} is inverted, flat or outside of the image")
    return Read(boxes[0])


def parse_boxes(text: str) -> list[Box] | None:
    """The boxes that a text states, in order and as they stand; None if it cannot be read. See `parse_detections`."""
    detections = parse_detections(text)
    return None if detections is None else [detection.box for detection in detections]


def parse_detections(text: str) -> list[Detection] | None:
    """The boxes that a text states, each with its confidence; [] for "No Objects"; None if it cannot be read.

    Outside of JSON there must be no digit that belongs to no box, so that nothing is picked out of a calculation, and no
    "not" right before a box. Numbers are ASCII, with at most nine digits before and after the point. More than
    `MAX_BOXES` boxes are not read.
    """
    text = _unfenced(text)
    if hides(text):
        return None
    if _NOTHING.fullmatch(text.strip("\"'. \t\r\n")):
        return []
    if text[:1] in {"[", "{"}:
        if len(text) > MAX_JSON or _depth(text) > MAX_DEPTH:
            return None
        value = _json(text)
        if value is not None:
            found = list(_detections(value))[: MAX_BOXES + 1]
            good = [detection for detection in found if detection is not None]
            return good if len(good) == len(found) <= MAX_BOXES else None
    return _from_text(text)


def _unfenced(text: str) -> str:
    """The content of the only fenced block, else the text itself."""
    fences = list(_FENCE.finditer(text)) if text.count("```") == 2 else []
    return (text[fences[0].end() : fences[1].start()] if len(fences) == 2 else text).strip()


def _from_text(text: str) -> list[Detection] | None:
    boxes, end = [], 0
    for found in _BOX.finditer(text):
        if _ends_in_denial(text[end : found.start()]):
            return None
        boxes.append(
            Detection(Box(*(float(number) for number in found.groups() if number is not None)))
        )
        if len(boxes) > MAX_BOXES:
            return None
        end = found.end()
    rest = _KEY.sub("", _BOX.sub(" ", text))
    return None if not boxes or any(character.isnumeric() for character in rest) else boxes


def _ends_in_denial(text: str) -> bool:
    """True for "it is not"; the words before it may describe what was looked for: "who has no hat is at"."""
    spans = word_spans(text)
    denying = denials(text, spans)
    return bool(denying) and denying[-1][1] >= spans[-1][1]


def _json(text: str) -> Any:
    """What a JSON text says, also with the single quotes of Python; None if it is not JSON."""
    for spelling in (text, text.replace("'", '"')):
        try:
            return json.loads(spelling)
        except ValueError:
            continue
    return None


def _detections(value: Any) -> Iterator[Detection | None]:
    """Each box of a JSON value; None for something that is no box."""
    if isinstance(value, dict):
        boxes = [value[key] for key in BOX_KEYS if key in value]
        stated = [value[key] for key in CONFIDENCE_KEYS if key in value]
        confidence = stated[0] if stated else 1.0
        box = _box(boxes[0]) if len(boxes) == 1 and len(stated) < 2 else None
        valid = box is not None and _is_number(confidence) and 0 <= confidence <= 1
        yield Detection(box, float(confidence)) if valid and box is not None else None
    elif (box := _box(value)) is not None:
        yield Detection(box)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict) or _box(item) is not None:
                yield from _detections(item)
            else:
                yield None
    else:
        yield None


def _box(value: Any) -> Box | None:
    if isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value):
        return Box(*map(float, value))
    return None


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -1e9 < value < 1e9
        and math.isfinite(value)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def shown(box: Box) -> str:
    """`(100,200),(300,400)`"""
    return "({:g},{:g}),({:g},{:g})".format(*box)
