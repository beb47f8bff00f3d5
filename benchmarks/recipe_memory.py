"""Does a recipe's memory grow with the set? `python -m benchmarks.recipe_memory --rows 100000`, Linux and macOS.

Draws rows in the layout of SAT, each with a picture of its own, converts them with `data_recipes/sat.py` in a process of its own
and prints that process's peak of resident memory.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gpg_vl.quickstart import scenes

SIDE = 32
PART = 1_000
"""Rows per row group of the source."""
SCHEMA = pa.schema(
    {
        "image_bytes": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "question": pa.string(),
        "answers": pa.list_(pa.string()),
        "question_type": pa.string(),
        "correct_answer": pa.string(),
    }
)


def write_source(file: Path, rows: int) -> None:
    """Never more than one row group in memory: what is measured must not begin here."""
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for start in range(0, rows, PART):
            part = [_row(n) for n in range(start, min(start + PART, rows))]
            writer.write_table(pa.Table.from_pylist(part, schema=SCHEMA))


def _row(number: int) -> dict[str, object]:
    noise = random.Random(number).randbytes(3 * SIDE * SIDE)
    return {
        "image_bytes": [
            {"bytes": scenes.png(Image.frombytes("RGB", (SIDE, SIDE), noise)), "path": None}
        ],
        "question": f"Which way did the camera turn in clip {number}?",
        "answers": ["left", "right"],
        "question_type": "action_sequence",
        "correct_answer": "left",
    }


def convert(folder: Path) -> tuple[float, float]:
    """(bytes at the peak, seconds) of the recipe's process."""
    recipe = Path(__file__).parent.parent / "data_recipes" / "sat.py"
    start = time.perf_counter()
    command = [
        sys.executable,
        str(recipe),
        "--source",
        str(folder),
        "--out",
        str(folder / "out"),
        "--limit",
        "0",
    ]
    subprocess.run(command, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(
        resource.RUSAGE_CHILDREN
    ).ru_maxrss * unit, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "SAT_train.parquet"
        write_source(source, arguments.rows)
        size = source.stat().st_size
        peak, seconds = convert(Path(scratch))
    print(
        f"{arguments.rows:,} rows, {size / 1e6:.0f} MB: {peak / 1e6:.0f} MB of memory at most, {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
