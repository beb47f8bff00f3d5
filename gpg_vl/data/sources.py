"""Where rows lie: JSONL and Parquet files, folders of these, and what the `datasets` library knows.

A source becomes tables of rows, each a place and its cells; `gpg_vl.data.read` gives the cells a
meaning. Files are read a few rows at a time, because a row may hold several megabytes of pictures.
A source that cannot be read is a `UserError`; a JSONL line that cannot be read is a `CellError` in
the place of its cells.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from gpg_vl.data.arrow_cells import ReadCell, batch_rows, make_readers, stored_features
from gpg_vl.data.folder import ALLOWED, Selection, kind_of, refuse_splits, select_files
from gpg_vl.data.json_rows import Cells as Cells
from gpg_vl.data.json_rows import (
    PlacedCells,
    json_or_jsonl_rows,
    jsonl_rows,
    refuse_no_parquet,
)
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

_HUB = "datasets:"
_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One file or data set.

    Example: `Table(name="a.jsonl", columns=None, rows=iter([("a.jsonl:1", {"prompt": "2+2?",
        "answer": 4})]))`
    """

    name: str
    """What messages call it."""
    columns: Sequence[str] | None
    """The columns of every row; None where each row brings its own."""
    rows: Iterator[PlacedCells]
    """The place of each row, for messages, and its cells, or why they cannot be read."""


def tables(source: str, fields: Collection[str]) -> Iterator[Table]:
    """The tables of a source, files in the order of their names.

    fields: the names of columns by which the objects of a .json file in a folder are known to be
    rows. Raises UserError.
    """
    if source.startswith(_HUB):
        yield _open_hub(source)
        return
    if _is_saved_dataset(Path(source)):
        yield _make_table(source, _load_saved(source, Path(source), split=None))
        return

    for file in choose_files(source, fields).files:
        yield _open_file(file)


def choose_files(source: str, fields: Collection[str]) -> Selection:
    """The files of a source, and what is to be said of those that are not read. None where the
    `datasets` library reads it.

    Raises UserError.
    """
    path = Path(source)
    if source.startswith(_HUB) or _is_saved_dataset(path):
        return Selection(files=())
    if path.is_dir():
        return select_files(path, fields)

    files = [path] if path.exists() else _match_pattern(path)
    if not files:
        raise UserError(
            f"The data source {source!r} does not exist.{_suggest_name(path)} A .jsonl, .json or .parquet file, a folder of "
            f"these, a pattern such as 'folder/train-*', or {_HUB}NAME[:SPLIT] is allowed. Correct the path."
        )
    for file in files:
        if not file.is_file():
            raise UserError(
                f"The data source {str(file)!r} is no regular file. It is read more than once, so a pipe or a device is not "
                f"allowed. Write its rows to a file."
            )
        if kind_of(file) is None:
            raise UserError(
                f"The data file {str(file)!r} ends in {file.suffix!r}. {ALLOWED} are allowed. Convert it, or give it the "
                f"right name."
            )
    refuse_splits(path.parent, files)
    return Selection(files=tuple(files))


def _match_pattern(path: Path) -> list[Path]:
    """The files that a pattern in the last part of a path stands for."""
    if not any(sign in path.name for sign in "*?["):
        return []
    return sorted(file for file in path.parent.glob(path.name) if file.is_file())


def _open_file(file: Path) -> Table:
    if kind_of(file) == ".parquet":
        return _open_parquet(file)
    rows = jsonl_rows if kind_of(file) == ".jsonl" else json_or_jsonl_rows
    return Table(name=str(file), columns=None, rows=rows(file))


def _suggest_name(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


def _open_parquet(file: Path) -> Table:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        refuse_no_parquet(file, "a complete Parquet file")
        raise _make_error(str(file), "a complete Parquet file", error) from error

    # of two columns with one name a row could hold only one
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise UserError(
            f"{file} has the column {twice[0]!r} more than once. Each name is allowed once. Rename or remove one."
        )
    readers = make_readers(schema, stored_features(schema))
    return Table(
        name=str(file), columns=schema.names, rows=_apply_readers(parquet_rows(file), readers)
    )


def _apply_readers(
    rows: Iterator[tuple[str, Cells]], readers: Mapping[str, ReadCell]
) -> Iterator[PlacedCells]:
    """The rows with the cells of some columns read anew."""
    for place, cells in rows:
        for name, read in readers.items():
            cells[name] = read(cells[name])
        yield place, cells


def parquet_rows(
    file: Path, *, name: str | None = None, columns: Sequence[str] | None = None, start: int = 0
) -> Iterator[tuple[str, Cells]]:
    """The place and cells of each row from number `start` on, whole row groups before it unread; of
    some columns only.
    """
    name = name or str(file)
    try:
        # pre_buffer would keep every column of every row group until the last row is read
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
            groups, number = _find_row_groups(parquet, start)
            batches = parquet.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=groups, columns=columns
            )
            for batch in batches:
                for cells in batch_rows(batch):
                    if number >= start:
                        yield f"{name}[{number}]", cells
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise _make_error(str(file), "a complete Parquet file", error) from error


def _find_row_groups(parquet: pq.ParquetFile, start: int) -> tuple[list[int], int]:
    """The row groups that hold row `start` and what follows, and the number of their first row."""
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first + rows > start:
            return list(range(group, parquet.num_row_groups)), first
        first += rows
    return [], first


def _make_error(name: str, needed: str, error: Exception) -> UserError:
    reason = _join_lines(error)
    return UserError(
        f"{name} cannot be read: {reason}. It must be {needed}. Write or fetch it again."
    )


def _join_lines(error: Exception) -> str:
    """A library's message, which may run over several lines, as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def _open_hub(source: str) -> Table:
    """`datasets:NAME_OR_PATH[:SPLIT]`, from a saved folder or through `datasets.load_dataset`."""
    import datasets  # takes a second to import, and only these sources need it

    name, split = source.removeprefix(_HUB), None
    if ":" in name and not Path(name).exists():
        name, _, split = name.rpartition(":")
    if _is_saved_dataset(Path(name)):
        return _make_table(source, _load_saved(source, Path(name), split))

    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{source!r} cannot be loaded: {_join_lines(error)}. {_HUB}NAME_OR_PATH[:SPLIT] names a "
            f"data set that the datasets library finds. Check the name and the network, or download the "
            f"data set and give its files."
        ) from error
    return _make_table(source, _choose_split(source, name, loaded, split))


def _is_saved_dataset(folder: Path) -> bool:
    """True for what `datasets.save_to_disk` writes."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_saved(source: str, folder: Path, split: str | None) -> "Dataset":
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        needed = "a complete folder written by datasets.save_to_disk"
        raise _make_error(str(folder), needed, error) from error
    return _choose_split(source, str(folder), loaded, split)


def _choose_split(
    source: str, name: str, loaded: "Dataset | Mapping[str, Dataset]", split: str | None
) -> "Dataset":
    if not isinstance(loaded, Mapping):
        if split is None:
            return loaded
        raise UserError(
            f"{source!r} names the split {split!r}, and this data set was saved without splits. Only "
            f"{_HUB}{name} is allowed. Leave the split out."
        )

    splits = list(loaded)
    chosen = splits[0] if split is None and len(splits) == 1 else split
    if chosen is None or chosen not in loaded:
        given = "no split" if split is None else f"the split {split!r}"
        raise UserError(
            f"{source!r} names {given}, and the data "
            f"set has {len(splits)}. {did_you_mean(split or '', splits)} Name one of them: "
            f"{_HUB}{name}:{splits[0]}."
        )
    return loaded[chosen]


def _make_table(source: str, dataset: "Dataset") -> Table:
    """Arrow keeps pictures encoded, however deep they lie."""
    schema = dataset.features.arrow_schema
    readers = make_readers(schema, dataset.features.to_dict())
    rows = _apply_readers(_read_dataset(source, dataset), readers)
    return Table(name=source, columns=dataset.column_names, rows=rows)


def _read_dataset(source: str, dataset: "Dataset") -> Iterator[tuple[str, Cells]]:
    number = 0
    try:
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            for batch in table.to_batches():
                for cells in batch_rows(batch):
                    yield f"{source}[{number}]", cells
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise _make_error(source, "a complete data set", error) from error
