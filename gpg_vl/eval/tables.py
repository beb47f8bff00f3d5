"""Rows of a local Parquet or JSONL file, with the columns that a benchmark cannot do without."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpg_vl.data.sources import parquet_rows
from gpg_vl.errors import UserError

SUFFIXES = (".parquet", ".jsonl")


def read_rows(
    file: Path, *, required: Sequence[str], without: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Every row of the file, in order. Columns in `without` are not read.

    Raises UserError for an unreadable file, a malformed line, or a required column that is missing, naming it.
    """
    if file.suffix == ".json":
        yield from _json_object(file, required, without)
        return
    if file.suffix not in SUFFIXES:
        raise UserError(
            f"{file} is neither .parquet nor .jsonl. Give a file of one of these kinds, or the folder of the benchmark."
        )
    rows = (
        _parquet(file, required, without)
        if file.suffix == ".parquet"
        else _jsonl(file, required, without)
    )
    try:
        yield from rows
    except (OSError, pa.ArrowInvalid) as error:  # pyarrow raises both for a damaged file
        raise UserError(
            f"{file} cannot be read: {error}. A complete {file.suffix} file is needed; fetch it again."
        ) from None


def _missing_column(file: Path, where: str, column: str, present: Sequence[str]) -> UserError:
    """The error for a required column that is not there."""
    return UserError(
        f"{file}{where} has no column {column!r}; it has {', '.join(present) or 'none'}. Give the "
        "benchmark's own file, or add the column."
    )


def _json_object(
    file: Path, required: Sequence[str], without: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a file that is one object of rows by their ids, in its order, or one list of rows."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read: {error}. A JSON file is needed; fetch it again."
        ) from None
    rows = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is no object of rows by their ids. Give the benchmark's own file.")
    for number, row in enumerate(rows):
        for column in required:
            if column not in row:
                raise _missing_column(file, f", row {number},", column, list(row))
        yield {name: cell for name, cell in row.items() if name not in without}


def _parquet(
    file: Path, required: Sequence[str], without: Sequence[str]
) -> Iterator[dict[str, Any]]:
    present = pq.read_schema(file).names
    for column in required:
        if column not in present:
            raise _missing_column(file, "", column, present)
    for _, row in parquet_rows(file, columns=[name for name in present if name not in without]):
        yield row


def _jsonl(file: Path, required: Sequence[str], without: Sequence[str]) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file}, line {number}: the line is not JSON ({error}). Every line must be one "
                    "object. Correct or remove it."
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{file}, line {number}: the line is {type(row).__name__}, not an object. Correct or remove it."
                )
            for column in required:
                if column not in row:
                    raise _missing_column(file, f", line {number},", column, list(row))
            yield {name: value for name, value in row.items() if name not in without}
