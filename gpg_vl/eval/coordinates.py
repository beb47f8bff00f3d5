"""How boxes are written in answers: a convention that is said, never guessed from how large the numbers are.

A model's convention follows from its family; a prompt may prescribe another. Docs carry it in their columns, with the
sizes it needs, so that a log can be scored again by itself. `check_gold` writes every gold box in the convention in use
and demands that it is read back, which a wrong size or convention would not survive.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpg_vl.errors import UserError
from gpg_vl.eval.settings import EvalSettings
from gpg_vl.eval.task import Doc
from gpg_vl.rewards.boxes import COORDINATES, FAMILY_COORDINATES, Box, Coordinates, Frame, convert
from gpg_vl.rewards.grounding import frame_of

DEFAULT: Coordinates = "rel1000"
"""Assumed for a file of answers of which nothing is said: what Qwen2-VL, and so the published rows, answer in."""
_SIDE = 28  # pixels of an image token of Qwen2-VL and Qwen2.5-VL


def model_coordinates(folder: Path) -> tuple[str, int]:
    """The convention a checkpoint was taught, and the side of its image tokens in pixels. Raises UserError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read: {error}. Give a complete checkpoint folder."
        ) from None
    family = config.get("model_type")
    if family not in FAMILY_COORDINATES:
        raise UserError(
            f"How the model type {family!r} writes boxes is not known ({', '.join(FAMILY_COORDINATES)} are). Say it with "
            f"--coordinates, one of {', '.join(COORDINATES)}."
        )
    vision = config.get("vision_config") or {}
    return FAMILY_COORDINATES[family], vision.get("patch_size", 14) * vision.get(
        "spatial_merge_size", 2
    )


def located(
    docs: Sequence[Doc], coordinates: str, settings: EvalSettings, side: int = _SIDE
) -> list[Doc]:
    """The docs with the columns `coordinates`, `image_size` and `input_size`, from their `width` and `height`."""
    return [
        _located(doc, coordinates, settings, side) if doc.problem is None else doc for doc in docs
    ]


def _located(doc: Doc, coordinates: str, settings: EvalSettings, side: int) -> Doc:
    width, height = doc.columns["width"], doc.columns["height"]
    limits = settings.limits
    more = {
        "coordinates": coordinates,
        "image_size": [width, height],
        "input_size": list(resized(width, height, limits.min_pixels, limits.max_pixels, side)),
    }
    columns = {**doc.columns, **more}
    return replace(doc, columns=columns, example=replace(doc.example, meta=columns))


def resized(
    width: int, height: int, min_pixels: int, max_pixels: int, side: int = _SIDE
) -> tuple[int, int]:
    """(width, height) of the image as Qwen's processors hand it to the model: multiples of `side`, area in the limits."""
    w, h = round(width / side) * side, round(height / side) * side
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(side, math.floor(edge / shrink / side) * side) for edge in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(edge * grow / side) * side for edge in (width, height))
    return int(w), int(h)


def written(box: Box, doc: Doc) -> str:
    """A box in pixels of the image file as a right answer in the doc's convention: `(x1,y1),(x2,y2)`."""
    frame = frame_of(doc.example)
    edges = convert(box, pixels_of(doc), frame)
    limits = (frame.width, frame.height, frame.width, frame.height)
    numbers = (
        f"{min(max(edge, 0.0), limit):.9f}".rstrip("0").rstrip(".")
        for edge, limit in zip(edges, limits, strict=True)
    )
    return "({},{}),({},{})".format(*numbers)


def pixels_of(doc: Doc) -> Frame:
    """The frame of the doc's image file in its own pixels."""
    return Frame("abs_orig", float(doc.columns["width"]), float(doc.columns["height"]))
