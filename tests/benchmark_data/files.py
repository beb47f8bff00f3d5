"""Pictures and tables as benchmarks publish them."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, size: tuple[int, int] = (56, 56), form: str = "PNG") -> bytes:
    """A picture that no other number below 256 has."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number % 256, 40, 90)).save(stream, form)
    return stream.getvalue()


def image(number: int, size: tuple[int, int] = (56, 56)) -> dict[str, Any]:
    """A cell of Hugging Face's type Image."""
    return {"bytes": picture(number, size), "path": None}


def write_parquet(file: Path, rows: Iterable[Mapping[str, Any]], **types: pa.DataType) -> Path:
    """A table; `types` are those of columns whose rows alone do not tell."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        column = pa.array([row[name] for row in rows], kind)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, file)
    return file


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def write_picture(file: Path, number: int, size: tuple[int, int] = (56, 56)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(number, size, "JPEG" if file.suffix == ".jpg" else "PNG"))
    return file
