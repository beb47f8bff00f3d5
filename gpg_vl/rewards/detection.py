"""Detection: every object of a kind, as boxes with confidences, and the reward for finding them all and nothing else."""

from collections.abc import Sequence

from gpg_vl.errors import UserError
from gpg_vl.rewards.boxes import HIT, Box, Frame, best_matching, iou
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.grounding import Detection, frame_of, parse_detections, shown
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

_META = {"coordinates": "rel1000"}
_GOLD = "[{'Position': [0, 0, 100, 100], 'Confidence': 1}, {'Position': [500, 500, 600, 600], 'Confidence': 1}]"
_ONE = "{'Position': [0, 0, 100, 100], 'Confidence': 1.0}"
EXAMPLES = (
    Sample(response=f"<answer>{_GOLD}</answer>", answer=_GOLD, meta=_META),
    Sample(response=f"<answer>[{_ONE}]</answer>", answer=_GOLD, meta=_META),
    Sample(response=f"<answer>[{_ONE}, {_ONE}]</answer>", answer=_GOLD, meta=_META),
    Sample(response="<answer>No Objects</answer>", answer=_GOLD, meta=_META),
    Sample(response="<answer>No Objects</answer>", answer="No Objects", meta=_META),
)


def explain(completion: Completion, example: Example) -> Explanation:
    """How `detection` reads a completion."""
    frame, gold = frame_of(example), gold_boxes(example)

    def read(text: str) -> str | None:
        found = read_detections(text, frame)
        return (
            None
            if found is None
            else ", ".join(f"{shown(d.box)} {d.confidence:g}" for d in found) or "no objects"
        )

    return explanation(completion, read, ", ".join(map(shown, gold)) or "no objects")


@explained(explain, EXAMPLES)
def detection(completion: Completion, example: Example) -> float:
    """Matched IoU, weighted with the confidence, over the gold boxes plus the confidence of the boxes that match none.

    Boxes are paired one to one with the gold boxes, so that the total is greatest, where their IoU is at least 0.5. The
    score is `sum(confidence * IoU) / (gold boxes + sum of the confidence of unmatched boxes)`: 1.0 for every gold box,
    found exactly and with confidence 1, and nothing else. A box too many costs what it was sure of; a box without a
    confidence counts as sure. `No Objects`, or `[]`, is worth 1.0 if there is no gold box. A text with a box that is
    inverted or outside of the image is worth 0.0. Needs what `grounding` needs.
    """
    frame, gold = frame_of(example), gold_boxes(example)
    candidate = extract_answer(completion.response).candidate
    found = None if candidate is None else read_detections(candidate, frame)
    return 0.0 if found is None else detection_score(found, gold)


def gold_boxes(example: Example) -> list[Box]:
    """The gold boxes, perhaps none. Raises UserError that names the example if the gold answer cannot be read."""
    frame = frame_of(example)
    found = read_detections(gold_text(example.answer), frame)
    if found is None:
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} is no list of boxes in {frame.coordinates} "
            f"({frame.width:g} x {frame.height:g}). Boxes inside of the image with their corners in order, or "
            f"'No Objects', are allowed. Correct the row or its `coordinates`."
        )
    return [detection.box for detection in found]


def read_detections(text: str, frame: Frame) -> list[Detection] | None:
    """The boxes that a text states in a frame, each stated once; None if it cannot be read, or a box is not in order."""
    found = parse_detections(text)
    if found is None or not all(frame.holds(detection.box) for detection in found):
        return None
    surest: dict[Box, float] = {}
    for detection in found:
        surest[detection.box] = max(detection.confidence, surest.get(detection.box, 0.0))
    return [Detection(box, confidence) for box, confidence in surest.items()]


def match_boxes(
    found: Sequence[Detection], gold: Sequence[Box], threshold: float = HIT
) -> list[tuple[int, int]]:
    """The pairs (place in `found`, place in `gold`) with the greatest total of confidence * IoU, all IoUs >= threshold."""
    if not found or not gold:
        return []

    def gain(one: Detection, other: Box) -> float:
        overlap = iou(one.box, other)
        return one.confidence * overlap if overlap >= threshold else 0.0

    return best_matching([[gain(one, other) for other in gold] for one in found])


def detection_score(
    found: Sequence[Detection], gold: Sequence[Box], threshold: float = HIT
) -> float:
    """The score that `detection` describes, from 0 to 1."""
    if not gold:
        return float(not found)
    pairs = match_boxes(found, gold, threshold)
    matched = {place for place, _ in pairs}
    right = sum(found[i].confidence * iou(found[i].box, gold[j]) for i, j in pairs)
    wrong = sum(one.confidence for place, one in enumerate(found) if place not in matched)
    return right / (len(gold) + wrong)
