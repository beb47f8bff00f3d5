"""A row of a published data set, before a recipe has given it a meaning.

Its readers raise `BrokenRowError` (or `CellError`, `ImageError`) for what cannot be used: the row is then reported, counted
and left behind, and the others are converted.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpg_vl.data.cells import CellError, quote
from gpg_vl.data.images import Picture, read_picture
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.rows import parse_images, parse_text
from gpg_vl.errors import UserError


class BrokenRowError(UserError):
    """An error in one row of a source. The row is reported and counted, and the other rows are converted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row of a source, with readers that raise BrokenRowError, CellError or ImageError for what cannot be used.

    Example: `RawRow(split="train", number=17, place="SAT_train.parquet[17]", cells={"question": "Which?"}, seed=0,
    root=None, max_pixels=50_000_000)`
    """

    split: str
    number: int
    """The number of the row in its split of the source, from 0."""
    place: str
    """Its place: `file.parquet[ROW]`, or `file.jsonl:LINE` from 1."""
    cells: Mapping[str, Any]
    seed: int
    root: Path | None
    """Image paths are relative to this folder and may not leave it."""
    max_pixels: int
    decoded: dict[str | bytes, Picture] = field(default_factory=dict, repr=False, compare=False)
    """The images that were already read, so that each is decoded once."""

    @property
    def id(self) -> str:
        """Unique within the data set: `train-000017`."""
        return f"{self.split}-{self.number:06d}"

    def cell(self, column: str) -> Any:
        """The cell unchanged; null counts as missing."""
        if self.cells.get(column) is None:
            what = (
                f"is null in column {column!r}"
                if column in self.cells
                else f"has no column {column!r}"
            )
            raise BrokenRowError(f"The row {what}. Its columns: {', '.join(self.cells)}.")
        return self.cells[column]

    def text(self, column: str) -> str:
        """A non-blank text unchanged; a number as JSON writes it."""
        text = parse_text(self.cell(column), "json", column)
        if not text.strip():
            raise BrokenRowError(f"The column {column!r} is blank.")
        return text

    def texts(self, column: str) -> list[str]:
        """A list of texts that is not empty."""
        cell = self.cell(column)
        if not isinstance(cell, list) or not cell:
            raise BrokenRowError(f"The column {column!r} is {quote(cell)}, not a list of texts.")
        texts = [parse_text(text, "json", f"entry of {column!r}") for text in cell]
        if not all(text.strip() for text in texts):
            raise BrokenRowError(f"The column {column!r} has a blank entry: {quote(cell)}.")
        return texts

    def numbers(self, column: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        return finite_numbers(self.cell(column), f"The column {column!r}")

    def images(self, column: str) -> tuple[str | bytes, ...]:
        """The images of a cell, one or several, encoded or as paths; not decoded yet."""
        images = parse_images(self.cell(column))
        if not images:
            raise BrokenRowError(f"The column {column!r} holds no picture.")
        return images

    def picture(self, column: str) -> Picture:
        """The only image of a cell, decoded once to check it and to get its size."""
        images = self.images(column)
        if len(images) != 1:
            raise BrokenRowError(f"The column {column!r} holds {len(images)} pictures, not one.")
        return self.read(images[0])

    def read(self, image: str | bytes) -> Picture:
        """An image of this row, decoded to check it."""
        if image not in self.decoded:
            self.decoded[image] = read_picture(image, root=self.root, max_pixels=self.max_pixels)
        return self.decoded[image]

    def random(self) -> random.Random:
        """A generator of this row alone: the same for the same seed, whatever was converted before."""
        return random.Random(f"{self.seed} {self.split} {self.number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows of one split.

    Example: `Source(split="train", read=lambda start: iter(...), total=175_000, root=Path("data"),
    facts={"files": {"SAT_train.parquet": "9f86d0..."}})`
    """

    split: str
    read: Callable[[int], Iterator[tuple[str, Cells | CellError]]]
    """The place and cells of the rows from a number on, the same ones every time."""
    total: int | None
    """The number of rows, where it is known."""
    root: Path | None
    """The folder that image paths are relative to."""
    facts: Mapping[str, Any]
    """Values that identify these rows: checksums of files, or a revision. JSON values."""


def finite_numbers(cell: object, what: str) -> tuple[float, ...]:
    """A list of finite numbers as floats. Raises BrokenRowError, which calls it `what`."""
    cells = cell if isinstance(cell, list) else [None]
    if any(
        isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in cells
    ):
        raise BrokenRowError(f"{what} is {quote(cell)}, not a list of numbers.")
    return tuple(map(float, cells))
