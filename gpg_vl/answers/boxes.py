"""Detection: reads boxes of all objects of a kind, with confidences, and scores them against the gold boxes."""

from collections.abc import Sequence
from functools import lru_cache

from gpg_vl.answers.box import (
    Detection,
    format_box,
    frame_of,
    gold_frame_of,
    parse_detections,
    settle,
)
from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.math.rectangles import HIT, Box, Frame, best_matching, convert, iou
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example


def judge(answer: str, example: Example) -> Verdict:
    """The score of `detection_score`; the whole text scores 0 if one of its boxes is invalid."""
    gold, frame = gold_boxes(example), frame_of(example)
    found = read_detections(answer, frame) if answer else None
    if found is not None and frame != gold_frame_of(example):
        found = [one._replace(box=settle(one.box, gold)) for one in found]
    text = ", ".join(map(format_box, gold)) or "no objects"
    if found is None:
        return Verdict(score=0.0, parsed=None, gold=text)

    parsed = ", ".join(f"{format_box(box)} {confidence:g}" for box, confidence in found)
    return Verdict(score=detection_score(found, gold), parsed=parsed or "no objects", gold=text)


def gold_boxes(example: Example) -> list[Box]:
    """The gold boxes, perhaps none, in the frame that answers are read in.

    Raises UserError that names the example if the gold answer cannot be read.
    """
    frame = gold_frame_of(example)
    gold = _gold_boxes(example.answer, frame)
    if gold is None:
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} is no list of boxes in {frame.coordinates} "
            f"({frame.width:g} x {frame.height:g}). Boxes inside of the image with their corners in order, or "
            f"'No Objects', are allowed. Correct the row or its `coordinates`."
        )
    return [convert(box, frame, frame_of(example)) for box in gold]


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _gold_boxes(answer: str, frame: Frame) -> tuple[Box, ...] | None:
    found = read_detections(gold_text(answer), frame)
    return None if found is None else tuple(detection.box for detection in found)


def read_detections(text: str, frame: Frame) -> list[Detection] | None:
    """The boxes that a text states in a frame, each stated once; None if it cannot be read, or a box is not in order."""
    found = parse_detections(text)
    if found is None or not all(frame.holds(detection.box) for detection in found):
        return None
    highest: dict[Box, float] = {}
    for detection in found:
        highest[detection.box] = max(detection.confidence, highest.get(detection.box, 0.0))
    return [Detection(box, confidence) for box, confidence in highest.items()]


def match_boxes(
    found: Sequence[Detection], gold: Sequence[Box], threshold: float = HIT
) -> list[tuple[int, int]]:
    """The pairs (place in `found`, place in `gold`) with the greatest total of confidence * IoU, all IoUs >= threshold."""
    overlaps = [[iou(box, other) for other in gold] for box, _ in found]
    return best_matching(
        [
            [one.confidence * overlap if overlap >= threshold else 0.0 for overlap in row]
            for one, row in zip(found, overlaps, strict=True)
        ]
    )


def detection_score(
    found: Sequence[Detection], gold: Sequence[Box], threshold: float = HIT
) -> float:
    """`sum(confidence * IoU) / (gold boxes + confidence of the boxes that match none)`, from 0 to 1.

    Boxes are paired one to one, so that the total is greatest, where their IoU is at least `threshold`.
    """
    if not gold:
        return float(not found)
    pairs = match_boxes(found, gold, threshold)
    matched = {place for place, _ in pairs}
    right = sum(found[i].confidence * iou(found[i].box, gold[j]) for i, j in pairs)
    wrong = sum(one.confidence for place, one in enumerate(found) if place not in matched)
    return right / (len(gold) + wrong)
