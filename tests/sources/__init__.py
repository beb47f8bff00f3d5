"""Small copies of the published data sets: their layouts and columns with pictures drawn here and answers known by hand.

One module per set; each says in `ROWS`, or in functions of a row's number, what a conversion must find.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A picture that no other number has."""
    image = Image.new("RGB", size, (number % 256, number // 256 % 256, 90))
    ImageDraw.Draw(image).rectangle(
        (3, 3, 3 + number % 20, 12), fill=(250, 250, 250), outline=(0, 0, 0)
    )
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def struct(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """A cell of the type Image, as the hub stores it."""
    return {"bytes": data, "path": path}


def write_parquet(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    types: Mapping[str, Any],
    *,
    images: Sequence[str] = (),
    **options: Any,
) -> Path:
    """A Parquet file as the hub writes it: `images` are the columns that its metadata declare as Image or list of Image."""
    features: dict[str, Any] = {}
    for name, kind in types.items():
        if name in images:
            features[name] = [{"_type": "Image"}] if pa.types.is_list(kind) else {"_type": "Image"}
        else:
            features[name] = _feature(kind)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(list(types.items()), metadata=metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, **options)
    return file


def _feature(kind: pa.DataType) -> Any:
    return (
        [_feature(kind.value_type)]
        if pa.types.is_list(kind)
        else {"dtype": str(kind), "_type": "Value"}
    )


def write_jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def write_json(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    return file
