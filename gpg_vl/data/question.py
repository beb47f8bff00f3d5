"""Makes an example from a question in Python, with images in several forms."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gpg_vl.data.images import read_image
from gpg_vl.errors import UserError
from gpg_vl.types import Example

Picture = str | Path | bytes | Image.Image
"""The path of an image file, its bytes, or a Pillow image."""
Pictures = Picture | Sequence[Picture] | None
"""One image, several, or none."""


def make_question(pictures: Pictures, text: str) -> Example:
    """Make an example without a gold answer. `<image>` in the text marks where the next image goes.

    In text without marks the images come first. Raises UserError for anything that is not an image, and
    ImageError for a file that cannot be read.
    """
    if pictures is None:
        held: Sequence[Picture] = ()
    elif isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes):
        held = pictures
    else:
        held = (pictures,)
    return Example(id="question", images=tuple(map(_encode, held)), prompt=text, answer="")


def _encode(picture: Picture) -> bytes:
    match picture:
        case bytes():
            return picture
        case Image.Image():
            # PNG is lossless and keeps transparency
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            return buffer.getvalue()
        case str() | Path():
            file = Path(picture).expanduser().resolve()
            return read_image(str(file), root=file.parent)
    raise UserError(
        f"A picture was given as {type(picture).__name__}. The path of a file, the bytes of one and "
        f"a Pillow image are allowed. Convert it, for example with PIL.Image.fromarray."
    )
