"""Gold boxes: whose numbers they are, and how they are written.

A box is (left, top, right, bottom). Three conventions are written, and a row's `meta` says which its answer has:

- `rel1000`: whole thousandths of the picture's width and height, as Qwen2-VL reads and writes boxes;
- `abs_orig`: pixels of the picture as it is stored, before any resizing;
- `abs_resized`: pixels of the picture as a processor resizes it, whose size is in `meta["input_size"]`; Qwen2.5-VL's own.

`meta["box_pixels"]` holds the exact gold box in pixels and `meta["image_size"]` (width, height) next to any, so that a
reward need not guess. A run converts the gold box to what its model answers in, whichever convention is written here.
"""

from typing import Any

from gpg_vl.answers.math.rectangles import Frame
from gpg_vl.data.images import Picture
from gpg_vl.data.recipe.recipe import Option
from gpg_vl.data.recipe.row import BrokenRowError
from gpg_vl.data.resizing import resized_size
from gpg_vl.prompting import DEFAULT_LIMITS

Box = tuple[float, float, float, float]
CONVENTIONS = ("rel1000", "abs_orig", "abs_resized")
RESIZING = {
    "max_pixels": Option(
        default=DEFAULT_LIMITS.max_pixels,
        help="for abs_resized: larger pictures are shrunk to this many pixels, as data.max_pixels does",
    ),
    "side": Option(
        default=28, help="for abs_resized: pixels along the side of an image token of the model"
    ),
}
"""The options of a recipe that can write `abs_resized`; `frame_in` takes them."""


def frame_in(picture: Picture, convention: str, *, max_pixels: int, side: int) -> Frame:
    """The frame of a picture's boxes in a convention. Raises BrokenRowError for a size of pictures that no model sees."""
    match convention:
        case "rel1000":
            return Frame("rel1000", 1000, 1000)
        case "abs_orig":
            return Frame("abs_orig", picture.width, picture.height)
        case "abs_resized" if side > 0 and max_pixels >= max(side**2, DEFAULT_LIMITS.min_pixels):
            limits = DEFAULT_LIMITS.min_pixels, max_pixels
            return Frame("abs_resized", *resized_size(picture.width, picture.height, *limits, side))
    raise BrokenRowError(
        f"A box cannot be written in {convention} with max_pixels {max_pixels} and side {side}. {', '.join(CONVENTIONS)} are "
        f"allowed, with at least {DEFAULT_LIMITS.min_pixels} pixels and room for one image token."
    )


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


def numbers(box: Box, picture: Picture, frame: Frame) -> tuple[int, int, int, int]:
    """A box in pixels of the picture in whole numbers of a frame, cut off as the published training data cut them off.

    Raises BrokenRowError if nothing is left of it: a reward could then never be full.
    """
    sides, extents = (picture.width, picture.height) * 2, (frame.width, frame.height) * 2
    left, top, right, bottom = (
        int(value if extent == side else value / side * extent)
        for value, side, extent in zip(box, sides, extents, strict=True)
    )
    if left == right or top == bottom:
        raise BrokenRowError(
            f"The box {box} is thinner than one unit of {frame.coordinates} in a picture of {picture.width}x{picture.height} "
            f"pixels, so it cannot be written in whole numbers."
        )
    return left, top, right, bottom


def pair(box: tuple[int, int, int, int]) -> str:
    """`(100,200),(300,400)`, as Qwen2-VL writes a box."""
    left, top, right, bottom = box
    return f"({left},{top}),({right},{bottom})"


def box_meta(box: Box, picture: Picture, frame: Frame) -> dict[str, Any]:
    """What a reward must know about the answer's numbers."""
    seen = {"input_size": [frame.width, frame.height]} if frame.coordinates == "abs_resized" else {}
    return {
        "coordinates": frame.coordinates,
        "box_pixels": list(box),
        "image_size": [picture.width, picture.height],
        **seen,
    }
