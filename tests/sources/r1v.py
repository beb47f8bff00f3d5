"""R1-V's training sets, GEOQA_R1V_Train_8K and clevr_cogen_a_train: data/train-*.parquet with image, problem, solution."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import IMAGE, picture, struct, write_parquet

TYPES = {"image": IMAGE, "problem": pa.string(), "solution": pa.string()}
GEOQA = (
    (
        "As shown in the figure, angle A = 80.0, angle B = 60.0, then angle CED is ()",
        "<answer> 145° </answer>",
        "145°",
    ),
    ("Find the length of AB", "<answer> 2√{15}米 </answer>", "2√{15}米"),
    ("Find the area", "<answer>65π</answer>", "65π"),
    ("求角的度数", "\\frac{√{3}}{2}", "\\frac{√{3}}{2}"),
)
CLEVR = (
    ("How many items are there in the image?", "<answer> 3 </answer>", "3"),
    ("How many red cubes are there?", "<answer>0</answer>", "0"),
    ("How many things are left of the ball?", "<answer> 10 </answer>", "10"),
)


def write(
    folder: Path, known: Sequence[tuple[str, str, str]], rows: int = 12, **changes: Any
) -> Path:
    """Rows in turn, in two files. `changes` maps r3 to columns of row 3 that differ."""
    made = [
        {
            "image": struct(picture(n), f"{n}.png"),
            "problem": known[n % len(known)][0],
            "solution": known[n % len(known)][1],
        }
        | changes.get(f"r{n}", {})
        for n in range(rows)
    ]
    half = rows // 2
    for part, some in enumerate((made[:half], made[half:])):
        write_parquet(
            folder / "data" / f"train-0000{part}-of-00002.parquet", some, TYPES, images=["image"]
        )
    return folder
