"""Writes gold answers that are boxes in the coordinates that answers are read in, whatever their own are."""

import json
import re
from collections.abc import Sequence

from gpg_vl.answers.box import frame_of, gold_frame_of, parse_boxes
from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.math.rectangles import Box, Frame, convert
from gpg_vl.types import Example

DIGITS = 9
"""Digits behind the point that a box can be stated with."""
_NUMBER = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?(?![\w])")


def answer_as_stated(example: Example, *, whole: bool = False) -> str:
    """The gold answer as a right response states it: its boxes in the frame of answers, all else as the row has it.

    A row without `coordinates`, one whose answer holds no box, and one whose two frames are equal keep their text.

    whole: numbers are rounded to whole units where the frame counts in such, as models write them; else they are exact to
    `DIGITS`. Raises UserError for a row with coordinates of which a size is missing.
    """
    if "coordinates" not in example.meta:
        return example.answer
    source, target = gold_frame_of(example), frame_of(example)
    gold = gold_text(example.answer)
    boxes = parse_boxes(gold)
    if source == target or not boxes:
        return example.answer

    digits = 0 if whole and target.coordinates != "rel1" else DIGITS
    stated = [write_edges(convert(box, source, target), target, digits) for box in boxes]
    if any(x1 == x2 or y1 == y2 for x1, y1, x2, y2 in stated):
        # thinner than a unit: rounded, it would be no box
        stated = [write_edges(convert(box, source, target), target) for box in boxes]
    before, found, after = example.answer.rpartition(gold)
    text = _replace_edges(gold, boxes, stated)
    return before + text + after if found else text


def write_edges(box: Box, frame: Frame, digits: int = DIGITS) -> list[str]:
    """The edges of a box as texts, moved inside of the image where rounding had put them outside."""
    limits = (frame.width, frame.height) * 2
    edges = (min(max(edge, 0.0), limit) for edge, limit in zip(box, limits, strict=True))
    return [_shortest(f"{edge:.{digits}f}") for edge in edges]


def _shortest(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _replace_edges(text: str, boxes: Sequence[Box], stated: Sequence[list[str]]) -> str:
    """The text with the edges of each box replaced, or JSON with the boxes alone if they do not stand in it one by one."""
    numbers, at, end, parts = list(_NUMBER.finditer(text)), 0, 0, []
    for box, edges in zip(boxes, stated, strict=True):
        while at + 4 <= len(numbers) and [float(n[0]) for n in numbers[at : at + 4]] != list(box):
            at += 1
        if at + 4 > len(numbers):
            return json.dumps([{"bbox_2d": [float(edge) for edge in one]} for one in stated])
        for number, edge in zip(numbers[at : at + 4], edges, strict=True):
            parts += [text[end : number.start()], edge]
            end = number.end()
        at += 4
    return "".join(parts) + text[end:]
