"""What `data.workers` saves and costs: paired runs of a tiny model on pictures of 448x448 pixels, without and with workers.

    python -m benchmarks.encode_ahead --workers 2 --pairs 3

Prints, of each run, the seconds in which a step waited for its prompts and their share of it, without the first step and the
one that waits for the workers to start; and the most memory that a worker has held.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.memory import write_model
from benchmarks.soak_run import REWARD
from gpg_vl.console import say

ROWS, SIDE, STEPS, STARTING = 48, 448, 12, 2


class Measured(NamedTuple):
    waited: float
    """Seconds per step, the median of all steps."""
    share: float
    """Of the step."""
    worker_bytes: int
    """At most of one worker; 0 without any."""


def write_run(folder: Path) -> Path:
    write_model(folder / "base", tiny=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        # smooth enough to be packed like a photo
        small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
        file = io.BytesIO()
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        question = {"id": str(number), "prompt": "How many balls are there?", "answer": "1"}
        rows.append({**question, "image": {"bytes": file.getvalue(), "path": None}})
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=8)
    (folder / "luck.py").write_text(REWARD)
    tree = {
        "model": {"path": str(folder / "base"), "freeze": ["vision", "merger"]},
        "data": {"train": str(folder / "train.parquet")},
        "algorithm": {"beta_th": 0.0},
        "rollout": {"group_size": 4, "max_new_tokens": 16},
        "rewards": {"weights": {f"{folder / 'luck.py'}:luck": 1.0}},
        "train": {"prompts_per_step": 8, "steps": STEPS},
        "output": {"folder": str(folder / "run"), "samples_every": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def measure(config: Path, run: Path, workers: int) -> Measured:
    words = [sys.executable, "-m", "gpg_vl", "train", str(config)]
    settings = [f"data.workers={workers}", f"output.folder={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = psutil.Popen([*words, *settings], env=environment, stdout=subprocess.DEVNULL)
    most = 0
    while True:
        with suppress(psutil.TimeoutExpired):
            if code := process.wait(0.2):
                raise SystemExit(f"{' '.join(words)} ended with {code}")
            break
        most = max([most, *map(_held, _workers(process))])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    late = rows[STARTING:]
    return Measured(
        waited=median(row["seconds"]["encode"] for row in late),
        share=median(row["share_of_step"]["data"] for row in late),
        worker_bytes=most,
    )


def _workers(trainer: psutil.Process) -> list[psutil.Process]:
    """Those that encode: spawned, and without the mark of those that run rewards."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for one in trainer.children():
            with suppress(psutil.NoSuchProcess):
                spawned = any("spawn_main" in word for word in one.cmdline())
                if spawned and not any(name.startswith("GPG_VL_REWARD") for name in one.environ()):
                    found.append(one)
    return found


def _held(worker: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(worker.memory_info().rss)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = write_run(Path(folder))
        for pair in range(arguments.pairs):
            for workers in (0, arguments.workers):
                found = measure(config, Path(folder) / f"run-{pair}-{workers}", workers)
                memory = f", {found.worker_bytes / 2**20:.0f} MiB in a worker" if workers else ""
                say(
                    f"{workers} workers: {1000 * found.waited:.1f} ms per step, {100 * found.share:.1f} % of it{memory}"
                )


if __name__ == "__main__":
    main()
