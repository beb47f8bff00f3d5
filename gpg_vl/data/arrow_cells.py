"""Reads Arrow cells with the help of their types, which have information that the Python value lacks.

A class label is a number whose names are in the schema's metadata, and a 32-bit number, widened,
gets digits that nobody wrote: 3.14 becomes 3.140000104904175. `make_reader` returns a function that reads cells of a given
type.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

# Arrow's errors for a value that Python cannot represent: invalid text, a year beyond 9999, an
# unknown time zone, a struct with a repeated name.
_NO_VALUE = (pa.ArrowException, ValueError, OverflowError)
ReadCell = Callable[[Any], Any]
_LISTS = ("Sequence", "List", "LargeList")


@dataclass(frozen=True, slots=True)
class UnreadableCell:
    """A cell whose value Python cannot represent. Code that needs the cell refuses it; other cells are not affected."""

    reason: str

    def __repr__(self) -> str:
        return f"unreadable ({self.reason})"


def batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch. A value that cannot be read becomes an `UnreadableCell`; the other cells of its row are read."""
    try:
        yield from batch.to_pylist()
    except _NO_VALUE:
        for row in range(batch.num_rows):
            columns = zip(batch.schema.names, batch.columns, strict=True)
            yield {name: _read_value(column[row]) for name, column in columns}


def _read_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except _NO_VALUE as error:
        return UnreadableCell(" ".join(str(error).split()))


def stored_features(schema: pa.Schema) -> Mapping[str, Any]:
    """The features that the `datasets` library has stored in a file's metadata; empty if there are none."""
    noted = (schema.metadata or {}).get(b"huggingface")
    if noted is None:
        return {}

    # any program may have written the metadata; ignore what does not have the library's form
    try:
        info = json.loads(noted)
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        info = info.get(key) if isinstance(info, dict) else None
    return info if isinstance(info, dict) else {}


def make_readers(schema: pa.Schema, features: Mapping[str, Any]) -> dict[str, ReadCell]:
    """Reader functions by column; columns whose cells need no conversion have no entry.

    `features`: the result of `stored_features` or `datasets.Features.to_dict`.
    """
    readers = {
        name: make_reader(schema.field(name).type, features.get(name)) for name in schema.names
    }
    return {name: reader for name, reader in readers.items() if reader is not None}


def make_reader(kind: pa.DataType, feature: object) -> ReadCell | None:
    """The reader for cells of an Arrow type, including nested ones; None if no conversion is needed.

    A class label becomes its name, and null where it has none; a 16- or 32-bit number the shortest
    one of its type; a decimal a whole number, or a float, or text where a float cannot hold it.
    """
    if (names := _label_names(feature)) and pa.types.is_integer(kind):
        return _skip_null(partial(_name_label, names))
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return _skip_null(partial(_shorten, kind.to_pandas_dtype()))
    if pa.types.is_decimal(kind):
        return _skip_null(_read_decimal)

    if pa.types.is_dictionary(kind):
        return make_reader(kind.value_type, feature)
    if pa.types.is_struct(kind):
        fields = {
            field.name: make_reader(field.type, _child(feature, field.name)) for field in kind
        }
        known = {name: reader for name, reader in fields.items() if reader is not None}
        return _skip_null(partial(_read_struct, known)) if known else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        reader = make_reader(kind.value_type, _element(feature))
        return _skip_null(partial(_read_list, reader)) if reader else None
    return None


def _label_names(feature: object) -> Sequence[str]:
    is_label = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    names = feature.get("names") if is_label and isinstance(feature, dict) else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list and names is not None else ()


def _child(feature: object, name: str) -> object:
    """The feature of a struct's field. A list of structs may be stored as a struct of lists."""
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in _LISTS:
        inner = _child(feature.get("feature"), name)
        return None if inner is None else {"_type": "List", "feature": inner}
    return feature.get(name)


def _element(feature: object) -> object:
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, dict) and feature.get("_type") in _LISTS:
        return feature.get("feature")
    return None


def _skip_null(read: ReadCell) -> ReadCell:
    # no nested function: a table is pickled for the processes that read ahead
    return partial(_read_unless_null, read)


def _read_unless_null(read: ReadCell, cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, UnreadableCell) else read(cell)


def _name_label(names: Sequence[str], number: int) -> str | None:
    """The name of a class; null for the -1 that `datasets` writes where a label is unknown."""
    return names[number] if 0 <= number < len(names) else None


def _shorten(kind: Callable[[float], np.floating], number: float) -> float:
    return float(str(kind(number)))


def _read_decimal(number: Decimal) -> int | float | str:
    if number == number.to_integral_value():
        return int(number)
    is_exact = Decimal(repr(float(number))) == number
    return float(number) if is_exact else f"{number:f}".rstrip("0")


def _read_struct(readers: Mapping[str, ReadCell], cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {name: read(cell[name]) for name, read in readers.items()}


def _read_list(read: ReadCell, cell: list[Any]) -> list[Any]:
    return [read(item) for item in cell]
