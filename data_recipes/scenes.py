"""Drawn scenes in CV-Bench's Parquet schema: an endless training set for Count, Relation, Depth and Distance.

    python data_recipes/scenes.py --out data/scenes --seed 1 --rows 10000

Row i of seed s is always the same scene; sets of different seeds share none. Needs no network.
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from gpg_vl.data import scenes

BATCH = 500


def write(out: Path, *, seed: int, number: int) -> Path:
    """Write `number` rows to out/scenes.parquet, in batches; complete or absent. Returns the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "scenes.parquet"
    partial = file.with_suffix(".partial")
    schema = pa.Table.from_pylist(list(scenes.rows(seed, 1))).schema
    with pq.ParquetWriter(partial, schema) as writer:
        for start in track(range(0, number, BATCH), description="drawing", transient=True):
            writer.write_table(
                pa.Table.from_pylist(list(scenes.rows(seed, min(BATCH, number - start), start)), schema=schema)
            )
    partial.replace(file)
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    try:
        print(f"wrote {write(arguments.out, seed=arguments.seed, number=arguments.rows)}")
    except OSError as error:
        print(f"scenes.py: {arguments.out} cannot be written: {error}. Choose another --out.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
