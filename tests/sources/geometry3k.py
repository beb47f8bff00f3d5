"""hiyouga/geometry3k: data/{train,validation,test}-*.parquet with images, problem, answer and columns that are not used."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_parquet

TYPES = {"images": pa.list_(IMAGE), "problem": pa.string(), "answer": pa.string(), "id": pa.int64()}
SPLITS = {"train": 8, "validation": 3, "test": 2}


def write(folder: Path, **changes: Any) -> Path:
    """`changes` maps r3 to columns of row 3 of train that differ. Rows of test are numbered from 200 in their pictures."""
    for first, (split, rows) in zip((0, 100, 200), SPLITS.items(), strict=True):
        made = [
            {
                "images": [struct(picture(first + n))],
                "problem": f"<image>Find x in figure {first + n}.",
                "answer": f"{n} \\sqrt {{ 3 }}",
                "id": n,
            }
            | (changes.get(f"r{n}", {}) if split == "train" else {})
            for n in range(rows)
        ]
        write_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet", made, TYPES, images=["images"]
        )
    return folder
