"""How families write boxes: what scoring an answer has to know of the model that gave it. It imports no torch.

`gpg_vl.answers.math.rectangles` defines the conventions and computes with them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """How a family was taught to write boxes.

    Example: `Boxes(coordinates="rel1000", image_side=qwen_image_side)`
    """

    coordinates: str
    """One of `gpg_vl.answers.math.rectangles.COORDINATES`."""
    image_side: Callable[[Mapping[str, Any]], int]
    """(content of config.json) -> side of an image token in pixels, of which the seen image has a whole number."""


def qwen_image_side(config: Mapping[str, Any]) -> int:
    """Patches of 14 pixels, two by two in a token, unless the config says otherwise."""
    vision = config.get("vision_config") or {}
    side: int = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
    return side


def resized_size(
    width: int, height: int, min_pixels: int, max_pixels: int, side: int
) -> tuple[int, int]:
    """(width, height) of an image as the model sees it: multiples of `side`, area in the limits.

    The rule of Qwen's processors, which every family here follows, without the libraries that they need.
    """
    w, h = round(width / side) * side, round(height / side) * side
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(side, math.floor(edge / shrink / side) * side) for edge in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(edge * grow / side) * side for edge in (width, height))
    return int(w), int(h)


PUBLISHED = Boxes(coordinates="rel1000", image_side=qwen_image_side)
"""What Qwen2-VL, and so the published rows, answer in: assumed of answers of which nothing is said."""

SCORED_ONLY = {"qwen3_vl_moe": PUBLISHED}
"""Families whose answers can be scored though gpg_vl does not train them, by `model_type`."""
