"""The size in which a model sees an image that its processor resizes as a whole."""

import math


def resized_size(
    width: int, height: int, min_pixels: int, max_pixels: int, side: int
) -> tuple[int, int]:
    """(width, height) of an image as the model sees it: multiples of `side`, area in the limits.

    The rule of Qwen's processors, without the libraries that they need.
    """
    w, h = round(width / side) * side, round(height / side) * side
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(side, math.floor(edge / shrink / side) * side) for edge in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(edge * grow / side) * side for edge in (width, height))
    return int(w), int(h)
