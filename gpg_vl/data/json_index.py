"""An index of where each row of a JSON file begins, so that a row can be read without the others.

A gzipped file cannot be indexed: it is unpacked once into the store next to it
(`gpg_vl.data.store`), and the copy is indexed.
"""

import io
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpg_vl.data.cells import CellError
from gpg_vl.data.json_rows import (
    MAX_LINE,
    Cells,
    Decoder,
    elements,
    long_line,
    not_json,
    open_text,
    parse_element,
    parse_line,
    refuse_one_document,
    skip_line,
)
from gpg_vl.data.store import writing

_BOM = 3
_KEPT_BYTES = 32 << 20
"""The index of a smaller file is not stored, because indexing takes almost no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonIndex:
    """The positions of the rows in a file.

    Example: of the lines `{"a": 1}`, a blank one and `{"a": 2}`: `JsonIndex(starts=array("q", [0, 10]),
    sizes=array("q", [9, 9]), lines=array("q", [1, 3]))`
    """

    starts: Sequence[int]
    """The first byte of each row."""
    sizes: Sequence[int]
    """The bytes of each row; for a line longer than `MAX_LINE` a lower bound."""
    lines: Sequence[int] | None
    """The line number of each row, from 1; None if rows are elements of a list."""

    def __len__(self) -> int:
        return len(self.starts)

    def place(self, number: int, name: str) -> str:
        """The place of a row in the file `name`, for messages."""
        return f"{name}[{number}]" if self.lines is None else f"{name}:{self.lines[number]}"

    def read(self, file: Path, number: int) -> Cells | CellError:
        """Read a row. Raises OSError; ValueError or RecursionError if the file has changed since it was indexed."""
        size = int(self.sizes[number])
        if size > MAX_LINE:
            return long_line()

        with file.open("rb") as stream:
            stream.seek(int(self.starts[number]))
            content = stream.read(size)
        return parse_element(content) if self.lines is None else parse_line(content, Decoder())


def open_index(file: Path, kept: Path | None, *, has_lines: bool) -> JsonIndex:
    """The index of a file. The index of a large file is stored, so that all processes of a node can use it.

    kept: its place in the store; None if there is none. Raises UserError, and OSError if the file is missing.
    """
    make = index_lines if has_lines else index_elements
    if kept is None or file.stat().st_size < _KEPT_BYTES:
        return make(file)

    try:
        starts, sizes, *lines = np.load(kept, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        index = make(file)
    else:
        return JsonIndex(starts=starts, sizes=sizes, lines=lines[0] if lines else None)

    columns = [index.starts, index.sizes] + ([] if index.lines is None else [index.lines])
    # if the store is full, nothing is stored and each process makes its own index
    with suppress(OSError), writing(kept) as stream:
        np.save(stream, np.array(columns, np.int64))
    return index


def index_lines(file: Path) -> JsonIndex:
    """The index of a file with one object per line, without blank lines. Raises UserError."""
    starts, sizes, lines = array("q"), array("q"), array("q")
    with open_text(file) as stream:
        refuse_one_document(file, stream)
        at = number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if not line.isspace():
                starts.append(at)
                sizes.append(len(line))
                lines.append(number)
            if len(line) > MAX_LINE:
                skip_line(stream)
            at = stream.tell() if len(line) > MAX_LINE else at + len(line)
    return JsonIndex(starts=starts, sizes=sizes, lines=lines)


def index_elements(file: Path) -> JsonIndex:
    """The index of a file with one list of objects, or with one object. Raises UserError."""
    starts, sizes = array("q"), array("q")
    with open_text(file) as stream:
        if stream.read(_BOM) != b"\xef\xbb\xbf":
            stream.seek(0)
        before = stream.tell()

        # in this encoding a character is a byte, and the structure of JSON is ASCII
        with io.TextIOWrapper(stream, encoding="latin-1", newline="") as text:
            try:
                for start, end, _ in elements(text.read):
                    starts.append(before + start)
                    sizes.append(end - start)
            except (ValueError, RecursionError) as error:
                raise not_json(file, error) from error
    return JsonIndex(starts=starts, sizes=sizes, lines=None)
