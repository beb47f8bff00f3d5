"""Where rows lie: JSONL and Parquet files, folders of these, and what the `datasets` library knows.

A source becomes tables of rows, each a place and its cells; `gpg_vl.data.read` gives the cells a
meaning. Files are read a few rows at a time, because a row may hold several megabytes of pictures.
A source that cannot be read is a `UserError`; a JSONL line that cannot be read is a `CellError` in
the place of its cells.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpg_vl.data.rows import CellError
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

Cells = dict[str, Any]
SUFFIXES = (".jsonl", ".parquet")
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
    rows: Iterator[tuple[str, Cells | CellError]]
    """The place of each row, for messages, and its cells, or why they cannot be read."""


def tables(source: str) -> Iterator[Table]:
    """The tables of a source, files in the order of their names. Raises UserError."""
    if source.startswith(_HUB):
        yield _open_hub(source)
        return

    path = Path(source)
    if not path.exists():
        raise UserError(
            f"The data source {source!r} does not exist.{_suggest_name(path)} A .jsonl or .parquet file, a "
            f"folder of these, or {_HUB}NAME[:SPLIT] is allowed. Correct the path."
        )
    if _is_saved_dataset(path):
        yield _make_table(source, _load_saved(source, path, split=None))
        return

    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise UserError(
            f"The folder {source!r} holds no .jsonl and no .parquet file. Files in the folder itself are "
            f"read, not those in its subfolders. Give the folder that holds them."
        )

    for file in files:
        if file.suffix == ".jsonl":
            yield Table(name=str(file), columns=None, rows=jsonl_rows(file))
        elif file.suffix == ".parquet":
            yield _open_parquet(file)
        else:
            raise UserError(
                f"The data file {source!r} ends in {file.suffix!r}. {' and '.join(SUFFIXES)} are allowed. "
                f"Convert it, or give it the right name."
            )


def _suggest_name(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


def jsonl_rows(file: Path, *, name: str | None = None) -> Iterator[tuple[str, Cells | CellError]]:
    """The place and cells of each line; blank lines do not count as rows.

    `name` is what places call the file.
    """
    name = name or str(file)
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{name}:{number}", _parse_json(line)
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}. A readable file is needed. Check its permissions and its disk."
        ) from error


def _parse_json(line: bytes) -> Cells | CellError:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return CellError(
            "json",
            f"The line is not JSON: {error}. One JSON object per line, in UTF-8, is allowed. "
            f"Correct the line; where the last line is cut, the file was not written completely.",
        )

    if not isinstance(value, dict):
        return CellError(
            "json",
            f"The line is JSON of type {type(value).__name__}. One object with named columns per "
            f"line is allowed. Write it as {{'prompt': ..., 'answer': ...}} in JSON.",
        )
    return value


def _open_parquet(file: Path) -> Table:
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise _make_error(str(file), "a complete Parquet file", error) from error
    return Table(name=str(file), columns=names, rows=parquet_rows(file))


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
                for cells in batch.to_pylist():
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
    return Table(name=source, columns=dataset.column_names, rows=_read_dataset(source, dataset))


def _read_dataset(source: str, dataset: "Dataset") -> Iterator[tuple[str, Cells]]:
    """Arrow keeps pictures encoded, however deep they lie.

    Class labels are given by name, not by number.
    """
    import datasets

    labels = {
        key: kind.names
        for key, kind in dataset.features.items()
        if isinstance(kind, datasets.ClassLabel)
    }

    number = 0
    try:
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            for cells in table.to_pylist():
                for key, names in labels.items():
                    cells[key] = _name_label(names, cells[key])
                yield f"{source}[{number}]", cells
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise _make_error(source, "a complete data set", error) from error


def _name_label(names: Sequence[str], number: int | None) -> str | None:
    """The name of a class; null for the -1 that `datasets` writes where a label is unknown."""
    if number is None or not 0 <= number < len(names):
        return None
    return names[number]
