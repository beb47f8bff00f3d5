"""RefCOCO in two layouts: VLM-R1's JSON with pictures in a folder, and the hub's Parquet. Pictures have 200x100 pixels."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_json, write_parquet

SIZE = (200, 100)
TYPES = {
    "question_id": pa.string(),
    "image": IMAGE,
    "question": pa.string(),
    "answer": pa.list_(pa.string()),
    "segmentation": pa.list_(pa.float32()),
    "bbox": pa.list_(pa.float32()),
    "iscrowd": pa.int8(),
    "file_name": pa.string(),
}
ASKED = "Please provide the bounding box coordinate of the region this sentence describes: "


def write_vlm_r1(folder: Path, rows: int = 12, **changes: Any) -> Path:
    """refcoco_train.json with pictures below coco/."""
    made = []
    for n in range(rows):
        (folder / "coco" / "train2014").mkdir(parents=True, exist_ok=True)
        (folder / "coco" / "train2014" / f"{n}.jpg").write_bytes(picture(n, SIZE, "JPEG"))
        row = {
            "image": f"train2014/{n}.jpg",
            "problem": f"{ASKED}man {n}",
            "solution": [20, 10, 100 + n, 90],
        }
        made.append(row | changes.get(f"r{n}", {}))
    return write_json(folder / "refcoco_train.json", made)


def write_hub(folder: Path, rows: int = 12, **changes: Any) -> Path:
    """data/val-*.parquet: boxes are left, top, width, height; row 1 has one expression, the others two."""
    made = [
        {
            "question_id": str(n),
            "image": struct(picture(n, SIZE, "JPEG")),
            "question": "Please carefully observe the area circled in the image.",
            "answer": [f"left man {n}"] if n == 1 else [f"left man {n}", f"guy in {n}"],
            "segmentation": [1.0, 2.0, 3.0, 4.0],
            "bbox": [20.75, 10.375, 80.0, 60.0],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{n}.jpg",
        }
        | changes.get(f"r{n}", {})
        for n in range(rows)
    ]
    write_parquet(folder / "data" / "val-00000-of-00001.parquet", made, TYPES, images=["image"])
    return folder
