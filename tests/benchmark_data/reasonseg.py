"""ReasonSeg in three layouts. Images are 200 x 100 pixels, so that boxes are easy to follow by hand.

Each annotation has an ignored square first, then two targets that overlap, then a flag over everything.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmark_data.files import image, write_parquet, write_picture

SIZE = (200, 100)
UNION = (20, 10, 101, 91)  # of the masks: corner pixels are inside
TARGET_BOX = [20.0, 10.0, 100.0, 90.0]
FIRST_BOX = [0.0, 0.0, 10.0, 10.0]


def square(label: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return {"label": label, "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}


def annotation(number: int) -> dict[str, Any]:
    return {
        "text": [f"what holds water ({number})", "another way to say it"],
        "is_sentence": number % 2 == 0,
        "shapes": [
            square("ignore", 0, 0, 10, 10),
            square("target", 20, 10, 60, 50),
            square("target", 50, 40, 100, 90),
            square("flag", 0, 0, 199, 99),
        ],
    }


def write(task: str, folder: Path, rows: int = 4) -> Path:
    """LISA's folder; one annotation is in cp1252, as some of LISA's are."""
    for n in range(rows):
        write_picture(folder / f"{n:03}.jpg", n, SIZE)
        content = annotation(n) | ({"text": ["the café's cup"]} if n == 1 else {})
        text = json.dumps(content, ensure_ascii=False)
        (folder / f"{n:03}.json").write_bytes(text.encode("cp1252" if n == 1 else "utf-8"))
    return folder


def write_visual_rft(folder: Path, rows: int = 4) -> Path:
    """lisa_test.json: the box of the first polygon only."""
    made = []
    for n in range(rows):
        write_picture(folder / "images" / f"{n}.jpg", n, SIZE)
        made.append(
            {
                "image_path": f"images/{n}.jpg",
                "instruction": annotation(n)["text"],
                "boxes": [FIRST_BOX],
            }
        )
    file = folder / "lisa_test.json"
    file.write_text(json.dumps(made), encoding="utf-8")
    return file


def mask() -> np.ndarray:
    """The two targets as pixels."""
    drawn = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    drawn[10:51, 20:61] = True
    drawn[40:91, 50:101] = True
    return drawn


def write_masks(folder: Path, rows: int = 3) -> Path:
    """The Parquet copies with `mask`, in two shards."""
    for shard in range(2):
        made = [
            {
                "image": image(10 * shard + n, SIZE),
                "text": f"what holds water ({n})",
                "mask": mask().tolist(),
                "image_id": f"{shard}{n}",
                "ann_id": str(n),
                "img_height": SIZE[1],
                "img_width": SIZE[0],
            }
            for n in range(rows)
        ]
        write_parquet(
            folder / "data" / f"test-0000{shard}-of-00002.parquet",
            made,
            mask=pa.list_(pa.list_(pa.bool_())),
        )
    return folder
