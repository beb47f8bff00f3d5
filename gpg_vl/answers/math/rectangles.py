"""Boxes: where a text states them, in which coordinates, and how well two of them, or two sets of them, agree.

A box is (x1, y1, x2, y2) with continuous edges: its width is x2 - x1, with nothing added. What the numbers mean is said
by a `Frame` and never guessed from how large they are:

- `rel1000`: thousandths of the image (Qwen2-VL, Qwen3-VL);
- `rel1`: fractions of the image;
- `abs_resized`: pixels of the image as the model saw it, after resizing (Qwen2.5-VL);
- `abs_orig`: pixels of the image file.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from gpg_vl.types import Coordinates

COORDINATES: tuple[Coordinates, ...] = get_args(Coordinates)
HIT = 0.5
"""A box hits another if their IoU is at least this."""


class Box(NamedTuple):
    """A rectangle by its edges.

    Example: `Box(100, 200, 300, 400)`
    """

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """0 for a box that is inverted or flat."""
        width, height = self.x2 - self.x1, self.y2 - self.y1
        return width * height if width > 0 and height > 0 else 0.0


class Frame(NamedTuple):
    """A convention of coordinates with the extent of the image in it.

    Example: `Frame("rel1000", 1000, 1000)`, `Frame("abs_orig", 640, 480)`
    """

    coordinates: Coordinates
    width: float
    height: float

    def holds(self, box: Box) -> bool:
        """True if the box is inside of the image, its edges included, and its corners are in order and apart."""
        return 0 <= box.x1 < box.x2 <= self.width and 0 <= box.y1 < box.y2 <= self.height


UNIT = Frame("rel1", 1.0, 1.0)


def convert(box: Box, source: Frame, target: Frame) -> Box:
    """The same rectangle in another frame of the same image."""
    x, y = target.width / source.width, target.height / source.height
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def iou(one: Box, other: Box) -> float:
    """Intersection over union, from 0 to 1; 0 if either box is inverted or flat."""
    overlap = _overlap(one, other)
    return overlap / (one.area + other.area - overlap) if overlap > 0 else 0.0


def generalized_iou(one: Box, other: Box) -> float:
    """IoU minus the share of the enclosing box that neither covers: above -1, up to 1 (arXiv:1902.09630).

    -1 if either box is inverted or flat. It is not the gIoU of segmentation, which is a mean of mask IoUs.
    """
    if not (one.area > 0 and other.area > 0):
        return -1.0
    overlap = _overlap(one, other)
    union = one.area + other.area - overlap
    enclosing = Box(
        min(one.x1, other.x1), min(one.y1, other.y1), max(one.x2, other.x2), max(one.y2, other.y2)
    ).area
    return overlap / union - (enclosing - union) / enclosing


def hits(one: Box, other: Box, threshold: float = HIT) -> bool:
    """True if the IoU is at least `threshold`."""
    return iou(one, other) >= threshold


def _overlap(one: Box, other: Box) -> float:
    """The area that both cover; 0 if either is inverted or flat."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    return width * height if width > 0 and height > 0 else 0.0


def overlap_parts(box: Box | None, gold: Box) -> dict[str, float]:
    """Areas of intersection and union; without a box the union is the gold's area."""
    if box is None:
        return {"intersection": 0.0, "union": gold.area}
    overlap = _overlap(box, gold)
    return {"intersection": overlap, "union": box.area + gold.area - overlap}


def best_matching(gain: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The pairs (row, column) of the matching with the greatest total gain. Rows and columns are used at most once.

    Gains are not negative, and pairs without gain are left out. Successive shortest paths (the Hungarian method with
    potentials): time is rows * rows * columns, with the smaller side as rows.
    """
    rows, columns = len(gain), len(gain[0]) if gain else 0
    if rows > columns:
        turned = [[gain[row][column] for row in range(rows)] for column in range(columns)]
        return sorted((row, column) for column, row in best_matching(turned))
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (
        columns + 1
    )  # the row of each column, from 1; 0 is nobody, and column 0 the row to be placed
    for row in range(1, rows + 1):
        owner[0] = row
        _place(gain, owner, row_price, column_price)
    pairs = [(owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column]]
    return sorted((row, column) for row, column in pairs if gain[row][column] > 0)


def _place(
    gain: Sequence[Sequence[float]],
    owner: list[int],
    row_price: list[float],
    column_price: list[float],
) -> None:
    """Find the cheapest way to give the row in `owner[0]` a column, moving others along, and take it."""
    columns = len(owner) - 1
    distance = [math.inf] * (columns + 1)
    before = [0] * (columns + 1)
    seen = [False] * (columns + 1)

    # grow a tree of cheapest paths until it meets a column without an owner
    at = 0
    while owner[at]:
        seen[at] = True
        row, step, nearest = owner[at], math.inf, 0
        for column in range(1, columns + 1):
            if seen[column]:
                continue
            cost = -gain[row - 1][column - 1] - row_price[row] - column_price[column]
            if cost < distance[column]:
                distance[column], before[column] = cost, at
            if distance[column] < step:
                step, nearest = distance[column], column

        # prices move so that every edge of the tree stays free of cost
        for column in range(columns + 1):
            if seen[column]:
                row_price[owner[column]] += step
                column_price[column] -= step
            else:
                distance[column] -= step
        at = nearest

    # back along the path, each column takes the row of the one before it
    while at:
        owner[at] = owner[before[at]]
        at = before[at]
