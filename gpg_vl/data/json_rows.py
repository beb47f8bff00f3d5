"""Reads rows from JSON text: one object per line, or one list of objects, plain or gzipped, in UTF-8.

For a line that cannot be read a `CellError` is returned instead of its cells; a file that cannot be read raises a
`UserError`. At most `MAX_LINE` bytes of a line are read, also in a compressed file.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpg_vl.data.cells import CellError, quote
from gpg_vl.errors import UserError

Cells = dict[str, Any]
PlacedCells = tuple[str, Cells | CellError]
MAX_LINE = 256 << 20
"""Maximum bytes of one unpacked line."""
_CHUNK = 1 << 20
_LONGEST_ELEMENT = 64 << 20
_HEAD = 64
_GZIP = b"\x1f\x8b"

# First bytes of files that are named .jsonl or .parquet but have another format.
_OTHER_CONTENT = (
    (re.compile(rb"PAR1"), "a Parquet file", "Name it .parquet"),
    (re.compile(rb"ARROW1"), "an Arrow file", "Convert it to Parquet"),
    (
        re.compile(rb"version https://git-lfs"),
        "a Git LFS pointer, not the data itself",
        "Fetch the file with `git lfs pull`",
    ),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive", "Unpack it"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed with zstd", "Unpack it with `zstd -d`"),
    (re.compile(rb"BZh[1-9]"), "compressed with bzip2", "Unpack it with `bunzip2`"),
    (re.compile(rb"\xfd7zXZ"), "compressed with xz", "Unpack it with `unxz`"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle, which is never opened", "Convert it to JSON"),
    (re.compile(rb"SQLite format 3"), "a SQLite data base", "Export its rows"),
    (
        re.compile(rb"\xff\xfe|\xfe\xff|[{\[]\0|\0{1,3}[{\[]"),
        "text in UTF-16 or UTF-32",
        "Convert it: iconv -f UTF-16 -t UTF-8",
    ),
    (
        re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "a web page or XML, as a failed download leaves it",
        "Fetch it again",
    ),
)


class NameTwiceError(CellError):
    """An object in which a name occurs twice."""

    def __init__(self, message: str, names: frozenset[str]) -> None:
        super().__init__("json", message)
        self.names = names
        """All its names."""


def jsonl_rows(file: Path, *, name: str | None = None) -> Iterator[PlacedCells]:
    """The place and cells of each line; blank lines do not count as rows.

    `name` is the file's name in places. Raises UserError.
    """
    name = name or str(file)
    decode = Decoder()
    with open_text(file) as stream:
        refuse_one_document(file, stream)
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                skip_line(stream)
                yield f"{name}:{number}", long_line()
            elif line.strip():
                yield f"{name}:{number}", parse_line(line, decode)


def json_rows(file: Path, *, name: str | None = None) -> Iterator[PlacedCells]:
    """The elements of a JSON file that is one list of objects, a megabyte at a time; or its only object.

    Raises:
        UserError: if the file is incomplete or not JSON; for an element that is not an object a CellError is yielded.
    """
    name = name or str(file)
    with open_text(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        try:
            for number, (_, _, cells) in enumerate(elements(text.read)):
                yield f"{name}[{number}]", cells
        except (ValueError, RecursionError) as error:
            raise not_json(file, error) from error


def not_json(file: Path, error: Exception) -> UserError:
    """The error for a file that is incomplete or not JSON."""
    return UserError(
        f"{file} is not JSON: {error}. A list of objects, in UTF-8, is allowed. Fetch or export it again."
    )


def json_or_jsonl_rows(file: Path, *, name: str | None = None) -> Iterator[PlacedCells]:
    """The rows of a .json file: a list of objects, one object, or one object per line.

    Raises UserError.
    """
    rows = jsonl_rows if holds_lines(file) else json_rows
    yield from rows(file, name=name)


def first_keys(file: Path) -> frozenset[str]:
    """The names in the first object of a .json file; empty if it has no object.

    Raises UserError.
    """
    rows = json_or_jsonl_rows(file)
    try:
        for _, cells in rows:
            if isinstance(cells, NameTwiceError):
                return cells.names
            return frozenset() if isinstance(cells, CellError) else frozenset(cells)
    finally:
        cast(Any, rows).close()
    return frozenset()


def refuse_no_parquet(file: Path, wanted: str) -> None:
    """Raise UserError if the first bytes show that a supposed Parquet file is something else."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head.startswith(b"PAR1"):
        _refuse_other_head(file, head, wanted)


def _refuse_other_head(file: Path, head: bytes, wanted: str) -> None:
    for pattern, what, remedy in _OTHER_CONTENT:
        if pattern.match(head):
            raise UserError(f"{file} is {what}. It must be {wanted}. {remedy}.")


@contextmanager
def open_text(file: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacking it if it is gzipped, whatever its name is. Raises UserError."""
    try:
        with file.open("rb") as raw:
            head = raw.read(_HEAD)
            _refuse_other_head(file, head, "JSON in UTF-8")
            raw.seek(0)
            if not head.startswith(_GZIP):
                yield cast(BinaryIO, raw)
                return

            with gzip.open(raw, "rb") as unpacked:
                yield cast(BinaryIO, unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{file} cannot be unpacked: {error}. A complete gzip file is needed. Fetch or write it again."
        ) from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}. A readable file is needed. Check its permissions and its disk."
        ) from error


def refuse_one_document(file: Path, stream: BinaryIO) -> None:
    """Refuse a JSON document over several lines, each of which would otherwise be reported."""
    first = stream.readline(_CHUNK).removeprefix(b"\xef\xbb\xbf").strip()
    stream.seek(0)
    if first.startswith(b"[") or first == b"{":
        what = "a list" if first.startswith(b"[") else "an object"
        raise UserError(
            f"{file} begins with {what} that is one JSON document. A .jsonl file has one object on each line. "
            f"Name it .json, or write one object per line."
        )


def skip_line(stream: BinaryIO) -> None:
    """Skip the rest of a line."""
    while (piece := stream.readline(_CHUNK)) and not piece.endswith(b"\n"):
        pass


def long_line() -> CellError:
    """The error for a line of more than `MAX_LINE` bytes."""
    return CellError(
        "json",
        f"The line is longer than {MAX_LINE >> 20} MiB. Shorter lines are allowed. Store pictures as files and name "
        f"their paths.",
    )


def parse_line(line: bytes, decode: "Decoder") -> Cells | CellError:
    """The object on a line, or the error."""
    try:
        value = decode.whole(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return CellError(
            "json",
            f"The line is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start}. One JSON object per line, in "
            f"UTF-8, is allowed. Convert the file to UTF-8 from the encoding it was written in.",
        )
    except (ValueError, RecursionError) as error:
        return CellError(
            "json",
            f"The line is not JSON: {error}. One JSON object per line, in UTF-8, is allowed. "
            f"Correct the line; where the last line is cut, the file was not written completely.",
        )
    return _check_object(value, decode.twice, "line")


def _check_object(value: object, twice: list[str], what: str) -> Cells | CellError:
    """The decoded value if it is an object without repeated names, else the error."""
    if twice:
        return NameTwiceError(
            f"The {what} gives the name {quote(twice[0])} twice in one object. Each name is allowed once, because nothing "
            f"says which value is meant. Remove one.",
            frozenset(value if isinstance(value, dict) else ()),
        )
    if isinstance(value, dict):
        return value
    return CellError(
        "json",
        f"The {what} is {quote(value)}, JSON of type {type(value).__name__}. One object with named columns is allowed. "
        f"Write it as {{'prompt': ..., 'answer': ...}} in JSON.",
    )


class Decoder:
    """A JSON decoder that records repeated names of objects.

    twice: the repeated names in the last decoded value.
    """

    def __init__(self) -> None:
        self.twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._make_object)

    def whole(self, text: str) -> object:
        """Decode a text that is one JSON document. Raises ValueError or RecursionError."""
        self.twice.clear()
        return self._decoder.decode(text)

    def at(self, text: str, place: int) -> tuple[object, int]:
        """The value that begins at `place`, and where it ends. Raises as `whole` does."""
        self.twice.clear()
        return self._decoder.raw_decode(text, place)

    def _make_object(self, pairs: list[tuple[str, Any]]) -> Cells:
        cells = dict(pairs)
        if len(cells) < len(pairs):
            self.twice += [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        return cells


def holds_lines(file: Path) -> bool:
    """Whether the first line of a file is a whole object, and another one follows it."""
    with open_text(file) as stream:
        first = stream.readline(_LONGEST_ELEMENT)
        following = stream.readline(_CHUNK)
        while following and not following.strip():
            following = stream.readline(_CHUNK)

    try:
        return bool(following) and isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def elements(read: Callable[[int], str]) -> Iterator[tuple[int, int, Cells | CellError]]:
    """Yield the elements of a list, each as soon as the comma or bracket after it has been read; or the only object.

    Each is yielded with its start and end positions in the whole text.
    Raises ValueError or RecursionError.
    """
    decode = Decoder()
    text, ended, before = read(_CHUNK), False, 0
    at = _blanks(text, 0)
    if not text.startswith("[", at):
        text += read(_LONGEST_ELEMENT)
        value = decode.whole(text)
        yield at, len(text), _check_object(value, decode.twice, "file")
        return

    at, first = at + 1, True
    while True:
        at = _blanks(text, at)
        if first and text.startswith("]", at):
            end = at
            break

        try:
            value, last, end = _decode_element(decode, text, at)
        except json.JSONDecodeError:
            if ended or len(text) - at > _LONGEST_ELEMENT:
                raise

            # it may only be incomplete: try again with the next chunk
            more = read(_CHUNK)
            before += at
            text, at, ended = text[at:] + more, 0, not more
            continue

        yield before + at, before + last, _check_object(value, decode.twice, "element")
        at, first = end + 1, False
        if text[end] == "]":
            break

    rest = text[end + 1 :] + read(_CHUNK)
    if rest.strip():
        raise json.JSONDecodeError("Something stands behind the list", rest, 0)


def _decode_element(decode: Decoder, text: str, at: int) -> tuple[object, int, int]:
    """The element that begins at `at`, where it ends, and the position of the comma or bracket after it.

    Raises JSONDecodeError, also if the text ends before that, because a number might continue.
    """
    value, last = decode.at(text, at)
    end = _blanks(text, last)
    if text[end : end + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
    return value, last, end


def parse_element(content: bytes) -> Cells | CellError:
    """An element of a list, or the only object of a file, that was read before. Raises ValueError or RecursionError."""
    decode = Decoder()
    return _check_object(decode.whole(content.decode()), decode.twice, "element")


def _blanks(text: str, at: int) -> int:
    """The position after the blanks at `at`."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at
