"""Draws the ten digits as strokes, at any size and without a font.

A stroke is a line through points of the unit square, x to the right and y downwards. Only lines are used,
so the result is the same on every machine.
"""

from collections.abc import Sequence

from PIL import ImageDraw

Point = tuple[float, float]

STROKES: tuple[tuple[Point, ...], ...] = (
    ((0.5, 0.0), (0.2, 0.15), (0.1, 0.5), (0.2, 0.85), (0.5, 1.0), (0.8, 0.85), (0.9, 0.5), (0.8, 0.15), (0.5, 0.0)),
    ((0.3, 0.2), (0.55, 0.0), (0.55, 1.0)),
    ((0.1, 0.25), (0.3, 0.0), (0.7, 0.0), (0.9, 0.25), (0.8, 0.45), (0.1, 1.0), (0.9, 1.0)),
    ((0.1, 0.0), (0.85, 0.0), (0.45, 0.4), (0.8, 0.5), (0.9, 0.75), (0.6, 1.0), (0.1, 0.9)),
    ((0.7, 1.0), (0.7, 0.0), (0.05, 0.68), (0.95, 0.68)),
    ((0.85, 0.0), (0.2, 0.0), (0.15, 0.45), (0.6, 0.4), (0.9, 0.7), (0.6, 1.0), (0.1, 0.92)),
    ((0.75, 0.0), (0.3, 0.3), (0.1, 0.7), (0.3, 1.0), (0.7, 1.0), (0.9, 0.75), (0.65, 0.5), (0.2, 0.6)),
    ((0.1, 0.0), (0.9, 0.0), (0.4, 1.0)),
    (
        (0.5, 0.45), (0.2, 0.25), (0.5, 0.0), (0.8, 0.25), (0.5, 0.45), (0.1, 0.75), (0.5, 1.0), (0.9, 0.75), (0.5, 0.45),
    ),
    ((0.8, 0.4), (0.35, 0.5), (0.1, 0.25), (0.3, 0.0), (0.7, 0.0), (0.85, 0.25), (0.7, 0.7), (0.45, 1.0)),
)  # fmt: skip
"""One line for each digit from 0 to 9."""


def draw_digit(
    pencil: ImageDraw.ImageDraw,
    digit: int,
    *,
    left: float,
    top: float,
    width: float,
    height: float,
    thickness: int,
    colour: tuple[int, int, int],
    slant: float = 0.0,
) -> None:
    """Draw a digit into a box of pixels. `slant` moves its top to the right by that share of the height."""
    points = [
        (left + x * width + slant * (1 - y) * height, top + y * height) for x, y in STROKES[digit]
    ]
    pencil.line(points, fill=colour, width=thickness, joint="curve")
    for x, y in points:
        _draw_dot(pencil, x, y, thickness, colour)


def draw_sign(
    pencil: ImageDraw.ImageDraw,
    digit: int,
    x: float,
    y: float,
    *,
    size: int,
    scale: int,
    colour: tuple[int, int, int],
) -> None:
    """A digit on a plate, around a point of a picture that is drawn `scale` times as large.

    The plate is light under a dark digit, and dark under a light one. size: its pixels in the finished picture.
    """
    plate = (40, 40, 48) if sum(colour) > 384 else (236, 236, 236)
    r = size * scale * 0.56
    pencil.rectangle((x - r, y - r, x + r, y + r), fill=plate)

    height = 0.86 * size * scale
    width = 0.62 * height
    draw_digit(
        pencil,
        digit,
        left=x - width / 2,
        top=y - height / 2,
        width=width,
        height=height,
        thickness=2 * scale + 1,
        colour=colour,
    )


def _draw_dot(
    pencil: ImageDraw.ImageDraw, x: float, y: float, thickness: int, colour: Sequence[int]
) -> None:
    """Draw a round end; without it thick lines have gaps at their corners."""
    r = thickness / 2
    pencil.ellipse((x - r, y - r, x + r, y + r), fill=tuple(colour))
