"""Checks how much of an image's content is left after its conversion to 8 bits per channel on white.

Grey of 12 bits in a file of 16 keeps 16 of its 4096 levels and is almost black; a white drawing on
a transparent ground is a white sheet. A model sees
nothing of the content of such an image.
"""

from typing import cast

import numpy as np
from PIL import Image

FEW = 64
"""An image with more colours left than this is not examined further."""
_DARK = 64
_FAINT = 16


def find_loss(stored: Image.Image, shown: Image.Image) -> str | None:
    """Describes what was lost in the conversion to RGB; None if the content is still there.

    stored: the decoded picture as its file holds it. shown: the RGB picture made of it. Content
    counts as lost where several colours became one, where at most `FEW` are left of eight times as
    many, and where grey of 16 bits has fewer levels than before and none above a quarter of white.
    An image that is stored that way is accepted.
    """
    # most images cannot lose anything, so their colours need not be counted
    if not (stored.mode.startswith("I;16") or stored.has_transparency_data):
        return None
    colours = shown.getcolors(FEW)
    if colours is None:
        return None

    left = len(colours)
    brightness = [max(cast(tuple[int, int, int], colour)) for _, colour in colours]
    is_dark = False
    if stored.mode.startswith("I;16"):
        before = len(np.unique(np.asarray(stored)))
        what, is_dark = "grey levels", max(brightness) < _DARK
    else:
        before = _count_visible(stored)
        what = "colours"
    if before <= left or not (left == 1 or 8 * left <= before or is_dark):
        return None
    return f"{before} {what}, of which {left} are left, from {min(brightness)} to {max(brightness)} of 255"


def find_darkness(stored: Image.Image) -> str | None:
    """Describes signs that a 16-bit colour image really has fewer bits; None if there are none.

    stored: the decoded picture. Decoders keep the upper 8 bits, so a picture of 12 bits ends at 15
    and one of 14 at 63.
    """
    colour = stored.convert("RGBA").convert("RGB") if stored.has_transparency_data else stored
    most = max(high for _, high in cast(list[tuple[int, int]], colour.getextrema()))
    if not 0 < most < _DARK:
        return None
    left = len(colour.getcolors(colour.width * colour.height) or ())
    return f"16 bits per channel, of which {left} colours are left in 8 bits, at most {most} of 255"


def _count_visible(stored: Image.Image) -> int:
    """The number of colours of an image with transparency; all nearly invisible ones count as one, unless all are nearly
    invisible."""
    pixels = np.ascontiguousarray(stored.convert("RGBA")).reshape(-1, 4)
    codes = pixels.view(np.uint32)[:, 0]
    is_clear = pixels[:, 3] < _FAINT
    if is_clear.all():
        return len(np.unique(codes))
    return len(np.unique(codes[~is_clear])) + bool(is_clear.any())
