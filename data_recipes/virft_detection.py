"""ViRFT detection: all objects of a category in a picture, as boxes with confidences.

    python data_recipes/virft_detection.py coco_8_cate_4_shot --out data/detection
    python data_recipes/virft_detection.py coco --source ~/ViRFT_COCO --out data/detection_coco

Parquet with `image`, `problem` and `solution`: `<answer>[{'Position': [x1, y1, x2, y2], 'Confidence': c}, ...]</answer>` in
thousandths of the picture, or `<answer>No Objects</answer>`. The problem is the prompt, as it stands. Every box must have
its corners in order, inside of the picture; rows with others are reported. A gold box is certain, so the answer states each
with confidence 1.0, whatever the solution says; `meta` keeps the published confidences.
"""

import json
import re
import sys
from typing import Any

from gpg_vl.answers.math.rectangles import Frame
from gpg_vl.data.images import Picture
from gpg_vl.data.recipe import (
    BrokenRowError,
    Option,
    RawRow,
    Recipe,
    finite_numbers,
    main,
    untagged,
)
from gpg_vl.data.recipe.boxes import CONVENTIONS, RESIZING, frame_in, numbers
from gpg_vl.types import Example

_CATEGORY = re.compile(r"category '([^\n]{1,100}?)' in the image")
_LONGEST = 100_000


def convert(row: RawRow, *, coordinates: str, max_pixels: int, side: int) -> Example:
    """The problem as it stands, with the gold boxes in the form it asks for."""
    problem, objects = row.text("problem"), objects_of(untagged(row.text("solution")))
    picture = row.picture("image")
    category = _CATEGORY.search(problem)
    frame = frame_in(picture, coordinates, max_pixels=max_pixels, side=side)
    sure = [
        {"Position": written(item["Position"], picture, frame), "Confidence": 1.0}
        for item in objects
    ]
    return Example(
        id=row.id,
        images=(picture.data,),
        prompt=problem,
        answer=repr(sure) if sure else "No Objects",
        task=category[1] if category else "",
        meta={
            "coordinates": frame.coordinates,
            "boxes": [item["Position"] for item in objects],
            "confidences": [item["Confidence"] for item in objects],
            "image_size": [picture.width, picture.height],
            **({"input_size": [frame.width, frame.height]} if coordinates == "abs_resized" else {}),
        },
    )


def written(position: list[Any], picture: Picture, frame: Frame) -> list[Any]:
    """A published box in a frame: as it stands in thousandths, else in whole numbers."""
    if frame.coordinates == "rel1000":
        return position
    sides = (picture.width, picture.height) * 2
    left, top, right, bottom = (n * side / 1000 for n, side in zip(position, sides, strict=True))
    return list(numbers((left, top, right, bottom), picture, frame))


def objects_of(solution: str) -> list[dict[str, Any]]:
    """The objects of a solution, none for `No Objects`. Its quotes are those of Python, so they are turned for JSON."""
    if solution.casefold() == "no objects":
        return []
    if len(solution) > _LONGEST:
        raise BrokenRowError(
            f"The solution has {len(solution)} characters; at most {_LONGEST} are read."
        )
    try:
        objects = json.loads(solution.replace("'", '"'))
    except (ValueError, RecursionError) as error:
        raise BrokenRowError(
            f"The solution {solution!r:.80} is no list of boxes: {error}."
        ) from error
    if (
        not isinstance(objects, list)
        or not objects
        or not all(isinstance(item, dict) for item in objects)
    ):
        raise BrokenRowError(
            f"The solution {solution!r:.80} is neither `No Objects` nor a list of boxes."
        )
    for item in objects:
        _refuse_no_box(item)
    return objects


def _refuse_no_box(item: dict[str, Any]) -> None:
    box = finite_numbers(item.get("Position"), "A Position")
    (confidence,) = finite_numbers([item.get("Confidence")], "A Confidence")
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1000 and 0 <= box[1] < box[3] <= 1000):
        raise BrokenRowError(
            f"The Position {item.get('Position')} is no box with its corners in order from 0 to 1000."
        )
    if not 0 <= confidence <= 1:
        raise BrokenRowError(f"The Confidence {confidence:g} is not from 0 to 1.")


def settings(**options: Any) -> dict[str, Any]:
    return {"rewards": {"weights": {"detection": 1.0, "format": 1.0}}}


def recipe(name: str, title: str, hub: str, rows: int) -> Recipe:
    return Recipe(
        name=f"virft_{name}",
        title=f"ViRFT detection: {title}",
        help=__doc__ or "",
        licence="apache-2.0, as the hub's card says",
        hub=hub,
        columns=("image", "problem", "solution"),
        documented={"train": rows},
        convert=convert,
        options={
            "coordinates": Option(
                default="rel1000", choices=CONVENTIONS, help="what the answer's numbers count"
            ),
            **RESIZING,
        },
        settings=settings,
        notes=(
            "`coordinates` says what the answer's numbers count; `boxes` are the published ones, in thousandths.",
        ),
    )


RECIPES = {
    "coco": recipe("coco", "COCO", "laolao77/ViRFT_COCO", 6000),
    "coco_base65": recipe(
        "coco_base65", "65 base categories of COCO", "laolao77/ViRFT_COCO_base65", 6000
    ),
    "coco_8_cate_4_shot": recipe(
        "coco_8_cate_4_shot",
        "8 categories of COCO, 4 shots",
        "laolao77/ViRFT_COCO_8_cate_4_shot",
        32,
    ),
    "lvis_few_shot": recipe(
        "lvis_few_shot", "rare categories of LVIS, few shots", "laolao77/ViRFT_LVIS_few_shot", 65
    ),
}

if __name__ == "__main__":
    sys.exit(main(RECIPES))
