"""The text sets: MATH as train.jsonl and GSM8K as main/{train,test}-*.parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sources import write_jsonl, write_parquet

MATH = (
    ("What is $1+1$?", "Level 1", "Algebra", "It is $\\boxed{2}$.", "2"),
    (
        "Simplify $\\frac{2}{4}$.",
        "Level 3",
        "Algebra",
        "First \\boxed{9}, then $\\boxed{\\frac{1}{2}}$.",
        "\\frac{1}{2}",
    ),
    ("Solve it.", "Level 5", "Geometry", "So $\\boxed{\\{6,-6\\}}$.", "\\{6,-6\\}"),
    ("Unknown level.", "Level ?", "Geometry", "$\\boxed{1}$", "1"),
    ("Find {x}.", 4, "Number Theory", "\\boxed{\\text{even}}", "\\text{even}"),
)
GSM8K = (
    (
        "Natalia sold 48 clips in April and half as many in May. How many altogether?",
        "48/2 = <<48/2=24>>24\n#### 72",
        "72",
    ),
    ("How much is a million and a half?", "It is\n#### 1,500,000", "1500000"),
    ("What is left of five after nine are taken?", "5-9=-4\n#### -4", "-4"),
    ("How long is it?", "#### 2.5", "2.5"),
)


def write_math(folder: Path, rows: int = 12, **changes: Any) -> Path:
    """train.jsonl, whose rows carry their subject as `type`."""
    made = []
    for n in range(rows):
        problem, level, kind, solution, _ = MATH[n % len(MATH)]
        row = {"problem": problem, "level": level, "type": kind, "solution": solution}
        made.append(row | changes.get(f"r{n}", {}))
    write_jsonl(folder / "train.jsonl", made)
    return folder


def write_gsm8k(folder: Path, rows: int = 12, **changes: Any) -> Path:
    """12 rows of train and 4 of test; a folder socratic with other files beside, as on the hub."""
    types = {"question": pa.string(), "answer": pa.string()}
    made = [
        dict(zip(types, GSM8K[n % 4][:2], strict=True)) | changes.get(f"r{n}", {})
        for n in range(rows)
    ]
    other = [{"question": "Why?", "answer": "#### 1"}]
    write_parquet(folder / "main" / "train-00000-of-00001.parquet", made, types)
    write_parquet(
        folder / "main" / "test-00000-of-00001.parquet",
        [dict(zip(types, r[:2], strict=True)) for r in GSM8K],
        types,
    )
    write_parquet(folder / "socratic" / "train-00000-of-00001.parquet", other, types)
    return folder
