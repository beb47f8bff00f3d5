"""Reads images from untrusted files, as RGB.

A data set may name a file outside its folder, declare more pixels than fit into memory, or have an
incomplete download. Every such image raises an `ImageError` that says what to do. Nothing is
decoded before its declared size has been accepted, and nothing is downloaded.

Conversion to RGB: the EXIF orientation is applied; transparent images are drawn on white; palettes
are resolved; grey of more than 8 bits keeps its upper 8; CMYK is converted by Pillow without a
colour profile; of an animation or a multi-page file the first image is used. 32-bit integer and
floating-point images have no defined black and white and are refused.

Other formats are refused with their name, although Pillow can decode some of them: which ones
depends on its build, and a data set should work the same on every machine.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image, ImageFile, ImageOps

from gpg_vl.data.picture_content import find_darkness, find_loss
from gpg_vl.data.picture_format import HEAD_BYTES, name_content
from gpg_vl.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_ENCODED_BYTES = 256 << 20
"""A larger image file is refused: it may have few pixels, but any amount of data for each."""

# Errors of Pillow's decoders for damaged files; they have no common base class.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageError(UserError):
    """An image that cannot be used: missing, outside the root, damaged, too large, or of an unknown
    format.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded image that has been decoded completely once.

    Example: `Picture(data=b"\\x89PNG...", format="PNG", width=112, height=84)`
    """

    data: bytes
    format: str
    """One of `FORMATS`."""
    width: int
    """In pixels, after applying the EXIF orientation."""
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What the data check records about an image.

    Example: `Examined(width=112, height=84, has_frames=False)`
    """

    width: int
    """In pixels, after applying the EXIF orientation."""
    height: int
    has_frames: bool
    """True if the file has more images than the first one, which is used: an animation, or pages."""


def load_image(image: str | bytes, *, root: Path | None, max_pixels: int) -> Image.Image:
    """Load an image as RGB, decoded completely; no file stays open.

    `image` is an encoded image, or a path relative to `root` (an absolute path is accepted if it
    is inside). Without a root only encoded images are accepted. `max_pixels` bounds width times
    height as the file declares them; Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` bounds them too.

    Raises:
        ImageError: for every image that cannot be used.
    """
    with _decoded(image, root, max_pixels) as (_, shown, _):
        return shown


def examine_image(image: str | bytes, *, root: Path | None, max_pixels: int) -> Examined:
    """Decode an image completely and return its size. The arguments are those of `load_image`.

    Raises:
        ImageError: for every image that cannot be used, and for one whose content is lost by the
            conversion to 8 bits per channel or to a white background.
    """
    with _decoded(image, root, max_pixels) as (stored, shown, bits):
        _refuse_loss(stored, shown, bits, describe(image))
        width, height = shown.size
        return Examined(width=width, height=height, has_frames=_has_frames(stored))


@contextmanager
def _decoded(
    image: str | bytes, root: Path | None, max_pixels: int
) -> Iterator[tuple[ImageFile.ImageFile, Image.Image, int]]:
    """The image as stored and as RGB, and the bits per channel of the file. Raises ImageError."""
    name = describe(image)
    with _open_file(image, root) as file, _open_picture(file, name) as opened:
        _refuse_bomb(opened.size, name, max_pixels)
        if opened.mode in ("I", "F"):
            raise ImageError(
                f"{name} has 32-bit pixels (mode {opened.mode}), which have no agreed black and "
                f"white. 8-bit and 16-bit pictures are allowed. Convert it to 8 bits per channel."
            )

        # read the bits before decoding, which discards them
        bits = _find_bits(opened)
        try:
            # in place, because most images are not rotated and would only be copied
            ImageOps.exif_transpose(opened, in_place=True)
            shown = _convert_to_rgb(opened, bits)
        except _DAMAGE as error:
            raise ImageError(
                f"{name} is damaged or incomplete: {_find_reason(error)}. A {opened.format} file "
                f"that decodes to its last pixel is needed. Fetch or export it again, or remove the "
                f"row."
            ) from error
        yield opened, shown, bits


def _find_bits(opened: ImageFile.ImageFile) -> int:
    """Bits per channel of a file whose header was read: 12, 16, or 8 for any that is not more."""
    layout = str([tile.args for tile in opened.tile])
    if ";12" in layout:
        return 12
    return 16 if ";16" in layout or opened.mode in _SIXTEEN_BIT else 8


def _refuse_loss(stored: Image.Image, shown: Image.Image, bits: int, name: str) -> None:
    """Raise ImageError if an image with many levels has few left, or a drawing is white on white."""
    loss = find_loss(stored, shown)
    if loss is None and bits == 16 and stored.mode not in _SIXTEEN_BIT:
        loss = find_darkness(stored)
    if loss:
        raise ImageError(
            f"{name} loses its content: it has {loss}. A picture whose content can be seen in 8 bits, on white, is "
            f"needed. Stretch its levels to the full range or lay it over another colour, and save it as 8-bit RGB."
        )


def _has_frames(stored: ImageFile.ImageFile) -> bool:
    # a photo with an additional version for other screens is not an animation
    if stored.format not in ("GIF", "PNG", "WEBP", "TIFF"):
        return False
    try:
        return bool(getattr(stored, "is_animated", False))
    except _DAMAGE:
        # only images after the first one are damaged, and they are not used
        return True


def read_picture(image: str | bytes, *, root: Path | None, max_pixels: int) -> Picture:
    """Read an encoded image and check that it can be decoded completely. The arguments are those of
    `load_image`.

    Raises:
        ImageError: for every image that cannot be used.
    """
    width, height = load_image(image, root=root, max_pixels=max_pixels).size

    data = read_image(image, root=root)
    with _open_picture(io.BytesIO(data), describe(image)) as opened:
        assert opened.format is not None, describe(image)
        return Picture(data=data, format=opened.format, width=width, height=height)


def read_image(image: str | bytes, *, root: Path | None) -> bytes:
    """The bytes of an encoded image, without decoding: `image` itself, or the file inside `root`.

    Raises ImageError, also for a file of more than `MAX_ENCODED_BYTES`.
    """
    with _open_file(image, root) as file:
        return file.read()


def image_size(image: str | bytes, *, root: Path | None) -> tuple[int, int]:
    """(width, height) from the image's header, after applying the EXIF orientation.

    Raises ImageError.
    """
    with _open_file(image, root) as file, _open_picture(file, describe(image)) as opened:
        width, height = opened.size

        # Pillow would decode the whole image to find an orientation stored after the pixels
        if opened.format == "PNG" and "exif" not in opened.info:
            return width, height

        try:
            is_turned = opened.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
        except _DAMAGE as error:
            raise ImageError(
                f"{describe(image)} is damaged: {_find_reason(error)}. Fetch it again, or remove the row."
            ) from error
        return (height, width) if is_turned else (width, height)


def describe(image: str | bytes) -> str:
    """The name of an image in messages: its path, or its length if it has none."""
    if isinstance(image, bytes):
        return f"The embedded image of {len(image)} bytes"
    path = image if len(image) <= 200 else image[:150] + "..." + image[-40:]
    return f"The image {path!r}"


def _open_file(image: str | bytes, root: Path | None) -> io.BytesIO | io.BufferedReader:
    """The encoded image as a stream, which the caller closes."""
    name = describe(image)
    try:
        if isinstance(image, bytes):
            if image:
                return io.BytesIO(image)
        else:
            path, size = _resolve_inside(image, root)
            _refuse_length(size, name)
            if size:
                return Path(path).open("rb")
    except OSError as error:
        raise ImageError(
            f"{name} cannot be read: {_find_reason(error)}. A readable file is needed. Check its permissions "
            f"and its disk, or remove the row."
        ) from error

    raise ImageError(
        f"{name} is empty (0 bytes). {', '.join(FORMATS)} files are allowed. Fetch or export it again, or "
        f"remove the row."
    )


def _refuse_length(size: int, name: str) -> None:
    if size > MAX_ENCODED_BYTES:
        raise ImageError(
            f"{name} has {size} bytes. Picture files of at most {MAX_ENCODED_BYTES >> 20} MiB "
            f"({MAX_ENCODED_BYTES} bytes) are read. Save the picture again, shrink it, or remove the row."
        )


def _resolve_inside(path: str, root: Path | None) -> tuple[str, int]:
    """The resolved file and its size in bytes, once it is known to be a regular file below `root`.

    Raises ImageError.
    """
    name = describe(path)
    if root is None:
        raise ImageError(
            f"{name} is a path, and no image root was given. Paths are read below the image root only. "
            f"Set the image root (data.root) to the folder that the paths start from."
        )
    if ".." in path and ".." in PurePath(path).parts:
        raise ImageError(
            f"{name} climbs out of a folder with '..'. Paths below the image root {root} are allowed. "
            f"Move the file below the root and name it without '..'."
        )

    # resolving follows links, so a link to the outside is found; it raises errors for too long a
    # name, a loop of links, or a NUL character. It is done for every image of a data set, and
    # resolving a str takes half the time of a Path
    try:
        base = os.path.realpath(root)
        file = os.path.realpath(os.path.join(base, path))  # noqa: PTH118
        found = _stat_if_there(file)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{name} is not a usable path: {_find_reason(error)}. Paths below the image root {root} are "
            f"allowed. Correct the path or remove the row."
        ) from error

    if file != base and not file.startswith(base.rstrip("/") + "/"):
        raise ImageError(
            f"{name} leads to {file}, outside the image root. Paths below {base} are allowed, after "
            f"links are followed. Copy the file below the root, or set the image root to a folder that "
            f"holds it."
        )
    if found is None or not stat.S_ISREG(found.st_mode):
        what = "does not exist" if found is None else "is not a regular file"
        raise ImageError(
            f"{name} {what}: {file}. A picture file below the image root {base} is needed. Restore the "
            f"file, correct the path or the image root, or remove the row."
        )
    return file, found.st_size


def _stat_if_there(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)  # noqa: PTH116  as above
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open_picture(file: io.BytesIO | io.BufferedReader, name: str) -> ImageFile.ImageFile:
    """Read the header. Pillow's bomb warning counts as a refusal wherever warnings are errors."""
    try:
        return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} declares too many pixels: {_find_reason(error)}. {_pillow_limit()} Shrink the picture, or "
            f"remove the row."
        ) from error
    except _DAMAGE as error:
        _refuse_other_content(file, name)
        raise ImageError(
            f"{name} is no picture that can be read: it is damaged, has no pixels, or is of another "
            f"format. {', '.join(FORMATS)} files are allowed. Fetch it again, convert it to PNG, or "
            f"remove the row."
        ) from error


def _refuse_other_content(file: io.BytesIO | io.BufferedReader, name: str) -> None:
    """Raise ImageError if the first bytes show that the file is something else."""
    file.seek(0)
    known = name_content(file.read(HEAD_BYTES))
    if known:
        what, remedy = known
        raise ImageError(
            f"{name} is {what}. Pictures of another format than {', '.join(FORMATS)} are not read. {remedy}, or remove the "
            f"row."
        )


def _refuse_bomb(size: tuple[int, int], name: str, max_pixels: int) -> None:
    pixels = size[0] * size[1]
    limit = Image.MAX_IMAGE_PIXELS
    if pixels > max_pixels:
        raise ImageError(
            f"{name} declares {size[0]}x{size[1]} = {pixels} pixels. At most {max_pixels} are "
            f"decoded. Shrink the picture, remove the row, or raise max_image_pixels."
        )
    if limit is not None and pixels > limit:
        raise ImageError(
            f"{name} declares {size[0]}x{size[1]} = {pixels} pixels. {_pillow_limit()} Shrink the "
            f"picture, or remove the row."
        )


def _pillow_limit() -> str:
    return f"At most PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS} are decoded, whatever else is allowed."


def _convert_to_rgb(image: Image.Image, bits: int) -> Image.Image:
    # Pillow's own conversion would clip every value above 255 to white
    if image.mode in _SIXTEEN_BIT:
        steps = 1 << (bits - 8)
        return image.convert("I").point(lambda value: value / steps).convert("L").convert("RGB")

    if image.has_transparency_data:
        ink = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")

    return image.convert("RGB")


def _find_reason(error: Exception) -> str:
    """The library's error message, as part of a sentence."""
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror
    return words.strip().rstrip(".") or type(error).__name__
