"""Faults planted into files of rows: each is found and named with its file, and what only looks odd is read rightly.

One row of a table is one kind of fault: how it is written, and what the data check says of it. `FAULTS` must be refused,
`ODD` must be said and keep nobody from training, `GOOD` are read without a word of that, with the answers that stand there.
"""

import base64
import datetime
import gzip
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from runs import write_config

from gpg_vl.cli import main
from gpg_vl.config import load_config
from gpg_vl.data.check import DataReport
from gpg_vl.data.read import load_examples
from gpg_vl.models.encode import Encoder
from gpg_vl.training.data_check import check_data
from gpg_vl.training.prepare import make_encoder

Write = Callable[[Path], None]
ROW = {"prompt": "Which colour is it?", "answer": "red"}
SHOWN = {"prompt": "<image>Which colour is it?", "answer": "red"}
LINE = json.dumps(ROW)


# How things are written.


def text(content: str | bytes, name: str = "d.jsonl") -> Write:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: put(folder / name, data)


def put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def rows(*given: dict[str, Any] | str, name: str = "d.jsonl") -> Write:
    """A good first line and the given ones, so that a problem stands at the second line."""
    lines = [LINE, *(row if isinstance(row, str) else json.dumps(row) for row in given)]
    return text("\n".join(lines) + "\n", name)


def cells(**changed: object) -> Write:
    return rows(ROW | changed)


def parquet(columns: dict[str, pa.Array], name: str = "d.parquet", **features: object) -> Write:
    """A table, with what the `datasets` library would note of its columns."""
    table = pa.table(columns)
    if features:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    return lambda folder: pq.write_table(table, folder / name)


def golds(answers: pa.Array, **features: object) -> Write:
    return parquet({"prompt": pa.array(["?"] * len(answers)), "answer": answers}, **features)


def picture(image: bytes | Image.Image, name: str = "a.png", **options: Any) -> Write:
    """A row that shows one picture."""

    def write(folder: Path) -> None:
        put(folder / name, image if isinstance(image, bytes) else encoded(image, **options))
        rows(SHOWN | {"images": [name]})(folder)

    return write


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def linked(target: str, name: str = "a.png") -> Write:
    """A row whose picture is a link; beside the folder lies a picture that it must not reach."""

    def write(folder: Path) -> None:
        put(folder.parent / "outside.png", encoded(GREY))
        put(folder / "real.png", encoded(GREY))
        (folder / name).symlink_to(target)
        rows(SHOWN | {"images": [name]})(folder)

    return write


def link(name: str, target: str) -> Write:
    return lambda folder: (folder / name).symlink_to(target)


def named(names: list[str], values: list[str]) -> Write:
    """A Parquet file of one row, whose columns may share a name."""
    table = pa.Table.from_arrays([pa.array([value]) for value in values], names)
    return lambda folder: pq.write_table(table, folder / "d.parquet")


def both(*writes: Write) -> Write:
    def write_all(folder: Path) -> None:
        for write in writes:
            write(folder)

    return write_all


def png_of_16_bits(most: int, channels: int = 3) -> bytes:
    """Noise from 0 to `most`, in a file of 16 bits per channel."""
    size = 56
    values = np.random.default_rng(0).integers(0, most + 1, (size, size * channels))
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    kind = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", size, size, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


def drawing(ink: tuple[int, int, int]) -> Image.Image:
    """A square of one colour in the middle of nothing."""
    image = Image.new("RGBA", (56, 56), (255, 255, 255, 0))
    image.paste((*ink, 255), (10, 10, 40, 40))
    return image


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (84, 56), "red"), "JPEG", exif=exif)


TWO = pa.array(["Which is near?", "Which is far?"])
COLOURS = pa.array(["red", "blue"])
_BYTES = pa.array([b"ok", b"\xff"])
NO_UTF8 = pa.Array.from_buffers(pa.string(), 2, [None, *_BYTES.buffers()[1:]])
NO_TEXT = pa.array([], pa.string())
GREY = Image.linear_gradient("L").resize((56, 56))
RED = Image.new("RGB", (56, 56), "red")
BASE64 = base64.b64encode(encoded(GREY)).decode()
UTF16 = f"{LINE}\n{LINE}\n"
PARQUET = io.BytesIO()
pq.write_table(pa.table({"prompt": ["?"], "answer": ["red"]}), PARQUET)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
LABELS = {"names": ["cat", "dog"], "_type": "ClassLabel"}
DEEP = "[" * 100_000
MESSAGE = '{"role": "user", "role": "system", "content": "Which?"}'

FAULTS: dict[str, tuple[Write, Sequence[str]]] = {
    # encodings and syntax
    "latin-1": (text(LINE.encode() + b'\n{"prompt": "\xe9"}\n'), ["d.jsonl:2", "not UTF-8: byte 0xe9"]),
    "utf-16 with a mark": (text(UTF16.encode("utf-16")), ["UTF-16", "iconv"]),
    "utf-16 without a mark": (text(UTF16.encode("utf-16-le")), ["UTF-16", "iconv"]),
    "utf-32": (text(UTF16.encode("utf-32-be")), ["UTF-16 or UTF-32"]),
    "half a surrogate": (cells(answer="\ud800"), ["d.jsonl:2", "half a surrogate pair"]),
    "a list in .jsonl": (text(f"[{LINE},\n{LINE}]"), ["one JSON document", "Name it .json"]),
    "a spread object in .jsonl": (text(json.dumps(ROW, indent=2)), ["one JSON document"]),
    "a comma behind a row": (rows(LINE + ","), ["d.jsonl:2", "not JSON"]),
    "a comma before the bracket": (rows('{"prompt": "?", "answer": "x",}'), ["d.jsonl:2", "not JSON"]),
    "single quotes": (rows(str(ROW)), ["d.jsonl:2", "not JSON"]),
    "a comment": (rows("// rows"), ["d.jsonl:2", "not JSON"]),
    "two objects in a line": (rows(LINE + LINE), ["d.jsonl:2", "Extra data"]),
    "old Mac line ends": (text(f"{LINE}\r{LINE}\r"), ["d.jsonl:1", "Extra data"]),
    "a cut last line": (rows(LINE[:-9]), ["d.jsonl:2", "not written completely"]),
    "zeros at the end": (rows("\0" * 40), ["d.jsonl:2", "not JSON"]),
    "a name given twice": (rows('{"prompt": "?", "answer": "1", "answer": "2"}'), ["d.jsonl:2", "'answer' twice"]),
    "a name given twice inside": (rows('{"prompt": [' + MESSAGE + '], "answer": "1"}'), ["d.jsonl:2", "'role' twice"]),
    "a name given twice in .json": (
        text('[{"prompt": "?", "answer": "1", "answer": "2"}]', "d.json"),
        ["d.json[0]", "'answer' twice"],
    ),
    "a number of 5000 digits": (rows('{"prompt": "?", "answer": ' + "9" * 5000 + "}"), ["d.jsonl:2", "not JSON"]),
    "brackets without end": (rows(DEEP), ["d.jsonl:2", "not JSON"]),
    "a number for a row": (rows("7"), ["d.jsonl:2", "JSON of type int"]),
    "a list for a row": (rows('["?", "red"]'), ["d.jsonl:2", "JSON of type list"]),
    "a damaged .json": (text(f"[{LINE}, {LINE[:-3]}", "d.json"), ["d.json is not JSON"]),
    # values
    "NaN": (rows('{"prompt": "?", "answer": NaN}'), ["d.jsonl:2", "The answer is nan"]),
    "Infinity": (rows('{"prompt": "?", "answer": -Infinity}'), ["d.jsonl:2", "The answer is -inf"]),
    "NaN for a picture": (rows('{"prompt": "?", "answer": "x", "images": NaN}'), ["d.jsonl:2", "Image 1 of 1 is nan"]),
    "a list for an answer": (cells(answer=["red"]), ["d.jsonl:2", "The answer is ['red']"]),
    "an object for an answer": (cells(answer={"text": "red"}), ["d.jsonl:2", "The answer is {'text': 'red'}"]),
    "null for an answer": (cells(answer=None), ["d.jsonl:2", "'answer' is null"]),
    "a number for a prompt": (cells(prompt=7), ["d.jsonl:2", "The prompt is 7"]),
    "an empty list for a prompt": (cells(prompt=[]), ["d.jsonl:2", "The prompt is []"]),
    "blanks for a prompt": (cells(prompt=" \t\n"), ["d.jsonl:2", "The prompt is empty"]),
    "text for choices": (cells(choices="red, blue"), ["d.jsonl:2", "The choices are 'red, blue'"]),
    "null among choices": (cells(choices=["red", None]), ["d.jsonl:2", "The option 2 of 2 is null"]),
    "a list for an id": (cells(id=[1]), ["d.jsonl:2", "The id is [1]"]),
    "an id given twice": (
        rows(ROW | {"id": "a"}, ROW | {"id": "a"}),
        ["d.jsonl:3", "'a' already belongs to row 1", "d.jsonl:2)"],
    ),
    "an id given twice over files": (
        both(rows(ROW | {"id": "a"}, name="x.jsonl"), rows(ROW | {"id": "a"}, name="y.jsonl")),
        ["y.jsonl:2", "already belongs to row 1", "x.jsonl:2"],
    ),
    "an id like a row's number": (rows(ROW | {"id": "0"}), ["d.jsonl:2", "'0' already belongs to row 0"]),
    "an escape in an answer": (cells(answer="\frac{1}{2}"), ["d.jsonl:2", "control character \\x0c", "backslash twice"]),
    "a NUL in an answer": (cells(answer="re\0d"), ["d.jsonl:2", "control character \\x00"]),
    # numbers that nobody wrote
    "32 bits in text": (cells(answer="3.140000104904175"), ["d.jsonl:2", "Write 3.14,"]),
    "32 bits in a number": (cells(answer=0.10000000149011612), ["d.jsonl:2", "Write 0.1,"]),
    "a sum in 64 bits": (cells(answer=0.1 + 0.2), ["d.jsonl:2", "Write 0.3,"]),
    "a difference in 64 bits": (cells(answer="2.9999999999999996"), ["d.jsonl:2", "Write 3,"]),
    "a whole number beyond floats": (golds(pa.array([9007199254740993.0])), ["d.parquet[0]", "at most 15 digits"]),
    # columns of Parquet
    "dates for answers": (golds(pa.array([datetime.date(2020, 1, 2)])), ["d.parquet[0]", "The answer is datetime.date"]),
    "bytes for answers": (golds(pa.array([b"red"])), ["d.parquet[0]", "The answer is b'red'"]),
    "no value in a column": (golds(pa.nulls(2)), ["d.parquet[1]", "'answer' is null"]),
    "a label without a name": (golds(pa.array([1, -1, 2]), answer=LABELS), ["d.parquet[1]", "d.parquet[2]", "'answer' is null"]),
    "a column twice": (
        named(["prompt", "answer", "answer"], ["?", "a", "b"]),
        ["d.parquet has the column 'answer' more than once"],
    ),
    "other columns in the second file": (
        both(golds(pa.array(["a"])), parquet({"prompt": pa.array(["?"]), "target": pa.array(["b"])}, "e.parquet")),
        ["e.parquet has no column 'answer'"],
    ),
    "bytes that are no text": (golds(NO_UTF8), ["d.parquet[1]", "The answer is unreadable", "utf-8"]),
    # files
    "an empty file": (text(""), ["There are no rows"]),
    "an empty file among others": (both(rows(ROW), text("", "e.jsonl")), ["e.jsonl", "holds no rows"]),
    "a cut Parquet file": (text(PARQUET.getvalue()[:-20], "d.parquet"), ["d.parquet cannot be read"]),
    "JSON called .parquet": (text(LINE, "d.parquet"), ["d.parquet cannot be read"]),
    "Parquet called .jsonl": (text(PARQUET.getvalue()), ["d.jsonl is a Parquet file", "Name it .parquet"]),
    "a pointer called .parquet": (text(POINTER, "d.parquet"), ["Git LFS pointer", "git lfs pull"]),
    "a pointer called .jsonl": (text(POINTER), ["Git LFS pointer", "git lfs pull"]),
    "a web page": (text("<!DOCTYPE html><html>404</html>"), ["a web page", "Fetch it again"]),
    "a ZIP archive": (text(b"PK\x03\x04rest"), ["a ZIP archive"]),
    "a pickle": (text(b"\x80\x04\x95rest"), ["a pickle, which is never opened"]),
    "zstd": (text(b"\x28\xb5\x2f\xfdrest"), ["compressed with zstd"]),
    "a cut gzip": (text(gzip.compress(os.urandom(4000).hex().encode())[:900], "d.jsonl.gz"), ["d.jsonl.gz cannot be unpacked"]),
    "train and test": (both(rows(name="train-0.jsonl"), rows(name="test-0.jsonl")), ["several splits", "train-0.jsonl'"]),
    "train and validation": (both(rows(name="my_train.jsonl"), rows(name="my_val.jsonl.gz")), ["several splits"]),
    "rows and test rows": (both(rows(name="rows.jsonl"), rows(name="TestSet.jsonl")), ["several splits"]),
    "train and test in one word": (both(rows(name="traindata.jsonl"), rows(name="testdata_1.jsonl")), ["several splits"]),
    "rows and held-out rows": (both(rows(name="rows.jsonl"), rows(name="held_out.jsonl")), ["several splits"]),
    "rows in two formats": (both(rows(), golds(pa.array(["a"]))), ["d.parquet and", "one name in two formats"]),
    "rows twice, once packed": (both(rows(), text(gzip.compress(LINE.encode()), "d.jsonl.gz")), ["one name in two formats"]),
    "a hard link": (both(rows(), lambda folder: os.link(folder / "d.jsonl", folder / "e.jsonl")), ["are one file, by a link"]),
    "a link to a file beside it": (
        both(rows(), link("e.jsonl", "d.jsonl")),
        ["are one file, by a link"],
    ),
    "a link that leads nowhere": (
        both(rows(), link("e.jsonl", "gone.jsonl")),
        ["e.jsonl is a link that leads nowhere"],
    ),
    "a loop of links": (
        both(rows(), link("e.jsonl", "e.jsonl")),
        ["e.jsonl is a link that leads nowhere"],
    ),
    "CSV alone": (text('prompt,answer\n"Which, ""now""?",red\n', "d.csv"), ["holds no .jsonl", "'d.csv': convert these"]),
    "rows in a subfolder alone": (rows(name="data/d.jsonl"), ["holds no .jsonl", "Give the folder that holds them", "data' do"]),
    # what is no picture
    "an address": (cells(images=["https://x.org/a.png"]), ["d.jsonl:2", "is the address"]),
    "a file's address": (cells(images=["file:///a.png"]), ["d.jsonl:2", "is the address"]),
    "base64 alone": (cells(images=[BASE64]), ["d.jsonl:2", "look like base64", "data:image/png;base64,"]),
    "base64 for bytes": (cells(images=[{"bytes": BASE64, "path": None}]), ["d.jsonl:2", "look like base64"]),
    "broken base64": (cells(images=["data:image/png;base64,eHl6@"]), ["d.jsonl:2", "base64 is broken"]),
    "another data URI": (cells(images=["data:;base64," + BASE64]), ["d.jsonl:2", "no data URI of a picture", "data:image/png"]),
    "base64 behind a word": (cells(images=["base64," + BASE64]), ["d.jsonl:2", "no data URI of a picture"]),
    "a list as text": (cells(images='["a.png"]'), ["d.jsonl:2", "stored as text"]),
    "bytes as text": (cells(images=["b'\\x89PNG'"]), ["d.jsonl:2", "stored as text"]),
    "a picture that was printed": (cells(images=["<PIL.Image.Image size=8x8>"]), ["d.jsonl:2", "stored as text"]),
    "a struct of other keys": (cells(images=[{"image": "a.png"}]), ["d.jsonl:2", "the struct {'image': 'a.png'}"]),
    "a struct of nulls": (cells(images=[{"bytes": None, "path": None}]), ["d.jsonl:2", "{'bytes': None, 'path': None}"]),
    "numbers for bytes": (cells(images=[{"bytes": [137, 80]}]), ["d.jsonl:2", "'bytes': [137, 80]"]),
    "null among pictures": (cells(images=["a.png", None]), ["d.jsonl:2", "Image 2 of 2 is null"]),
    "no text for a path": (cells(images=[""]), ["d.jsonl:2", "Image 1 of 1 is ''"]),
    "a path to nothing": (rows(SHOWN | {"images": ["gone.png"]}), ["d.jsonl:2", "does not exist"]),
    "a path upwards": (rows(SHOWN | {"images": ["../outside.png"]}), ["d.jsonl:2", "climbs out"]),
    "a path outside": (rows(SHOWN | {"images": ["/etc/hostname"]}), ["d.jsonl:2", "outside the image root"]),
    "a link outside": (linked("../outside.png"), ["d.jsonl:2", "outside the image root"]),
    "a link of a picture to nothing": (linked("gone.png"), ["d.jsonl:2", "does not exist"]),
    "a link of a picture to itself": (linked("a.png"), ["d.jsonl:2", "a.png"]),
    "a folder for a picture": (
        both(rows(SHOWN | {"images": ["sub"]}), lambda folder: (folder / "sub").mkdir()),
        ["d.jsonl:2", "is not a regular file"],
    ),
    "a picture of 0 bytes": (picture(b""), ["d.jsonl:2", "is empty (0 bytes)"]),
    "a cut JPEG": (picture(encoded(GREY.resize((900, 900)), "JPEG")[:4000]), ["d.jsonl:2", "damaged or incomplete"]),
    "a cut PNG": (picture(encoded(GREY)[:-30]), ["d.jsonl:2", "damaged or incomplete"]),
    "too many pixels": (picture(encoded(Image.new("1", (9000, 9000)))), ["d.jsonl:2", "81000000 pixels"]),
    "a strip": (picture(Image.new("RGB", (2000, 2), "red")), ["d.jsonl:2", "2000"]),
    "a page for a picture": (picture(b"<html>403</html>"), ["d.jsonl:2", "is a web page"]),
    "a pointer for a picture": (picture(POINTER), ["d.jsonl:2", "Git LFS pointer", "git lfs pull"]),
    "AVIF": (picture(b"\0\0\0\x1cftypavif\0\0\0\0"), ["d.jsonl:2", "is an AVIF picture", "Convert it to PNG"]),
    "HEIC": (picture(b"\0\0\0\x1cftypheic\0\0\0\0"), ["d.jsonl:2", "is a HEIC or HEIF picture"]),
    "JPEG 2000": (picture(b"\0\0\0\x0cjP  \r\n\x87\n"), ["d.jsonl:2", "is a JPEG 2000 picture"]),
    "PPM": (picture(RED, format="PPM"), ["d.jsonl:2", "is a PPM"]),
    "SVG": (picture(b'<?xml version="1.0"?>\n<svg width="9"/>'), ["d.jsonl:2", "is an SVG drawing"]),
    "PDF": (picture(b"%PDF-1.7\n"), ["d.jsonl:2", "is a PDF document"]),
    "MP4": (picture(b"\0\0\0\x1cftypisom\0\0\0\0"), ["d.jsonl:2", "is a film"]),
    "zeros for a picture": (picture(bytes(3000)), ["d.jsonl:2", "is zero bytes alone"]),
    "12 bits of grey in 16": (picture(png_of_16_bits(4095, 1)), ["d.jsonl:2", "of which 16 are left"]),
    "12 bits of colour in 16": (picture(png_of_16_bits(4095)), ["d.jsonl:2", "at most 15 of 255"]),
    "8 bits of grey at 30000": (
        picture(Image.fromarray(np.asarray(GREY) + np.uint16(30000))),
        ["d.jsonl:2", "of which 2 are left"],
    ),
    "white on nothing": (picture(drawing((255, 255, 255))), ["d.jsonl:2", "of which 1 are left"]),
    "floats in a picture": (picture(Image.new("F", (56, 56), 0.5), format="TIFF"), ["d.jsonl:2", "32-bit pixels"]),
}  # fmt: skip

ODD: dict[str, tuple[Write, Sequence[str]]] = {
    "CSV beside rows": (both(rows(), text("a,b\n", "e.csv")), ["1 file(s) of", "'e.csv'"]),
    "JSON that is no rows": (both(rows(), text('{"features": {"prompt": 1}}', "info.json")), ["'info.json'"]),
    "an older copy": (both(rows(), text(LINE, "d.jsonl.bak")), ["'d.jsonl.bak'"]),
    "xz beside rows": (both(rows(), text(b"\xfd7zXZ", "e.jsonl.xz")), ["'e.jsonl.xz'"]),
    "rows in a subfolder": (both(rows(), rows(name="more/e.jsonl")), ["in subfolders", "'more/e.jsonl'"]),
    "a folder called .parquet": (both(rows(), rows(name="e.parquet/part.parquet")), ["'e.parquet/part.parquet'"]),
    "a lost character": (cells(prompt="Which caf\ufffd?"), ["1 row(s)", "d.jsonl:2", "U+FFFD"]),
    "UTF-8 encoded twice": (cells(prompt="Which café?".encode().decode("latin-1")), ["d.jsonl:2", "looks like UTF-8"]),
    "UTF-8 as Windows-1252": (cells(prompt="It’s red?".encode().decode("cp1252")), ["d.jsonl:2", "looks like UTF-8"]),
    "an escape in a prompt": (cells(prompt="What is 3 \times 4?"), ["d.jsonl:2", "Write its backslash twice"]),
    "a control character in a prompt": (cells(prompt="Which\x07?"), ["d.jsonl:2", "control characters"]),
    "an animation": (picture(RED, format="GIF", save_all=True, append_images=[GREY]), ["d.jsonl:2", "several frames or pages"]),
    "two pages": (picture(RED, format="TIFF", save_all=True, append_images=[RED]), ["d.jsonl:2", "several frames or pages"]),
}  # fmt: skip

GOOD: dict[str, tuple[Write, Sequence[str]]] = {
    "a mark at the beginning": (text(b"\xef\xbb\xbf" + LINE.encode()), ["red"]),
    "a mark where files were joined": (rows("\ufeff" + LINE), ["red", "red"]),
    "line ends of Windows": (text(f"{LINE}\r\n\r\n{LINE}\r\n"), ["red", "red"]),
    "no line end at the end": (text(f"{LINE}\n{LINE}"), ["red", "red"]),
    "U+2028 in a text": (rows('{"prompt": "a\u2028b?", "answer": "x"}'), ["red", "x"]),
    "other scripts": (cells(prompt="图中有几个球？", answer="五"), ["red", "五"]),
    "words with circumflex": (cells(prompt="Quel âge a le château à São Paulo ?"), ["red", "red"]),
    "LaTeX": (cells(prompt="What is\n\t$3 \\times 4$?", answer="\\frac{1}{2}"), ["red", "\\frac{1}{2}"]),
    "gzip": (text(gzip.compress(LINE.encode()), "d.jsonl.gz"), ["red"]),
    "gzip without its name": (text(gzip.compress(LINE.encode())), ["red"]),
    "a packed list": (text(gzip.compress(f"[{LINE}]".encode()), "d.json.gz"), ["red"]),
    "capital letters": (rows(name="D.JSONL"), ["red"]),
    "ndjson": (rows(name="d.ndjson"), ["red"]),
    "a list in .json": (text(f"\ufeff[{LINE},\n {LINE}]", "d.json"), ["red", "red"]),
    "lines in .json": (text(f"{LINE}\n{LINE}\n", "d.json"), ["red", "red"]),
    "an object in .json": (text(json.dumps(ROW, indent=1), "d.json"), ["red"]),
    "hidden files": (both(rows(), text(b"\0\5", "._d.jsonl"), text(b"", ".x.jsonl")), ["red"]),
    "texts and pictures beside": (both(rows(), text("", "README.md"), text("", "LICENSE"), text("", "x.JPG")), ["red"]),
    "a link to another folder": (
        both(rows(name="../kept/d.jsonl"), link("d.jsonl", "../kept/d.jsonl")),
        ["red"],
    ),
    "parts of one split": (both(rows(name="train-0.jsonl"), rows(name="train-1.jsonl")), ["red", "red"]),
    "names with parts of split words": (both(rows(name="latest.jsonl"), rows(name="contest.jsonl")), ["red", "red"]),
    "dates beyond all calendars": (
        parquet({"prompt": TWO, "answer": COLOURS, "day": pa.array([2**30, 2], pa.date32())}),
        ["red", "blue"],
    ),
    "bytes that are no text, where they do not matter": (
        parquet({"prompt": TWO, "answer": COLOURS, "note": NO_UTF8}),
        ["red", "blue"],
    ),
    "a Parquet file without rows": (
        both(golds(pa.array(["a"])), parquet({"prompt": NO_TEXT, "answer": NO_TEXT}, "e.parquet")),
        ["a"],
    ),
    "class labels": (golds(pa.array([1, 0]), answer=LABELS), ["dog", "cat"]),
    "whole numbers beside a null": (
        parquet({"prompt": pa.array(["?", "?"]), "answer": pa.array([3.0, 12.0]), "x": pa.array([None, 1.5])}),
        ["3", "12"],
    ),
    "32-bit numbers": (golds(pa.array([3.14, 0.1, 2.0], pa.float32())), ["3.14", "0.1", "2"]),
    "16-bit numbers": (golds(pa.array(np.array([3.14, 0.5], np.float16))), ["3.14", "0.5"]),
    "64-bit numbers": (golds(pa.array([3.14, 1e-05, 1 / 3])), ["3.14", "0.00001", "0.3333333333333333"]),
    "decimals": (golds(pa.array([Decimal("3.10"), Decimal("4.00")])), ["3.1", "4"]),
    "long decimals": (golds(pa.array([Decimal("1." + "1" * 30 + "0")])), ["1." + "1" * 30]),
    "a dictionary": (golds(pa.array(["cat", "dog", "cat"]).dictionary_encode()), ["cat", "dog", "cat"]),
    "long numbers": (cells(answer=12345678901234567890123), ["red", "12345678901234567890123"]),
    "pi": (cells(answer="3.14159265358979"), ["red", "3.14159265358979"]),
    "a number as text": (cells(answer="3.0"), ["red", "3.0"]),
    "true": (cells(answer=True), ["red", "true"]),
    "no pictures": (rows(ROW | {"images": []}, ROW | {"images": None}), ["red", "red", "red"]),
    "a turned photo": (picture(turned()), ["red", "red"]),
    "CMYK": (picture(Image.new("CMYK", (56, 56), (0, 255, 255, 0)), format="JPEG"), ["red", "red"]),
    "a palette with transparency": (picture(GREY.convert("P"), transparency=0), ["red", "red"]),
    "black on nothing": (picture(drawing((0, 0, 0))), ["red", "red"]),
    "16 bits in full": (picture(png_of_16_bits(65535, 1)), ["red", "red"]),
    "16 bits of colour in full": (picture(png_of_16_bits(65535)), ["red", "red"]),
    "one colour": (picture(Image.new("RGBA", (56, 56), (255, 255, 255, 255))), ["red", "red"]),
    "one bit": (picture(GREY.convert("1")), ["red", "red"]),
    "a link inside": (linked("real.png"), ["red", "red"]),
    "a name with blanks": (picture(RED, name="ein Bild ä.png"), ["red", "red"]),
    "a long name without an ending": (picture(RED, name="images/ab/" + "a1" * 32), ["red", "red"]),
    "a data address with a charset": (
        rows(SHOWN | {"images": "data:image/png;charset=utf-8;base64," + BASE64}),
        ["red", "red"],
    ),
    "a data address": (rows(SHOWN | {"images": "data:image/png;base64," + BASE64}), ["red", "red"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(
        load_config(write_config(tmp_path_factory.mktemp("config"), tiny_checkpoint))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def of_reading(report: DataReport) -> list[str]:
    """The notes but for those on what the rows say: few of the rows here have a picture, and all ask the same."""
    of_rows = re.compile(
        r"None of the \d+ rows has an image|rows have no image|ask the same|repeats an earlier row|asks what"
    )
    return [note for note in report.notes if not of_rows.search(note)]


def checked(folder: Path, encoder: Encoder, config: Path) -> tuple[DataReport, str]:
    """The report on a folder, and the words in which it is printed."""
    settings = [f"data.train={folder}", "data.columns={}"]
    report = check_data(load_config(config, settings), replace(encoder, root=folder), None)
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    report.render(console)
    return report, console.file.getvalue()


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return write_config(tmp_path / "config", tiny_checkpoint)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # refused right after
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind: str, folder: Path, encoder: Encoder, config: Path) -> None:
    write, said = FAULTS[kind]
    write(folder)
    report, printed = checked(folder, encoder, config)
    assert not report.ok
    for words in said:
        assert words in printed
    assert all(len(problem.message) < 1200 for problem in report.problems)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_said_and_refuses_nothing(
    kind: str, folder: Path, encoder: Encoder, config: Path
) -> None:
    write, said = ODD[kind]
    write(folder)
    report, printed = checked(folder, encoder, config)
    assert report.ok, report.problems
    assert len(of_reading(report)) == 1
    for words in said:
        assert words.casefold() in printed.casefold()


@pytest.mark.parametrize("kind", GOOD)
def test_what_only_looks_odd_is_read_without_a_word(
    kind: str, folder: Path, encoder: Encoder, config: Path
) -> None:
    write, answers = GOOD[kind]
    write(folder)
    report, _ = checked(folder, encoder, config)
    assert report.ok, report.problems
    assert of_reading(report) == []
    assert [example.answer for example in load_examples(folder)] == answers


def test_the_tables_hold_many_kinds() -> None:
    assert len(FAULTS) >= 80
    assert len(GOOD) >= 40


def test_the_command_names_the_file_and_shows_the_golds(
    folder: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both(rows(ROW | {"answer": "7"}, ROW | {"answer": None}), text("a,b\n", "e.csv"))(folder)
    words = ["data", "check", str(config), f"data.train={folder}", "data.columns={}"]
    assert main([*words, "rewards.weights={counting: 1.0}"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "d.jsonl:3: The column 'answer' is null" in printed
    assert "note: 1 file(s)" in printed
    assert "as counting reads it" in printed
    assert "1 7 7" in printed
