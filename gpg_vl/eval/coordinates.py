"""The conventions of boxes in answers. They are declared, never guessed from the size of the numbers.

A model's convention follows from its family; a prompt may prescribe another. Docs carry it in their columns, with the
sizes it needs, so that a log can be scored again by itself. `check_gold` writes every gold box in the convention in use
and demands that it is read back, which a wrong size or convention would not survive.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gpg_vl.answers.box import frame_of
from gpg_vl.answers.box_text import write_edges
from gpg_vl.answers.math.rectangles import COORDINATES, Box, Frame, convert
from gpg_vl.data.resizing import resized_size
from gpg_vl.errors import UserError
from gpg_vl.eval.settings import EvalSettings
from gpg_vl.eval.task import Doc
from gpg_vl.models.families import boxes_of, known_for_boxes
from gpg_vl.models.families.boxes import PUBLISHED, Boxes

DEFAULT = PUBLISHED.coordinates
"""The default for a file of answers: the convention of Qwen2-VL, and so of the published results."""
DEFAULT_SIDE = PUBLISHED.image_side({})
"""Pixels along the side of an image token, likewise."""


class Convention(NamedTuple):
    """How boxes are written in answers, and what the size of a resized image depends on.

    Example: `Convention("abs_resized", 28)`
    """

    coordinates: str
    side: int
    """Pixels along the side of an image token."""


def model_convention(folder: Path | None, wanted: str | None = None) -> Convention:
    """The convention that a checkpoint was trained on, or the one that is wanted of it. Raises UserError.

    folder: None for answers of an unknown model, which are taken for those of the published rows.
    wanted: the convention that a prompt or a user prescribes; None: that of the model's family.
    """
    if folder is None:
        return convention_of(None, {}, wanted, "")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read: {error}. Give a complete checkpoint folder."
        ) from None
    if not isinstance(config, dict):
        raise UserError(
            f"{folder / 'config.json'} holds {type(config).__name__}, not an object of settings. Give a complete checkpoint "
            f"folder."
        )
    family = config.get("model_type")
    boxes = boxes_of(str(family))
    if boxes is None and wanted is not None:
        return Convention(wanted, DEFAULT_SIDE)
    if boxes is None:
        raise UserError(
            f"How the model type {family!r} writes boxes is not known (it is of those among "
            f"{', '.join(known_for_boxes())} that see images). Set it with --coordinates, one of {', '.join(COORDINATES)}."
        )
    return convention_of(boxes, config, wanted, f"The model type {family}")


def convention_of(
    boxes: Boxes | None, config: Mapping[str, Any], wanted: str | None, who: str
) -> Convention:
    """The same for a family whose record is known. config: the content of config.json. who: the model, for messages."""
    if boxes is None:
        return Convention(wanted or DEFAULT, DEFAULT_SIDE)
    coordinates = wanted or boxes.coordinates
    boxes.refuse(coordinates, who)
    return Convention(coordinates, boxes.image_side(config))


def with_coordinates(
    docs: Sequence[Doc], coordinates: str, settings: EvalSettings, side: int = DEFAULT_SIDE
) -> list[Doc]:
    """The docs with the columns `coordinates`, `image_size` and `input_size`, from their `width` and `height`."""
    return [
        _with_coordinates(doc, coordinates, settings, side) if doc.problem is None else doc
        for doc in docs
    ]


def _with_coordinates(doc: Doc, coordinates: str, settings: EvalSettings, side: int) -> Doc:
    width, height = doc.columns["width"], doc.columns["height"]
    limits = settings.limits
    more = {
        "coordinates": coordinates,
        "image_size": [width, height],
        "input_size": list(resized_size(width, height, limits.min_pixels, limits.max_pixels, side)),
    }
    return replace(doc, example=replace(doc.example, meta={**doc.columns, **more}))


def write_box(box: Box, doc: Doc) -> str:
    """A box in pixels of the image file as a right answer in the doc's convention: `(x1,y1),(x2,y2)`."""
    frame = frame_of(doc.example)
    edges = convert(box, pixels_of(doc), frame)
    return "({},{}),({},{})".format(*write_edges(edges, frame))


def pixels_of(doc: Doc) -> Frame:
    """The frame of the doc's image file in its own pixels."""
    return Frame("abs_orig", float(doc.columns["width"]), float(doc.columns["height"]))


def gold_box(doc: Doc, column: str = "box") -> Box:
    """The gold box in pixels of the image file."""
    return Box(*(float(edge) for edge in doc.columns[column]))
