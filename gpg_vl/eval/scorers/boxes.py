"""Scorers for boxes: the owner's metric, and the rules of lmms-eval, VLMEvalKit and VLM-R1. All scores are IoUs.

A doc has its gold box in pixels of the image file in the column `box`, and in `coordinates` the form of boxes in answers.
Legacy rules compare in fractions of the image. The parts of a score are the areas that a cumulative IoU adds up.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from gpg_vl.answers.box import format_box, frame_of, parse_boxes
from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.math.rectangles import UNIT, Box, Frame, convert, iou, overlap_parts
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.coordinates import gold_box, pixels_of, write_box
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.task import Doc, make_verdict

_N = r"[-+]?(?:\d++(?>(?:\.\d++)?)|\.\d++)(?>(?:[eE][-+]?\d++)?)"
_SEP = r"(?:\s*+,\s*+|\s++)"
_NUMBER = re.compile(_N)
_BRACKETED = re.compile(rf"\[\s*+({_N}){_SEP}({_N}){_SEP}({_N}){_SEP}({_N})\s*+\]")
_FOUR = re.compile(rf"(?<!\d)({_N}){_SEP}({_N}){_SEP}({_N}){_SEP}({_N})")
_REC = r"(-?\d++(?>(?:\.\d++)?))"
_LMMS_REC = re.compile(rf"\[\s*+{_REC},\s*+{_REC},\s*+{_REC},\s*+{_REC}\s*+\]")
_VLM_R1 = re.compile(r"\[(\d++),\s*+(\d++),\s*+(\d++),\s*+(\d++)\]\s*+")
_FENCE = re.compile(r"```(?:json)?\s*+(.*?)```", re.DOTALL)
_LONGEST = 20_000  # characters that are searched for JSON
_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")


# --- what scorers of boxes share --------------------------------------------------------------------------------------


def relative(doc: Doc, column: str = "box") -> Box:
    """The gold box in fractions of the image."""
    return convert(gold_box(doc, column), pixels_of(doc), UNIT)


def box_score(box: Box, gold: Box, parsed: str, *, slack: float = 0.0, note: str = "") -> Verdict:
    """The IoU of two boxes without changes to them; corners in the wrong order give 0. `slack` is added to the union."""
    parts = overlap_parts(box, gold)
    raw = (box.x2 - box.x1) * (box.y2 - box.y1)
    union = raw + gold.area - parts["intersection"] + slack
    score = parts["intersection"] / union if union > 0 else 0.0
    return Verdict(
        score=min(1.0, score), parsed=parsed, gold=format_box(gold), note=note, parts=parts
    )


def no_box(doc: Doc) -> Verdict:
    return make_verdict(doc, 0.0, None, parts=overlap_parts(None, relative(doc)))


def gold_boxes(doc: Doc) -> tuple[Response, ...]:
    """The gold box as text, bare and in tags, in the doc's convention."""
    text = write_box(gold_box(doc), doc)
    return Response(text=text), Response(text=f"<think>there</think><answer>{text}</answer>")


def published_boxes(doc: Doc) -> tuple[Response, ...]:
    """The gold box in notations that published rules ask for: fractions; pixels of the file; of the resized image."""
    gold, (width, height) = gold_box(doc), doc.columns["input_size"]
    resized = convert(gold, pixels_of(doc), Frame("abs_resized", width, height))
    boxes = (list(relative(doc)), list(gold), [round(edge) for edge in resized])
    return (
        *(Response(text=str(box)) for box in boxes),
        Response(text=f'<answer>{{"bbox_2d": {boxes[-1]}}}</answer>'),
    )


def blind_iou(doc: Doc) -> float:
    """The IoU of a blind guess: the whole image."""
    return relative(doc).area


# --- the owner's metric -----------------------------------------------------------------------------------------------


def last_box(doc: Doc, response: Response) -> Verdict:
    """The last box of the answer, its corners sorted and clipped to the image: the owners' metric, which leaves open how a
    box is read."""
    extracted = extract_answer(response.text, prefilled_think=response.prefilled_think)
    boxes = parse_boxes(extracted.candidate) if extracted.candidate else None
    if not boxes:
        return no_box(doc)
    frame = frame_of(doc.example)
    box = _clip(convert(boxes[-1], frame, UNIT))
    several = f"{len(boxes)} boxes" if len(boxes) > 1 else ""
    note = ", ".join(filter(None, (several, *extracted.flags)))
    return box_score(box, relative(doc), format_box(boxes[-1]), note=note)


def _clip(box: Box) -> Box:
    """Corners in order, inside of the unit square."""
    edges = [min(max(edge, 0.0), 1.0) for edge in box]
    return Box(
        min(edges[0], edges[2]),
        min(edges[1], edges[3]),
        max(edges[0], edges[2]),
        max(edges[1], edges[3]),
    )


# --- published rules ---------------------------------------------------------------------------------------------------


def lmms_rec(doc: Doc, response: Response) -> Verdict:
    """lmms-eval's RefCOCO rule: the first `[x, y, x, y]`, read as fractions of the image whatever it holds; else zeros."""
    found = _LMMS_REC.search(strip_reasoning(response.text))
    if found is None:
        return no_box(doc)
    return box_score(Box(*map(float, found.groups())), relative(doc), found[0])


def lmms_grounding(doc: Doc, response: Response) -> Verdict:
    """lmms-eval's grounding rule: of all boxes in the text, each as pixels and as thousandths, the best one.

    The best one is chosen with the gold box, so this is an oracle and no accuracy: a list of boxes all over the image
    scores well.
    """
    text, gold = strip_reasoning(response.text), relative(doc)
    numbers = list(_json_boxes(text)) or [tuple(map(float, found)) for found in _FOUR.findall(text)]
    frames = (pixels_of(doc), Frame("rel1000", 1000.0, 1000.0))
    tried = [convert(Box(*four), frame, UNIT) for four in numbers for frame in frames]
    if not tried:
        none = no_box(doc)
        return replace(none, parts={**none.parts, "centre": 0.0, "rows": 1.0})
    best = max(tried, key=lambda box: iou(box, gold))
    centre = ((best.x1 + best.x2) / 2, (best.y1 + best.y2) / 2)
    inside = gold.x1 <= centre[0] <= gold.x2 and gold.y1 <= centre[1] <= gold.y2
    one = box_score(best, gold, str(len(numbers)) + " boxes")
    return replace(one, parts={**one.parts, "centre": float(inside), "rows": 1.0})


def vlmevalkit_box(doc: Doc, response: Response) -> Verdict:
    """VLMEvalKit's rule: the first bracketed four numbers, else the first four numbers of the text, reasoning included.

    Their unit is guessed from the largest number: up to 1.5 fractions, up to 1000 thousandths, else pixels. Pixels of an
    image up to 1000 wide are therefore misread. Corners are sorted and clipped.
    """
    found = _BRACKETED.search(response.text)
    numbers = (
        found.groups() if found else [one[0] for one in islice(_NUMBER.finditer(response.text), 4)]
    )
    if len(numbers) < 4:
        return no_box(doc)
    box = Box(*(max(-1e9, min(1e9, float(number))) for number in numbers))
    largest = max(map(abs, box))
    frame = (
        UNIT
        if largest <= 1.5
        else Frame("rel1000", 1000.0, 1000.0)
        if largest <= 1000
        else pixels_of(doc)
    )
    return box_score(_clip(convert(box, frame, UNIT)), relative(doc), format_box(box))


def vlm_r1(doc: Doc, response: Response) -> Verdict:
    """VLM-R1's rule: in the first `<answer>`, the last whole-number box of the first line with one inside braces, in pixels
    of the resized image; else zeros. There a hit is an IoU above 0.5, here of at least 0.5, and there an overlap of one pixel
    is none.
    """
    start = response.text.find("<answer>")
    end = response.text.find("</answer>", start)
    answer = response.text[start + len("<answer>") : end] if 0 <= start < end else ""
    edges = vlm_r1_edges(answer)
    if edges is None:
        return no_box(doc)
    width, height = doc.columns["input_size"]
    box = Box(*(float(edge[:18]) for edge in edges))
    return box_score(
        convert(box, Frame("abs_resized", width, height), UNIT), relative(doc), format_box(box)
    )


def vlm_r1_edges(answer: str) -> tuple[str, ...] | None:
    r"""The match of the published `\{.*\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]\s*.*\}`, in linear time.

    Its dots match no line break, but its blanks do: a box opens on the line of a `{` before it, may span lines, and needs
    a `}` on the line on which the text continues after it. Greedy: the last such box of the first line that has one.
    """
    newline, opening, closing = _seeker(answer, "\n"), _seeker(answer, "{"), _seeker(answer, "}")
    last: tuple[str, ...] | None = None
    opened = line_end = -1
    for box in _VLM_R1.finditer(answer):
        if box.start() > line_end:  # the first box of its line
            if last is not None:
                return last
            opened = opening(answer.rfind("\n", max(line_end, 0), box.start()) + 1)
            line_end = newline(box.start())
        if opened < box.start() and closing(box.end()) < newline(box.end()):
            last = box.groups()
    return last


def _seeker(text: str, mark: str) -> Callable[[int], int]:
    """A function that returns the position of the next `mark` from a start on (or the end of the text). With increasing starts
    it reads the text only once."""
    found = -1

    def seek(start: int) -> int:
        nonlocal found
        if found < start:
            found = text.find(mark, start)
            found = len(text) if found < 0 else found
        return found

    return seek


def _json_boxes(text: str) -> Iterator[tuple[float, ...]]:
    """The boxes of the first reading of the text that is JSON and holds some."""
    text = text[-_LONGEST:]
    readings = [
        *_FENCE.findall(text),
        text,
        *(text[text.find(a) : text.rfind(b) + 1] for a, b in ("[]", "{}")),
    ]
    for reading in readings:
        try:
            boxes = list(_boxes_in(json.loads(reading)))
        except (ValueError, RecursionError):
            continue
        if boxes:
            yield from boxes
            return


def _boxes_in(value: Any) -> Iterator[tuple[float, ...]]:
    if isinstance(value, Mapping):
        for key in _KEYS:
            if key in value:
                yield from _boxes_in(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 4 and all(
            isinstance(edge, int | float) and abs(edge) < 1e9 for edge in value
        ):
            yield tuple(float(edge) for edge in value)
        else:
            for item in value:
                yield from _boxes_in(item)
