"""array/SAT: SAT_train.parquet with JPEG bytes of one or two pictures, options in an order that tells the answer."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_parquet

TYPES = {
    "image_bytes": pa.list_(IMAGE),
    "question": pa.string(),
    "answers": pa.list_(pa.string()),
    "question_type": pa.string(),
    "correct_answer": pa.string(),
}
KINDS = (
    (
        "Which is closer?",
        ["the red, round chair", "the table"],
        "obj_movement",
        "the red, round chair",
    ),
    ("How did the camera turn?", ["left", "right", "it did not turn"], "action_sequence", "left"),
    ("How many lamps?", ["3", "2"], "count", "3"),
)


def row(number: int) -> dict[str, Any]:
    """The gold option stands first, as it may in the published file. Every fifth row, 4, 9, ..., has two pictures."""
    question, options, kind, gold = KINDS[number % 3]
    pictures = [picture(number, kind="JPEG")] + (
        [picture(number + 5000, kind="JPEG")] if number % 5 == 4 else []
    )
    return {
        "image_bytes": [struct(data) for data in pictures],
        "question": f"{question} ({number})",
        "answers": options,
        "question_type": kind,
        "correct_answer": gold,
    }


def write(folder: Path, rows: int = 12, **changes: Any) -> Path:
    """SAT_train.parquet in row groups of five. `changes` maps r3 to columns of row 3 that differ."""
    made = [row(number) | changes.get(f"r{number}", {}) for number in range(rows)]
    write_parquet(
        folder / "SAT_train.parquet", made, TYPES, images=["image_bytes"], row_group_size=5
    )
    return folder
