"""ReasonSeg in three layouts: LISA's folder, Visual-RFT's lisa_train.json, and Parquet with boxes.

The pictures have 200x100 pixels, so that boxes are easy to follow by hand: 1 pixel is 5 thousandths across and 10 down.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_json, write_parquet

SIZE = (200, 100)


def shape(label: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return {"label": label, "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}


def annotation(number: int) -> dict[str, Any]:
    """First an `ignore` polygon, then two targets and a flag. Each picture has two instructions."""
    return {
        "text": [
            f"the thing that holds water ({number})",
            f"what a thirsty person takes ({number})",
        ],
        "is_sentence": False,
        "shapes": [
            shape("ignore", 0, 0, 10, 10),
            shape("target", 20, 10, 60, 50),
            shape("target", 50, 40, 100 + number % 4, 90),
            shape("flag", 0, 0, 200, 100),
        ],
    }


def write_folder(folder: Path, rows: int = 8, **changes: Any) -> Path:
    """train/X.jpg + train/X.json; one of them is in cp1252, as some of LISA's are."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for n in range(rows):
        (folder / "train" / f"{n:03d}.jpg").write_bytes(picture(n, SIZE, "JPEG"))
        cells = annotation(n) | changes.get(f"r{n}", {})
        if n == 1:
            cells["text"] = ["the café’s cup"]
        content = json.dumps(cells, ensure_ascii=False)
        (folder / "train" / f"{n:03d}.json").write_bytes(
            content.encode("cp1252" if n == 1 else "utf-8")
        )
    return folder


def write_visual_rft(folder: Path, rows: int = 8, **changes: Any) -> Path:
    """lisa_train.json beside its pictures."""
    made = []
    for n in range(rows):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{n}.jpg").write_bytes(picture(n, SIZE, "JPEG"))
        row = {
            "image_path": f"images/{n}.jpg",
            "instruction": annotation(n)["text"],
            "boxes": [[0, 0, 10 + n, 10]],
        }
        made.append(row | changes.get(f"r{n}", {}))
    return write_json(folder / "lisa_train.json", made)


def write_parquet_copy(folder: Path, rows: int = 8, **changes: Any) -> Path:
    """data/train-*.parquet; the mask is there and is not read."""
    types = {
        "image": IMAGE,
        "text": pa.string(),
        "mask": pa.list_(pa.list_(pa.bool_())),
        "image_id": pa.string(),
        "img_height": pa.int64(),
        "img_width": pa.int64(),
        "bbox_list": pa.list_(pa.list_(pa.int64())),
    }
    made = [
        {
            "image": struct(picture(n, SIZE, "JPEG")),
            "text": f"the thing that holds water ({n})",
            "mask": [[True, False]],
            "image_id": str(n),
            "img_height": 100,
            "img_width": 200,
            "bbox_list": [[20, 10, 60, 50], [50, 40, 100, 90]],
        }
        | changes.get(f"r{n}", {})
        for n in range(rows)
    ]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", made, types, images=["image"])
    return folder
