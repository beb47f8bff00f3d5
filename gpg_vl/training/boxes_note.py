"""What the plan says of boxes: in which coordinates answers are read, who decided it, and in which the gold answers are."""

from collections.abc import Sequence

from gpg_vl.answers.math.rectangles import COORDINATES
from gpg_vl.data.check import DataReport
from gpg_vl.models.families import Family
from gpg_vl.training.training_sets import TrainingSet
from gpg_vl.types import Example


def describe_boxes(
    sets: Sequence[TrainingSet], reports: Sequence[DataReport], family: Family
) -> str:
    """The frames of the gold samples of each set, which the data check has placed; "" if none has boxes.

    Example: `answered in abs_resized, as qwen2_5_vl was taught; gold answers in abs_orig`
    """
    described = []
    for one, report in zip(sets, reports, strict=True):
        wanted = one.config.prompt.coordinates
        said = dict.fromkeys(_describe(gold, wanted, family) for gold in report.golds)
        listed = " and ".join(text for text in said if text)
        described.append(f"{one.name}: {listed}" if one.name and listed else listed)
    return "\n".join(text for text in described if text)


def _describe(gold: Example, wanted: str | None, family: Family) -> str:
    stored, answered = (gold.meta.get(name) for name in ("coordinates", "answer_coordinates"))
    if stored not in COORDINATES:
        return ""
    if answered is None:
        return f"answered in {stored}, as the gold answers are"
    if answered == wanted:
        why = "by prompt.coordinates"
    elif family.boxes is not None and answered == family.boxes.coordinates:
        why = f"as {family.model_type} was taught"
    else:
        why = "as the rows say"
    return f"answered in {answered}, {why}; gold answers in {stored}"
