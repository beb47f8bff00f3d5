"""A file or a data set as a table: its rows in order, from any row on, or a single row.

JSON lines, a JSON list, Parquet and data sets of the `datasets` library have the same interface: a
place, for messages, and cells. Rows are read a few at a time, because a row may hold several
megabytes of images. A table that cannot be read raises a `UserError`; for a line that
cannot be read a `CellError` is returned instead of its cells.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gpg_vl.data.arrow_cells import ReadCell, batch_rows, make_readers, stored_features
from gpg_vl.data.folder import kind_of, refuse_other_kind
from gpg_vl.data.json_index import JsonIndex, open_index
from gpg_vl.data.json_rows import (
    Cells,
    PlacedCells,
    holds_lines,
    json_or_jsonl_rows,
    jsonl_rows,
    refuse_no_parquet,
)
from gpg_vl.data.row_groups import RowGroups
from gpg_vl.data.store import entry_for, find_store, is_gzipped, status_of, unpacked
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20
_MAPPED_BYTES, _AROUND_BYTES = 64 << 20, 1 << 20
"""For a mapped file: bytes read before it is mapped again, and bytes that the system maps around each read position."""
_KEPT_OPEN = 8
_WHOLE_PARQUET = "a complete Parquet file"
_ROW_GROUPS = RowGroups()


class Table(Protocol):
    """The rows of one file or data set."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def columns(self) -> Sequence[str] | None:
        """The columns of every row; None if rows may have different columns."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The files it is read from; empty if not known."""
        ...

    def rows(self, start: int = 0) -> Iterator[PlacedCells]:
        """The place and cells of each row from number `start` on, or why it cannot be read."""
        ...

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def row(self, number: int) -> PlacedCells:
        """One row as in `rows`, read without the others. Raises UserError."""
        ...


def open_file(
    file: Path,
    *,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    as_stored: bool = False,
) -> Table:
    """The rows of a `.jsonl`, `.json` or `.parquet` file; JSON may be gzipped.

    name: the file's name in places. columns: the columns to read from a Parquet file; None is all.
    as_stored: cells have Arrow's values; else class labels are names and numbers have
    the digits of their own type (`gpg_vl.data.arrow_cells`).

    Raises UserError.
    """
    refuse_other_kind(file)
    name = name or str(file)
    # make the path absolute, because the program may change its folder before rows are read
    file = file.absolute()
    if kind_of(file) != ".parquet":
        return JsonTable(file, name)

    schema = read_schema(file)
    return ParquetTable(
        file=file,
        name=name,
        columns=schema.names if columns is None else tuple(columns),
        is_whole=columns is None,
        readers={} if as_stored else make_readers(schema, stored_features(schema)),
    )


def open_dataset(name: str, dataset: "Dataset") -> Table:
    """The rows of a data set of the `datasets` library. Arrow keeps images encoded, also nested ones."""
    readers = make_readers(dataset.features.arrow_schema, dataset.features.to_dict())
    return ArrowTable(name, dataset.with_format("arrow"), readers)


class JsonTable:
    """Objects on lines, a list of objects, or one object.

    Example: `JsonTable(Path("data/a.jsonl"), "a.jsonl")`
    """

    columns = None
    """Rows may have different columns."""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name, self.files = file, name, (file,)
        self._indexed: tuple[Path, JsonIndex] | None = None

    def rows(self, start: int = 0) -> Iterator[PlacedCells]:
        """See `Table`."""
        read = jsonl_rows if kind_of(self.file) == ".jsonl" else json_or_jsonl_rows
        for number, row in enumerate(read(self.file, name=self.name)):
            if number >= start:
                yield row

    def __len__(self) -> int:
        return len(self._index()[1])

    def row(self, number: int) -> PlacedCells:
        """See `Table`."""
        file, index = self._index()
        try:
            return index.place(number, self.name), index.read(file, number)
        except (OSError, ValueError, RecursionError) as error:
            raise cannot_read(str(self.file), "as it was when the program began", error) from error

    def _index(self) -> tuple[Path, JsonIndex]:
        """The file that is read, and the places of its rows; found once."""
        if self._indexed is None:
            with _refusing(str(self.file), "a file that can be read"):
                file = unpacked(self.file) if is_gzipped(self.file) else self.file
                has_lines = kind_of(self.file) == ".jsonl" or holds_lines(self.file)
                store = find_store(self.file.parent)
                kept = None if store is None else entry_for(self.file, store, ".index.npy")
                self._indexed = file, open_index(file, kept, has_lines=has_lines)
        return self._indexed


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetTable:
    """Some or all columns of a Parquet file.

    Example: `ParquetTable(file=Path("data/a.parquet"), name="a.parquet", columns=("prompt", "answer"),
        is_whole=True, readers={})`
    """

    file: Path
    name: str
    columns: Sequence[str]
    is_whole: bool
    """All columns of the file are read."""
    readers: Mapping[str, ReadCell]
    """Readers that convert the cells of some columns."""

    @property
    def files(self) -> tuple[Path]:
        """See `Table`."""
        return (self.file,)

    def rows(self, start: int = 0) -> Iterator[PlacedCells]:
        """See `Table`. Whole row groups before the first row are not read."""
        with _refusing(str(self.file), _WHOLE_PARQUET), _open_parquet(self.file) as parquet:
            groups, number = _find_row_groups(parquet, start)
            batches = parquet.iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=groups,
                columns=None if self.is_whole else list(self.columns),
            )
            for batch in batches:
                for cells in batch_rows(batch):
                    if number >= start:
                        yield f"{self.name}[{number}]", _reread(cells, self.readers)
                    number += 1

    def __len__(self) -> int:
        return count_parquet_rows(self.file)

    def row(self, number: int) -> PlacedCells:
        """See `Table`. If a row group is too large for the cache, its pages up to the row are read."""
        with _refusing(str(self.file), _WHOLE_PARQUET):
            status = status_of(self.file)
            parquet, ends = _kept_open(self.file, status)
            group = bisect_right(ends, number)
            if group == len(ends):
                raise IndexError(number)
            within = number - (ends[group - 1] if group else 0)

            columns = None if self.is_whole else list(self.columns)
            kept = _ROW_GROUPS.find(
                (self.file, status, group, None if columns is None else self.columns),
                parquet.metadata.row_group(group).total_byte_size,
                lambda: parquet.read_row_group(group, columns=columns, use_threads=False),
            )
            if kept is not None:
                (batch,) = kept.slice(within, 1).to_batches()
                (cells,) = batch_rows(batch)
                return f"{self.name}[{number}]", _reread(cells, self.readers)

            batches = parquet.iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=[group],
                columns=columns,
                use_threads=False,
            )
            for batch in batches:
                if within < batch.num_rows:
                    (cells,) = batch_rows(batch.slice(within, 1))
                    return f"{self.name}[{number}]", _reread(cells, self.readers)
                within -= batch.num_rows
        raise IndexError(number)


class ArrowTable:
    """A data set of the `datasets` library, whose files are memory-mapped.

    Pages that were read count as memory of the process until the file is unmapped, so it is mapped
    again after every `_MAPPED_BYTES` that were read.
    """

    def __init__(self, name: str, dataset: "Dataset", readers: Mapping[str, ReadCell]) -> None:
        """readers: convert the cells of some columns."""
        self.name, self.columns = name, tuple(dataset.column_names)
        self.files = tuple(Path(one["filename"]).absolute() for one in dataset.cache_files)
        self._dataset, self._readers, self._read_bytes = dataset, readers, 0

    def rows(self, start: int = 0) -> Iterator[PlacedCells]:
        """See `Table`."""
        for first in range(start, len(self), _BATCH_ROWS):
            yield from self._slice(first, min(first + _BATCH_ROWS, len(self)))

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, number: int) -> PlacedCells:
        """See `Table`."""
        (row,) = self._slice(number, number + 1)
        return row

    def _slice(self, start: int, end: int) -> list[PlacedCells]:
        with _refusing(self.name, "a complete data set"):
            table: Any = self._dataset[start:end]
            cells = [one for batch in table.to_batches() for one in batch_rows(batch)]
            self._read_bytes += table.nbytes + _AROUND_BYTES
        if self._read_bytes > _MAPPED_BYTES:
            self._map_anew()

        return [
            (f"{self.name}[{number}]", _reread(one, self._readers))
            for number, one in enumerate(cells, start)
        ]

    def _map_anew(self) -> None:
        """Release the pages that were read."""
        import datasets

        self._read_bytes = 0
        if not self.files:
            return
        mapped = datasets.concatenate_datasets(
            [datasets.Dataset.from_file(str(file)) for file in self.files]
        )
        # a data set may be a part of its files
        if len(mapped) == len(self._dataset):
            self._dataset = mapped.with_format("arrow")


def read_schema(file: Path) -> pa.Schema:
    """The columns of a Parquet file. Raises UserError, also where two of them have one name."""
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        refuse_no_parquet(file, _WHOLE_PARQUET)
        raise cannot_read(str(file), _WHOLE_PARQUET, error) from error

    # of two columns with one name a row could hold only one
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise UserError(
            f"{file} has the column {twice[0]!r} more than once. Each name is allowed once. Rename or remove one."
        )
    return schema


def count_parquet_rows(file: Path) -> int:
    """The number of rows, from the end of the file alone. Raises UserError."""
    with _refusing(str(file), _WHOLE_PARQUET):
        return int(pq.read_metadata(file).num_rows)


def cannot_read(name: str, needed: str, error: Exception) -> UserError:
    """The error for a file or data set that a library cannot read. needed: the required format."""
    return UserError(
        f"{name} cannot be read: {one_line(error)}. It must be {needed}. Write or fetch it again."
    )


def one_line(error: Exception) -> str:
    """A library's message, which may run over several lines, as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


@contextmanager
def _refusing(name: str, needed: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise cannot_read(name, needed, error) from error


def _reread(cells: Cells, readers: Mapping[str, ReadCell]) -> Cells:
    """The row with the cells of some columns converted."""
    for name, read in readers.items():
        cells[name] = read(cells[name])
    return cells


def _open_parquet(file: Path) -> pq.ParquetFile:
    # pre_buffer would keep every column of every row group until the last row is read
    return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


@lru_cache(maxsize=_KEPT_OPEN)
def _kept_open(file: Path, status: str) -> tuple[pq.ParquetFile, list[int]]:
    """An open Parquet file with this status, and the ends of its row groups. Cached, because reading the metadata may take
    long."""
    parquet = _open_parquet(file)
    groups = range(parquet.num_row_groups)
    return parquet, list(accumulate(parquet.metadata.row_group(n).num_rows for n in groups))


def _find_row_groups(parquet: pq.ParquetFile, start: int) -> tuple[list[int], int]:
    """The row groups that hold row `start` and what follows, and the number of their first row."""
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first + rows > start:
            return list(range(group, parquet.num_row_groups)), first
        first += rows
    return [], first
