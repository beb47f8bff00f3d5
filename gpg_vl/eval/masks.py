"""Segmentations: COCO run lengths in and out, polygons as LISA draws them (by OpenCV), and areas of overlap.

A mask is a bool array [height, width]. Run lengths count pixels down the columns, beginning with those outside; they come
as a list of numbers, or as the string in which pycocotools packs them.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpg_vl.errors import UserError
from gpg_vl.prompting import DEFAULT_LIMITS

Mask = NDArray[np.bool_]
MAX_PIXELS = DEFAULT_LIMITS.max_image_pixels
"""A mask that claims more is refused like a picture that does."""


class Areas(NamedTuple):
    """Pixels of intersection and union.

    Example: `Areas(120.0, 300.0)`
    """

    intersection: float
    union: float


def encode(mask: Mask) -> dict[str, Any]:
    """`{"size": [height, width], "counts": [...]}`."""
    height, width = mask.shape
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist() if flat.size else []
    return {"size": [height, width], "counts": [0, *runs] if flat.size and flat[0] else runs}


def decode(run_lengths: Mapping[str, Any]) -> Mask:
    """The mask. Raises ValueError for anything that is not the run lengths of a whole mask."""
    size, counts = run_lengths.get("size"), run_lengths.get("counts")
    if not (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise ValueError(f"the size is {size!r:.60}; it must be [height, width]")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} is more than {MAX_PIXELS} pixels")
    runs = _unpack(counts) if isinstance(counts, str) else counts
    if not (isinstance(runs, Sequence) and all(isinstance(n, int) and n >= 0 for n in runs)):
        raise ValueError(f"the counts are {counts!r:.60}; they must be run lengths")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"the counts add up to {sum(runs)} pixels instead of {size[0]} x {size[1]}"
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((size[0], size[1]), order="F")


def _unpack(text: str) -> list[int]:
    """pycocotools' string: five bits a character from 48 on, the sixth says that more follow, the last is signed; from the
    fourth number on they are differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("the counts are no packed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the counts end in the middle of a number")
    return runs


def can_draw() -> bool:
    """True if OpenCV is installed, by which polygons become masks."""
    return importlib.util.find_spec("cv2") is not None


def polygon(points: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """A filled polygon with its outline on an image of (width, height), pixel by pixel as LISA draws it.

    Corners are cut to whole pixels, towards 0; where the outline crosses itself, what is within an even number of turns is
    outside. Raises UserError without OpenCV.
    """
    if not can_draw():
        raise UserError(
            "The masks of ReasonSeg are polygons, which are drawn by OpenCV, and it is not installed. Install it with: "
            "pip install 'gpg_vl[masks]', or drop the scorers of masks."
        )
    import cv2

    image = np.zeros(size[::-1], dtype=np.uint8)
    corners = [np.array(points).astype(np.int32)]
    cv2.polylines(image, corners, isClosed=True, color=1, thickness=1)
    cv2.fillPoly(image, corners, color=1)
    return image.astype(bool)


def box_of(mask: Mask) -> tuple[float, float, float, float] | None:
    """The edges (x1, y1, x2, y2) of what is in the mask, in pixels; None if nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def overlap(one: Mask, other: Mask, ignored: Mask | None = None) -> Areas:
    """The areas of two masks of one size, without the ignored pixels."""
    counted = slice(None) if ignored is None else ~ignored
    return Areas(float((one & other)[counted].sum()), float((one | other)[counted].sum()))
