"""The ViRFT sets: few-shot classification and detection, data/train-*.parquet with image, problem and solution."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_parquet

TYPES = {"image": IMAGE, "problem": pa.string(), "solution": pa.string()}
CLASSES = {
    "flowers": ["rose", "desert-rose", "pink primrose"],
    "pets": ["american_bulldog", "Abyssinian"],
    "aircraft": ["707-320", "737-200"],
    "cars": ["2010 Chevrolet Malibu Hybrid Sedan", "2000 AM General Hummer SUV"],
}
DETECTION = (
    "Detect all objects belonging to the category '{category}' in the image, and provide the bounding boxes (between 0 and "
    "1000, integer) and confidence (between 0 and 1, with two decimal places).\nIf no object belonging to the category "
    "'{category}' in the image, return 'No Objects'.\nOutput the thinking process in <think> </think> and final answer in "
    "<answer> </answer> tags.The output answer format should be as follows:\n<think> ... </think> <answer>[{'Position': "
    "[x1, y1, x2, y2], 'Confidence': number}, ...]</answer>\nPlease strictly follow the format."
)
OBJECTS = (
    ("bus", "[{'Position': [10, 20, 300, 400], 'Confidence': 1}]", [[10, 20, 300, 400]], [1]),
    (
        "fire hydrant",
        "[{'Position': [0, 0, 1000, 500], 'Confidence': 0.95}, {'Position': [5, 6, 7, 8], 'Confidence': 1.0}]",
        [[0, 0, 1000, 500], [5, 6, 7, 8]],
        [0.95, 1.0],
    ),
    ("hair drier", "No Objects", [], []),
)


def write_classification(folder: Path, name: str, **changes: Any) -> Path:
    """Four pictures of each class, class after class."""
    made = [
        {
            "image": struct(picture(n)),
            "problem": "A problem.",
            "solution": f"<answer>{CLASSES[name][n // 4]}</answer>",
        }
        | changes.get(f"r{n}", {})
        for n in range(4 * len(CLASSES[name]))
    ]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", made, TYPES, images=["image"])
    return folder


def write_class_folders(folder: Path, classes: Sequence[str], pictures: int) -> Path:
    """CLASS/number.jpg, as torchvision reads it."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(pictures):
            (folder / name / f"{n}.jpg").write_bytes(picture(100 * place + n, kind="JPEG"))
    return folder


def write_detection(folder: Path, rows: int = 12, **changes: Any) -> Path:
    made = []
    for n in range(rows):
        category, solution, *_ = OBJECTS[n % 3]
        row = {
            "image": struct(picture(n, (200, 100))),
            "problem": DETECTION.replace("{category}", category),
            "solution": f"<answer>{solution}</answer>",
        }
        made.append(row | changes.get(f"r{n}", {}))
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", made, TYPES, images=["image"])
    return folder
