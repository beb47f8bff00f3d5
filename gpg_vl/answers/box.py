"""Boxes: reads the only box of an answer, and scores it against the gold box in three ways.

A box is read where it is stated in full: `(x1,y1),(x2,y2)`, `(x1,y1,x2,y2)`, `[x1,y1,x2,y2]`, `[[x1,y1],[x2,y2]]`, four bare
numbers, its two corners by name, or JSON such as `[{"bbox_2d": [x1, y1, x2, y2]}]`, with or without the tokens that models
write around boxes and labels. Its numbers are in the frame that `frame_of` finds, and the gold box is converted to it. A box
that is inverted, flat or extends beyond the image does not count, nor do two boxes if one is expected.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.math.rectangles import (
    COORDINATES,
    UNIT,
    Box,
    Frame,
    convert,
    generalized_iou,
    hits,
    iou,
    overlap_parts,
)
from gpg_vl.answers.text.numerals import denials, has_hidden_characters, is_rejected, word_spans
from gpg_vl.answers.text.python_literal import python_literal
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

MAX_BOXES = 100
"""A text with more boxes is not read: no answer needs them, and matching them takes time."""
MAX_LENGTH = 20_000
"""Characters of an answer that are read, and below, how deep its brackets may be nested."""
MAX_DEPTH = 6
_LAST_DIGIT = 1e-9
_BOX_KEYS = """
bbox_2d bbox box box_2d bounding_box boundingBox Position position coordinates coords
"""
BOX_KEYS = frozenset(_BOX_KEYS.split())
CONFIDENCE_KEYS = frozenset({"Confidence", "confidence", "score"})
CORNER_KEYS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
)

_N = r"\s*+(-?[0-9]{1,9}+(?>(?:\.[0-9]{1,9}+)?))\s*+"  # possessive: nothing is tried twice
_SECOND = (
    r"(?:(?:and\s++)?(?:the\s++)?(?:bottom|lower)[ -]?right(?:\s++corner)?\s*+(?:is|at)?\s*+:?+)?"
)
_BOX = re.compile(
    rf"\({_N},{_N}\)\s*+,?+\s*+{_SECOND}\s*+\({_N},{_N}\)|\({_N},{_N},{_N},{_N}\)|\[{_N},{_N},{_N},{_N}\]"
    rf"|\[\s*+\[{_N},{_N}\]\s*+,\s*+\[{_N},{_N}\]\s*+\]"
)
_BARE_SEPARATOR = r"(?:,\s*+|(?<=\s))"
_FOUR = re.compile(rf"{_N}{_BARE_SEPARATOR}{_N}{_BARE_SEPARATOR}{_N}{_BARE_SEPARATOR}{_N}\.?")
_KEY = re.compile("|".join(sorted(BOX_KEYS, key=len, reverse=True)))
_FENCE = re.compile(r"```(?>(?:json|JSON)?)")
_NOTHING = re.compile(r"no objects?(?: (?:found|detected|present|visible))?|none", re.IGNORECASE)
# What names the object: tokens of Qwen, InternVL and DeepSeek, a string in JSON that is cut off, "car 1:".
_REFERENCE = re.compile(
    r"<\|?\s*(?:object_(?:ref|def)_start|ref)\s*\|?>[^<]{0,400}<\|?\s*/?(?:object_(?:ref|def)_end|ref)\s*\|?>"
    r"|[\"'](?:label|name|caption|description|text|class|category)[\"']\s*:\s*(?:\"[^\"\n]*\"|'[^'\n]*')"
    r"|^[ \t]*(?:[-*][ \t]*)?[A-Za-z][A-Za-z ]{0,40}#?[0-9]{1,3}[ \t]*:",
    re.MULTILINE,
)
_TOKEN = re.compile(r"</?(?:bbox|box)>|<\|\s*/?(?:box_start|box_end|det|im_end)\s*\|>")
_CONFIDENCE = re.compile(
    r"\s*,?\s*\(?\s*(?:confidence|score)\s*[:=]?\s*(0?\.[0-9]{1,9}|[01](?:\.0{1,9})?)\s*\)?",
    re.IGNORECASE,
)
_CORNER = re.compile(r"\b[xy]_?(?:1|2|min|max)\s*[=:]\s*(?=-?[0-9])")
_TRAILING_COMMA = re.compile(r",(?=\s*[\]}])")
_BRACKET = re.compile(r"[\[\]{}]")
_OBJECTS_IN_A_ROW = re.compile(r"\}\s*,?\s*\{")
_SIGNS = str.maketrans("，（）［］：\u202f\u2009\xa0", ",()[]:   ")


class Detection(NamedTuple):
    """One stated box with its confidence, 1.0 where none is stated.

    Example: `Detection(Box(1, 2, 30, 40), 0.95)`
    """

    box: Box
    confidence: float = 1.0


def judge(answer: str, example: Example) -> Verdict:
    """The IoU of the stated box with the gold box; the parts are areas in fractions of the image."""
    return compare_with_gold(answer, gold_box(example), frame_of(example))


def judge_hit(answer: str, example: Example) -> Verdict:
    """1.0 if the stated box has an IoU of at least 0.5 with the gold box."""
    return compare_with_gold(
        answer, gold_box(example), frame_of(example), lambda *two: float(hits(*two))
    )


def judge_giou(answer: str, example: Example) -> Verdict:
    """(1 + generalised IoU) / 2 of the stated box with the gold box."""
    gold, frame = gold_box(example), frame_of(example)
    return compare_with_gold(answer, gold, frame, lambda *two: (1.0 + generalized_iou(*two)) / 2.0)


def compare_with_gold(
    answer: str, gold: Box, frame: Frame, worth: Callable[[Box, Box], float] = iou
) -> Verdict:
    """The verdict on an answer whose gold box is known, in the frame that the answer is to be in."""
    box, why = read_box(answer, frame) if answer else Read(None)
    box = None if box is None else settle(box, (gold,))
    in_image = None if box is None else convert(box, frame, UNIT)
    return Verdict(
        score=0.0 if box is None else worth(box, gold),
        parsed=None if box is None else format_box(box),
        gold=f"{format_box(gold)} {frame.coordinates}",
        note=why if box is None else f"IoU {iou(box, gold):.3f}",
        parts=overlap_parts(in_image, convert(gold, frame, UNIT)),
    )


def frame_of(example: Example) -> Frame:
    """The frame that answers are read in: `answer_coordinates`, or that of the gold answer where there is none.

    Pixels of the image as the model sees it are those of `answer_size`, which the encoder of a run measures; without it
    those of `input_size`. Raises UserError that names the example and what to set.
    """
    if example.meta.get("answer_coordinates") is None:
        return gold_frame_of(example)
    resized = "answer_size" if "answer_size" in example.meta else "input_size"
    return _frame(example, "answer_coordinates", resized)


def gold_frame_of(example: Example) -> Frame:
    """The frame of the gold answer's numbers: `coordinates`. Raises UserError that names the example and what to set."""
    return _frame(example, "coordinates", "input_size")


def _frame(example: Example, declared: str, resized: str) -> Frame:
    """The frame that the column `declared` names. resized: the column with the size of the image as the model sees it."""
    coordinates = example.meta.get(declared)
    if coordinates not in COORDINATES:
        raise UserError(
            f"Example {example.id!r} has the {declared.replace('_', ' ')} {coordinates!r}, and boxes cannot be compared without "
            f"knowing what their numbers mean. Give the data a column `{declared}` with one of {', '.join(COORDINATES)} "
            f"(`gpg_vl.eval` knows the one that a checkpoint was taught)."
        )

    if coordinates == "rel1000":
        return Frame("rel1000", 1000.0, 1000.0)
    if coordinates == "rel1":
        return Frame("rel1", 1.0, 1.0)

    # pixels need the size of the image that they are counted in
    column = resized if coordinates == "abs_resized" else "image_size"
    size = example.meta.get(column)
    if not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(_is_number(n) and n > 0 for n in size)
    ):
        raise UserError(
            f"Example {example.id!r} has {declared.replace('_', ' ')} {coordinates} and the {column} {size!r:.80}. Pixels need "
            f"the size of their image. Give the data a column `{column}` with [width, height]"
            f"{', after the resizing that the model sees' if column == resized else ''}."
        )
    return Frame(coordinates, float(size[0]), float(size[1]))


def gold_box(example: Example) -> Box:
    """The gold box, in the frame that answers are read in.

    Raises UserError that names the example if the gold answer is not one box inside of the image.
    """
    frame = gold_frame_of(example)
    box, why = _read_gold(example.answer, frame)
    if box is None:
        raise UserError(
            f"The gold answer {example.answer!r} of example {example.id!r} is not one box in {frame.coordinates} "
            f"({frame.width:g} x {frame.height:g}): {why}. Correct the row or its `coordinates`; for several boxes use the "
            f"reward 'detection'."
        )
    return convert(box, frame, frame_of(example))


def settle(box: Box, golds: Sequence[Box]) -> Box:
    """The gold box that equals a stated box to the nine digits behind the point that can be stated, else the box itself.

    A gold box that was converted has more digits than any answer, and the best answer is worth full marks.
    """
    return next(
        (
            gold
            for gold in golds
            if all(abs(a - b) <= _LAST_DIGIT for a, b in zip(box, gold, strict=True))
        ),
        box,
    )


class Read(NamedTuple):
    """A box, or why there is none."""

    box: Box | None
    why: str = ""


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _read_gold(answer: str, frame: Frame) -> Read:
    return read_box(gold_text(answer), frame)


def read_box(text: str, frame: Frame) -> Read:
    """The one box that a text states in a frame. Total, and linear in the length of the text."""
    boxes = parse_boxes(text)
    if boxes is None:
        return Read(None, "no box can be read")
    boxes = list(dict.fromkeys(boxes))
    if len(boxes) != 1:
        return Read(None, f"{len(boxes)} boxes where one is asked for")
    if not frame.holds(boxes[0]):
        return Read(None, f"{format_box(boxes[0])} is inverted, flat or outside of the image")
    return Read(boxes[0])


def parse_boxes(text: str) -> list[Box] | None:
    """The boxes in a text, in order and unchanged; None if it cannot be read. See `parse_detections`."""
    detections = parse_detections(text)
    return None if detections is None else [detection.box for detection in detections]


def parse_detections(text: str) -> list[Detection] | None:
    """The boxes that a text states, each with its confidence; [] for "No Objects"; None if it cannot be read.

    Outside of JSON there must be no digit that belongs to no box or label, so that nothing is picked out of a calculation,
    and no "not" right before a box. Numbers are ASCII, with at most nine digits before and after the point. More than
    `MAX_BOXES` boxes are not read.
    """
    if len(text) > MAX_LENGTH or has_hidden_characters(text):
        return None
    text = _strip_fence(text.translate(_SIGNS))
    if _NOTHING.fullmatch(text.strip("\"'. \t\r\n")):
        return []
    if text[:1] in {"[", "{"} and _is_deep(text):
        return None
    value = _parse_data(text) if text[:1] in {"[", "{"} else None
    if value is None:
        return _parse_text(_TOKEN.sub(" ", _REFERENCE.sub(" ", text)).strip())
    found = list(_detections(value))[: MAX_BOXES + 1]
    good = [detection for detection in found if detection is not None]
    return good if len(good) == len(found) <= MAX_BOXES else None


def _strip_fence(text: str) -> str:
    """The content of the only fenced block, else the text itself."""
    fences = list(_FENCE.finditer(text)) if text.count("```") == 2 else []
    return (text[fences[0].end() : fences[1].start()] if len(fences) == 2 else text).strip()


def _parse_text(text: str) -> list[Detection] | None:
    text = _CORNER.sub("", text)
    if four := _FOUR.fullmatch(text):
        return [Detection(Box(*map(float, four.groups())))]
    boxes, end = [], 0
    for found in _BOX.finditer(text):
        if _ends_in_denial(text[end : found.start()]):
            return None
        confidence_match = _CONFIDENCE.match(text, found.end())
        edges = (float(number) for number in found.groups() if number is not None)
        boxes.append(
            Detection(Box(*edges), float(confidence_match[1]) if confidence_match else 1.0)
        )
        if len(boxes) > MAX_BOXES:
            return None
        end = found.end()
    rest = _KEY.sub("", _CONFIDENCE.sub(" ", _BOX.sub(" ", text)))
    loose = any(character.isnumeric() and character not in "一两" for character in rest)
    return None if not boxes or loose or is_rejected(rest) else boxes


def _ends_in_denial(text: str) -> bool:
    """True if the text ends in a denial such as "it is not"; a denial further before may belong to the description: "who
    has no hat is at"."""
    spans = word_spans(text)
    denying = denials(text, spans)
    return bool(denying) and denying[-1][1] >= spans[-1][1]


def _parse_data(text: str) -> Any:
    """Parse a text as JSON, also with extra commas or consecutive objects, or as a Python literal; None if neither
    works."""
    slips = _TRAILING_COMMA.sub("", text)
    row = f"[{_OBJECTS_IN_A_ROW.sub('},{', slips)}]" if text.startswith("{") else slips
    readings: list[tuple[Callable[[str], Any], str]] = [
        (_json, slips),
        (python_literal, slips),
        (_json, row),
        (_json, slips.replace("'", '"')),
    ]
    # without other quotes and escapes this gives the same result as Python, and is faster
    if '"' not in slips and "\\" not in slips:
        readings.insert(1, readings.pop())
    values = (read(spelling) for read, spelling in readings)
    return next((value for value in values if value is not None), None)


def _json(text: str) -> Any:
    """The value of JSON, None for any other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _detections(value: Any) -> Iterator[Detection | None]:
    """Each box of a value of JSON; None for something that is no box."""
    if isinstance(value, dict):
        yield from _in_object(value)
    elif (box := _box(value)) is not None:
        yield Detection(box)
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, dict) or _box(item) is not None:
                yield from _detections(item)
            else:
                yield None
    else:
        yield None


def _in_object(value: dict[Any, Any]) -> Iterator[Detection | None]:
    """The box of an object, or those in the only list or object that it holds, such as {"objects": [...]}."""
    boxes = [value[key] for key in value if key in BOX_KEYS]
    for keys in CORNER_KEYS:
        if keys[0] in value and all(key in value for key in keys):
            boxes.append([value[key] for key in keys])
            break

    within = () if boxes else [one for one in value.values() if isinstance(one, list | dict)]
    if len(within) == 1 and (within[0] == [] or not _is_numbers(within[0]) or _box(within[0])):
        yield from _detections(within[0])
        return
    if len(boxes) == 1 and isinstance(boxes[0], dict):
        boxes = [list(one.box) for one in _in_object(boxes[0]) if one is not None]
    elif len(boxes) == 1 and isinstance(boxes[0], list) and boxes[0] and all(map(_box, boxes[0])):
        yield from _detections(boxes[0])  # several boxes under one label
        return

    stated = [value[key] for key in value if key in CONFIDENCE_KEYS]
    confidence = stated[0] if stated else 1.0
    box = _box(boxes[0]) if len(boxes) == 1 and len(stated) < 2 else None
    valid = box is not None and _is_number(confidence) and 0 <= confidence <= 1
    yield Detection(box, float(confidence)) if valid and box is not None else None


def _box(value: Any) -> Box | None:
    """A list of four numbers, or of two pairs."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_numbers, value)):
        value = [number for pair in value for number in pair]
    return Box(*map(float, value)) if _is_numbers(value) and len(value) == 4 else None


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _is_deep(text: str) -> bool:
    """True if brackets are nested deeper than `MAX_DEPTH`."""
    deepest = depth = 0
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def format_box(box: Box) -> str:
    """`(100,200),(300,400)`"""
    return "({:g},{:g}),({:g},{:g})".format(*box)
