"""Pictures from hostile or damaged files: an RGB picture or an ImageError in three parts, never anything else."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpg_vl.data.images import MAX_ENCODED_BYTES, ImageError, load_image, read_image
from gpg_vl.errors import UserError

LIMIT = 1_000_000
RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def bare_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def load(image: str | bytes, root: Path | None = None, max_pixels: int = LIMIT) -> Image.Image:
    return load_image(image, root=root, max_pixels=max_pixels)


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    across = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, across.transpose(Image.Transpose.FLIP_TOP_BOTTOM), across))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_allowed_format_keeps_size_and_colour(file_format: str) -> None:
    options = (
        {"lossless": True}
        if file_format == "WEBP"
        else {"quality": 95}
        if file_format == "JPEG"
        else {}
    )
    image = load(encoded(Image.new("RGB", (24, 16), RED), file_format, **options))
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert max(abs(a - b) for a, b in zip(image.getpixel((5, 5)), RED, strict=True)) <= 2


def sixteen_bit() -> Image.Image:
    return Image.frombytes("I;16", (4, 1), struct.pack("<4H", 0, 255, 256, 65535))


def with_palette(transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=0) if transparent else encoded(image)


@pytest.mark.parametrize(
    "data, pixels",
    [
        (with_palette(False), [RED, BLUE]),
        (with_palette(True), [WHITE, BLUE]),
        (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))), [WHITE]),
        (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 255))), [RED]),
        (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))), [(127, 127, 127)]),
        (encoded(Image.new("LA", (1, 1), (0, 0))), [WHITE]),
        (encoded(Image.new("RGB", (1, 1), RED), transparency=RED), [WHITE]),
        (encoded(Image.new("L", (1, 1), 77)), [(77,) * 3]),
        (encoded(Image.new("1", (1, 1), 1)), [WHITE]),
        (encoded(sixteen_bit()), [(v,) * 3 for v in (0, 0, 1, 255)]),
        (encoded(sixteen_bit(), "TIFF"), [(v,) * 3 for v in (0, 0, 1, 255)]),
        (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [RED]),
    ],
    ids=[
        "palette",
        "palette-alpha",
        "clear",
        "opaque",
        "half",
        "grey-clear",
        "colour-key",
        "grey",
        "bits",
        "16",
        "16-tiff",
        "cmyk",
    ],
)
def test_every_mode_becomes_rgb_with_transparency_over_white(
    data: bytes, pixels: list[tuple[int, ...]]
) -> None:
    image = load(data)
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == pixels


def test_an_animation_counts_as_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load(data).getpixel((0, 0)) == RED


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (3, 2), BLUE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    turned = load(encoded(image, exif=exif))
    assert turned.size == (2, 3)
    assert turned.getpixel((1, 0)) == RED


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and that is right
@pytest.mark.parametrize(
    "exif", [b"", b"garbage", b"MM\0*\0\0\0\x08\0\x05", b"II*\0\xff\xff\xff\xff"]
)
def test_a_picture_with_unreadable_exif_is_shown_as_stored(exif: bytes) -> None:
    assert load(encoded(gradient(), "JPEG", exif=b"Exif\0\0" + exif)).size == (40, 30)


def test_paths_below_the_root_are_read_relative_absolute_or_linked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "img").mkdir(parents=True)
    data = encoded(gradient())
    (root / "img" / "a.png").write_bytes(data)
    (root / "link.png").symlink_to("img/a.png")
    (tmp_path / "alias").symlink_to(root)
    for name in (
        "img/a.png",
        str(root / "img" / "a.png"),
        "link.png",
        str(tmp_path / "alias" / "link.png"),
    ):
        assert load(name, root).tobytes() == gradient().tobytes()
        assert load(name, tmp_path / "alias").tobytes() == gradient().tobytes()


def broken_jpeg() -> bytes:
    data = encoded(gradient(200, 200), "JPEG")
    return data[: len(data) // 2]


def float_tiff() -> bytes:
    return encoded(Image.new("F", (2, 2), 0.5), "TIFF")


PNG = encoded(gradient())
CASES = {
    "empty": (b"", "is empty (0 bytes)", "again"),
    "text": (b"404 not found", "no picture that can be read", "convert it to PNG"),
    "page": (b"<html>404</html>", "is a web page or XML", "Fetch the picture again"),
    "other format": (
        encoded(gradient(), "PPM"),
        "is a PPM, PGM, PBM, PAM or PFM picture. Pictures of another format",
        "PNG, JPEG, WEBP, GIF, BMP, TIFF",
    ),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "is a PostScript file, which is a program",
        "Export it as PNG",
    ),
    "no pixels": (bare_png(0, 3), "has no pixels", "remove the row"),
    "truncated jpeg": (
        broken_jpeg(),
        "is damaged or incomplete: image file is truncated",
        "A JPEG file that decodes",
    ),
    "truncated png": (PNG[: len(PNG) - 40], "is damaged or incomplete", "remove the row"),
    "header only": (PNG[:33], "no picture that can be read: it is damaged", "Fetch it again"),
    "bytes flipped": (
        PNG[:60] + bytes(255 - b for b in PNG[60:80]) + PNG[80:],
        "is damaged or incomplete",
        "again",
    ),
    "float": (float_tiff(), "32-bit pixels (mode F)", "8 bits per channel"),
    "bomb": (bare_png(60000, 60000), "declares too many pixels", "3600000000"),
    "over the limit": (
        bare_png(1001, 1000),
        "1001x1000 = 1001000 pixels. At most 1000000",
        "raise max_image_pixels",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_picture_is_refused_with_its_remedy(name: str, tmp_path: Path) -> None:
    data, said, remedy = CASES[name]
    (tmp_path / "x.img").write_bytes(data)
    for image, called in (
        (data, f"The embedded image of {len(data)} bytes"),
        ("x.img", "The image 'x.img'"),
    ):
        with pytest.raises(ImageError) as caught:
            load(image, tmp_path)
        message = str(caught.value)
        assert message.startswith(called)
        assert said in message
        assert remedy in message
        assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("size", [(60000, 60000), (1001, 1000), (12000, 10000)])
def test_a_bomb_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="pixels"):
        load(bare_png(*size))


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # as in a program, where it is only printed
def test_pillows_own_limit_holds_even_where_max_pixels_is_larger() -> None:
    with pytest.raises(
        ImageError, match=r"12000x10000 = 120000000 pixels\. At most PIL\.Image\.MAX_IMAGE_PIXELS="
    ):
        load(bare_png(12000, 10000), max_pixels=10**12)


def outside(tmp_path: Path) -> Path:
    """A root with links, beside a picture that it must not reach."""
    root = tmp_path / "root"
    (root / "img").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "root-twin").mkdir()
    (tmp_path / "root-twin" / "a.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop.png").symlink_to("loop.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize(
    "path, said, remedy",
    [
        ("../secret.png", "climbs out of a folder with '..'", "without '..'"),
        ("img/../../secret.png", "climbs out of a folder with '..'", "without '..'"),
        ("{tmp}/secret.png", "outside the image root", "Copy the file below the root"),
        ("{tmp}/root-twin/a.png", "outside the image root", "set the image root"),
        ("/etc/passwd", "outside the image root", "Copy the file below the root"),
        ("link.png", "outside the image root", "after links are followed"),
        ("up/secret.png", "outside the image root", "after links are followed"),
        ("img/none.png", "does not exist", "correct the path or the image root"),
        ("gone.png", "does not exist", "Restore the file"),
        ("loop.png", "", "orrect the path"),
        ("img", "is not a regular file", "remove the row"),
        ("", "is not a regular file", "remove the row"),
        ("pipe.png", "is not a regular file", "remove the row"),
        ("a\0b.png", "", "orrect the path"),
        ("x" * 5000, "x...x", "orrect the path"),
    ],
)
def test_a_path_stays_below_the_root(path: str, said: str, remedy: str, tmp_path: Path) -> None:
    root = outside(tmp_path)
    for use in (load, lambda image, root: read_image(image, root=root)):
        with pytest.raises(ImageError) as caught:
            use(path.format(tmp=tmp_path), root)
        message = str(caught.value)
        assert said in message
        assert remedy in message
        assert len(message) < 800


def test_a_file_whose_pixels_are_followed_by_megabytes_is_refused(tmp_path: Path) -> None:
    """The picture in front is good, so nothing but the size of the file speaks against it."""
    with (tmp_path / "a.png").open("wb") as file:
        file.write(PNG)
        file.truncate(MAX_ENCODED_BYTES)
    assert load("a.png", tmp_path).size == (40, 30)

    os.truncate(tmp_path / "a.png", MAX_ENCODED_BYTES + 1)
    said = (
        r"The image 'a.png' has 268435457 bytes\. Picture files of at most 256 MiB .*remove the row"
    )
    for use in (load, lambda image, root: read_image(image, root=root)):
        with pytest.raises(ImageError, match=said):
            use("a.png", tmp_path)


def test_without_a_root_only_embedded_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(ImageError, match=r"no image root was given.*Set the image root"):
        load(str(tmp_path / "a.png"), None)
    assert load(PNG, None).size == (40, 30)


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        ImageError, match=r"'a\.png' cannot be read: Permission denied.*Check its permissions"
    ):
        load("a.png", tmp_path)


SEEDS = [encoded(gradient(), f) for f in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
SEEDS += [
    encoded(sixteen_bit(), "TIFF"),
    encoded(gradient(), "TIFF", compression="tiff_lzw"),
    with_palette(True),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with up to six wrong bytes near its head, where decoders trip, and every other time cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)
    ):
        data[place % len(data)] = value
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@pytest.mark.filterwarnings(
    "ignore"
)  # Pillow warns of bad metadata in pictures that are otherwise whole
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=damaged())
def test_any_damage_gives_a_picture_or_an_image_error(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        image = load(data, max_pixels=20_000)
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 20_000
