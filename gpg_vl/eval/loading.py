"""Shared code of the benchmark loaders: finds the tables of a download, names the place of wrong values, reads images.

Rows count from 0 in their file. A cell that holds an image is an encoded picture, Hugging Face's struct of bytes and
path, or a path below the image root.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.folder import kind_of
from gpg_vl.data.images import ImageError, image_size
from gpg_vl.data.json_rows import Cells, PlacedCells
from gpg_vl.data.rows import collect_meta
from gpg_vl.data.tables import open_file, read_schema
from gpg_vl.errors import UserError
from gpg_vl.eval.task import Doc, Loader
from gpg_vl.types import Example

Row = Mapping[str, Any]
SUFFIXES = (".parquet", ".jsonl")
"""The endings of table files."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a row, for messages, and the folder of its images.

    Example: `Place(Path("data/test.parquet"), 7, None)`
    """

    file: Path
    number: int
    images: Path | None

    @property
    def root(self) -> Path:
        return self.images or self.file.parent

    def wrong(self, column: str, value: object, allowed: str) -> UserError:
        return UserError(
            f"{self.file}, row {self.number}, column {column!r}: the value is {value!r:.80}. Allowed is "
            f"{allowed}. Correct the row, or fetch the file again."
        )


def tables(
    path: Path,
    *,
    name: str,
    split: str,
    layouts: Sequence[Sequence[str]] = (),
    folders: Sequence[str] = ("", "data"),
) -> tuple[Path, ...]:
    """The tables of a benchmark at `path`: the file itself, or what a downloaded folder holds, in the published order.

    A folder is looked through for `layouts` (names of files that belong together), then for the shards or the one file of
    `split` in each of `folders`, then for the parts that a data recipe wrote, here or under `split`, and else must hold
    exactly one table. Raises UserError.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise UserError(
            f"There is no {name} data at {path}. Give a .parquet or .jsonl file, or the folder of the "
            "downloaded data set; hub:OWNER/NAME fetches one of the hub, and TASK --list says how each is downloaded."
        )
    for layout in layouts:
        present = [part for part in layout if (path / part).is_file()]
        if present == list(layout):
            return tuple(path / part for part in layout)
        if present:
            raise UserError(
                f"{path} has {present[0]} but not {next(n for n in layout if n not in present)}, half of "
                f"{name}. Fetch the other half, or give the path of the one file to evaluate it alone."
            )
    found = [
        file
        for folder in folders
        if (path / folder).is_dir()
        for file in _of_split(path / folder, split)
    ]
    found = (
        found or sorted((path / split).glob("part-*.jsonl")) or sorted(path.glob("part-*.jsonl"))
    )
    if found:
        return tuple(found)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "no .parquet and no .jsonl file"
        wanted = " or ".join(
            [*(" + ".join(layout) for layout in layouts), f"{split}-*.parquet", f"{split}.jsonl"]
        )
        raise UserError(
            f"{path} holds {listed}. A {name} folder holds {wanted}, or one table of another name. Give the path of the "
            "file."
        )
    return (files[0],)


def _of_split(folder: Path, split: str) -> list[Path]:
    """The shards of a split, all of them, else its one file, else nothing."""
    shards = sorted(folder.glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    if shards:
        last = _SHARD.search(shards[-1].name)
        if last is not None and len(shards) != int(last[2]):
            raise UserError(
                f"{folder} has {len(shards)} of the {int(last[2])} shards of {split}. Fetch the others; a part of the "
                "rows would be measured as if it were all of them."
            )
        return shards
    return [file for suffix in SUFFIXES if (file := folder / f"{split}{suffix}").is_file()][:1]


def rows_of(
    files: Sequence[Path],
    *,
    required: Sequence[str],
    without: Sequence[str] = (),
    root: Path | None = None,
) -> Iterator[tuple[Row, Place]]:
    """Every row of the files in order, with its place. Columns in `without` are not read.

    Raises UserError for an unreadable file or line, a required column that is missing, and if there is no row.
    """
    empty = True
    for file in files:
        for number, row in enumerate(_read(file, required, without)):
            empty = False
            yield row, Place(file, number, root)
    if empty:
        raise UserError(
            f"{' and '.join(map(str, files))} has no rows. Give the right file, or fetch it again."
        )


def _read(file: Path, required: Sequence[str], without: Sequence[str]) -> Iterator[Cells]:
    """The rows of one file, each with the columns that it must have."""
    columns = None
    if kind_of(file) == ".parquet":
        columns = read_schema(file).names
        _require(str(file), required, columns)
    wanted = None if columns is None else [name for name in columns if name not in without]

    rows = open_file(file, columns=wanted, as_stored=True).rows()
    for place, cells in _rows_by_id(rows) if kind_of(file) == ".json" else rows:
        if isinstance(cells, CellError):
            raise UserError(f"{place}: {cells}")
        _require(place, required, cells if columns is None else columns)
        yield {name: cell for name, cell in cells.items() if name not in without}


def _require(place: str, required: Sequence[str], present: Collection[str]) -> None:
    for column in required:
        if column not in present:
            raise UserError(
                f"{place} has no column {column!r}; it has {', '.join(present) or 'none'}. Give the "
                "benchmark's own file, or add the column."
            )


def _rows_by_id(rows: Iterator[PlacedCells]) -> Iterator[PlacedCells]:
    """The rows; of a file that is one object of rows by their ids these, in its order."""
    first = next(rows, None)
    second = None if first is None else next(rows, None)
    if first is None:
        return

    place, cells = first
    of_ids = cells if second is None and isinstance(cells, dict) else {}
    if of_ids and all(isinstance(row, dict) for row in of_ids.values()):
        yield from ((f"{place}[{key!r}]", row) for key, row in of_ids.items())
        return
    yield first
    if second is not None:
        yield second
        yield from rows


def image_cell(cell: object, column: str, place: Place) -> str | bytes:
    """The encoded image, or its path below the image root. It is read only when needed."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    path = PurePosixPath(cell) if isinstance(cell, str) and cell else None
    if path is None or path.is_absolute() or ".." in path.parts:
        raise place.wrong(column, cell, f"an encoded image, or a path below {place.root}")
    return str(path)


def sized(doc: Doc, image: str | bytes, *, keep: bool) -> Doc:
    """The doc with the columns `width` and `height` of its image, and with the image itself if images are wanted.

    An image whose size cannot be read is the doc's `problem`: without it no box can be scored.
    """
    try:
        width, height = image_size(image, root=doc.root)
    except ImageError as error:
        return replace(doc, problem=str(error))
    sized_doc = with_columns(doc, width=width, height=height)
    return replace(sized_doc, example=replace(sized_doc.example, images=(image,) if keep else ()))


def box_cell(edges: object, doc: Doc, column: str, place: Place) -> list[float]:
    """The part of a box (x1, y1, x2, y2) in pixels that lies in the doc's image. Raises UserError if there is none."""
    if (
        isinstance(edges, Sequence)
        and len(edges) == 4
        and all(isinstance(edge, int | float) for edge in edges)
    ):
        width, height = float(doc.columns["width"]), float(doc.columns["height"])
        x1, y1, x2, y2 = (float(edge) for edge in edges)
        inside = [max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]
        if inside[0] < inside[2] and inside[1] < inside[3]:
            return inside
    raise place.wrong(column, edges, "a box with an area in the image")


def with_columns(doc: Doc, **more: Any) -> Doc:
    """The doc with more columns."""
    return replace(doc, example=replace(doc.example, meta={**doc.columns, **more}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row from which a doc is made.

    Its methods check cells and raise a UserError that names the place.

    Example: `Entry(doc_id=7, row={"question": "2+2?", "answer": "4"}, place=Place(...), images=True)`
    """

    doc_id: int
    row: Row
    place: Place
    images: bool
    """Whether images are wanted; if not, `pictures` returns none."""

    def __getitem__(self, column: str) -> Any:
        return self.row[column]

    def get(self, column: str) -> Any:
        """The cell, None if there is no such column."""
        return self.row.get(column)

    def wrong(self, column: str, allowed: str) -> UserError:
        """The error for a cell with a value that is not allowed."""
        return self.place.wrong(column, self.row.get(column), allowed)

    def text(self, column: str) -> str:
        """The text of a cell, not empty."""
        value = self.row.get(column)
        if not (isinstance(value, str) and value.strip()):
            raise self.wrong(column, "a text")
        return value

    def one_of(self, column: str, allowed: Collection[str]) -> str:
        """The cell, which must be among the texts that are allowed."""
        value = self.row[column]
        if not (isinstance(value, str) and value in allowed):
            raise self.wrong(column, ", ".join(allowed))
        return value

    def options(self, column: str) -> list[str]:
        """The options of a multiple-choice question: 2 to 26 texts."""
        options = self.row.get(column)
        if (
            not isinstance(options, list)
            or not 2 <= len(options) <= len(ascii_uppercase)
            or not all(isinstance(text, str) and text.strip() for text in options)
        ):
            raise self.wrong(column, "a list of 2 to 26 option texts")
        return options

    def pictures(self, *columns: str) -> tuple[str | bytes, ...]:
        """The images of columns that hold one or a list of them; none if they are not wanted."""
        if not self.images:
            return ()
        cells = [
            (column, cell)
            for column in columns
            for cell in (
                self.row[column] if isinstance(self.get(column), list) else [self.get(column)]
            )
        ]
        return tuple(image_cell(cell, column, self.place) for column, cell in cells)

    def doc(
        self,
        *,
        prompt: str,
        gold: str,
        images: tuple[str | bytes, ...] = (),
        choices: Sequence[str] | None = None,
        kind: str = "",
        without: Sequence[str] = ("image", "images"),
        more: Mapping[str, Any] | None = None,
    ) -> Doc:
        """The doc. Its columns are those that JSON can hold but for `without`, and `more`."""
        kept = {name: value for name, value in self.row.items() if name not in without}
        example = Example(
            id=str(self.doc_id),
            images=images,
            prompt=prompt,
            answer=gold,
            choices=None if choices is None else tuple(choices),
            task=kind,
            meta={**collect_meta(kept, {}), **(more or {})},
        )
        return Doc(doc_id=self.doc_id, example=example, root=self.place.root)


def loader(
    files: Callable[[Path], Sequence[Path]],
    make: Callable[[Entry], Doc],
    *,
    required: Sequence[str] = (),
    pictures: Sequence[str] = ("image",),
) -> Loader:
    """The loader of a benchmark with a doc per row, made by `make` and numbered in the order of rows.

    `required`: the columns that every row must have. `pictures`: those that are not read where no
    images are wanted.
    """

    def load(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
        rows = rows_of(
            files(path), required=required, without=() if images else pictures, root=root
        )
        return [
            make(Entry(doc_id=number, row=row, place=place, images=images))
            for number, (row, place) in enumerate(rows)
        ]

    return load
