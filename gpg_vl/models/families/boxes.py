"""How families write boxes: what scoring an answer has to know of the model that gave it. It imports no torch.

`gpg_vl.answers.math.rectangles` defines the conventions and computes with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gpg_vl.answers.math.rectangles import COORDINATES
from gpg_vl.errors import UserError
from gpg_vl.types import Coordinates


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """How a family was taught to write boxes.

    Example: `Boxes(coordinates="rel1000", image_side=qwen_image_side)`
    """

    coordinates: Coordinates
    """The frame of its boxes where neither the row nor the config names one."""
    image_side: Callable[[Mapping[str, Any]], int]
    """(content of config.json) -> side of an image token in pixels, of which the seen image has a whole number."""
    tiled: bool = False
    """Whether images are cut into tiles. There is then no one size in which the model sees an image, and boxes in its pixels,
    `abs_resized`, are refused."""

    def refuse(self, coordinates: str, who: str) -> None:
        """Raises UserError if boxes cannot be counted in these coordinates. who: the model, at the start of a sentence."""
        if self.tiled and coordinates == "abs_resized":
            others = ", ".join(one for one in COORDINATES if one != coordinates)
            raise UserError(
                f"{who} cuts images into tiles, so there is no one size in which it sees an image, and boxes cannot be in "
                f"abs_resized, pixels of that size. Allowed are {others}; {self.coordinates} is its own."
            )


def qwen_image_side(config: Mapping[str, Any], *, patch: int = 14) -> int:
    """Patches of so many pixels, two by two in a token, unless the config says otherwise."""
    vision = config.get("vision_config") or {}
    side: int = vision.get("patch_size", patch) * vision.get("spatial_merge_size", 2)
    return side


def any_side(config: Mapping[str, Any]) -> int:
    """Of a family that sees no image in one resized size: nothing depends on it."""
    return qwen_image_side({})


PUBLISHED = Boxes(coordinates="rel1000", image_side=qwen_image_side)
"""What Qwen2-VL, and so the published rows, answer in: assumed of answers of which nothing is said."""

IN_TILES = Boxes(coordinates="rel1000", image_side=any_side, tiled=True)
"""Of families that cut images into tiles: thousandths of the image do not depend on the tiles."""

PATCHES_OF_16 = replace(PUBLISHED, image_side=partial(qwen_image_side, patch=16))
"""Of the third generation of Qwen's families."""

SCORED_ONLY = {"qwen3_vl_moe": PATCHES_OF_16}
"""Families whose answers can be scored though gpg_vl does not train them, by `model_type`."""
