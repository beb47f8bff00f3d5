"""Thumbnails of images in a run folder, for the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from gpg_vl.data.images import ImageError, load_image

LONGEST_SIDE = 256
MAX_PIXELS = 100_000_000
"""The pixel limit for decoding a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A thumbnail, or why there is none.

    Example: `Thumbnail(name="0-0.png", source="data:image/png;base64,...", width=112, height=112)`
    """

    name: str
    source: str | None = None
    """A data URI."""
    missing: str = ""
    width: int = 0
    height: int = 0


class Album:
    """Thumbnails of files below one folder, up to the page's size limit.

    Equal files are encoded once, but count each time they are shown.
    """

    def __init__(self, root: Path, budget: int) -> None:
        self._root = root
        self._left = budget
        self._known: dict[tuple[Path, str], Thumbnail] = {}

    def show(self, folder: Path, name: str) -> Thumbnail:
        """The thumbnail of the file of that name in `folder`."""
        if self._left <= 0:
            return Thumbnail(name=name, missing="left out: the page is large enough")
        key = (folder, name)
        if key not in self._known:
            self._known[key] = self._make(folder, name)
        made = self._known[key]
        self._left -= len(made.source or "")
        return made

    def _make(self, folder: Path, name: str) -> Thumbnail:
        if PurePath(name).is_absolute():
            return Thumbnail(name=name, missing="not in the run folder")
        try:
            path = str(folder.resolve() / name)
            image = load_image(path, root=self._root, max_pixels=MAX_PIXELS)
        except ImageError:
            return Thumbnail(name=name, missing="no picture of that name in the run folder")
        small = shrink(image)
        return Thumbnail(name=name, source=_data_uri(small), width=small.width, height=small.height)


def shrink(image: Image.Image) -> Image.Image:
    """The picture with no side longer than 256 pixels, its proportions kept."""
    if max(image.size) <= LONGEST_SIDE:
        return image
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return small


def encode(image: Image.Image) -> bytes:
    """The encoded picture, WebP: small for drawings and for photographs alike."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=88)
    return out.getvalue()


def _data_uri(image: Image.Image) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encode(image)).decode()}"
