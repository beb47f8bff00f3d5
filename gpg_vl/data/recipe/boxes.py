"""Gold boxes: whose numbers they are, and how they are written.

A box is (left, top, right, bottom). Two conventions are written, and a row's `meta` says which its answer has:

- `rel1000`: whole thousandths of the picture's width and height, as Qwen2-VL reads and writes boxes;
- `abs_orig`: pixels of the picture as it is stored, before any resizing.

`meta["box_pixels"]` holds the exact gold box in pixels and `meta["image_size"]` (width, height) next to either, so that a
reward need not guess.
"""

from typing import Any

from gpg_vl.data.images import Picture
from gpg_vl.data.recipe.row import BrokenRowError

Box = tuple[float, float, float, float]
CONVENTIONS = ("rel1000", "abs_orig")


def inside(box: tuple[float, ...], picture: Picture) -> Box:
    """The part of a box in pixels that is in the picture. Raises BrokenRowError if there is none, or it is no box."""
    if len(box) != 4:
        raise BrokenRowError(
            f"A box has 4 numbers, left, top, right and bottom; this one has {len(box)}: {box}."
        )
    left, top, right, bottom = box
    clipped = (
        max(left, 0.0),
        max(top, 0.0),
        min(right, picture.width),
        min(bottom, picture.height),
    )
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise BrokenRowError(
            f"The box {box} has no area in the picture of {picture.width}x{picture.height} pixels. Left must be less than "
            f"right and top less than bottom."
        )
    return clipped


def union(boxes: list[Box]) -> Box:
    """The smallest box around all of them; there must be one."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def numbers(box: Box, picture: Picture, convention: str) -> tuple[int, int, int, int]:
    """The box in whole numbers of a convention, cut off as the published training data cut them off.

    Raises BrokenRowError if nothing is left of it: a reward could then never be full.
    """
    sides = (picture.width, picture.height) * 2
    left, top, right, bottom = (
        int(value / side * 1000) if convention == "rel1000" else int(value)
        for value, side in zip(box, sides, strict=True)
    )
    if left == right or top == bottom:
        raise BrokenRowError(
            f"The box {box} is thinner than one unit of {convention} in a picture of {picture.width}x{picture.height} "
            f"pixels, so it cannot be written in whole numbers."
        )
    return left, top, right, bottom


def pair(box: tuple[int, int, int, int]) -> str:
    """`(100,200),(300,400)`, as Qwen2-VL writes a box."""
    left, top, right, bottom = box
    return f"({left},{top}),({right},{bottom})"


def box_meta(box: Box, picture: Picture, convention: str) -> dict[str, Any]:
    """What a reward must know about the answer's numbers."""
    return {
        "coordinates": convention,
        "box_pixels": list(box),
        "image_size": [picture.width, picture.height],
    }
