"""Small real runs for the tests: a data set, a reward that varies on a random model, a config, the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gpg_vl.quickstart import scenes

REWARD = '''
def luck(completion, example):
    """Full marks for a gold answer; for anything else a number that depends on the text alone."""
    if completion.text.startswith("<think>"):
        return 1.0
    return sum(map(ord, completion.text)) % 5 / 4
'''


def write_scenes(file: Path, rows: int, seed: int = 11) -> Path:
    pq.write_table(pa.Table.from_pylist(list(scenes.rows(seed, rows))), file)
    return file


def write_config(folder: Path, checkpoint: Path, **sections: dict[str, Any]) -> Path:
    """A config of four steps in `folder`, with `sections` merged over it."""
    data = folder / "train.parquet"
    if not data.exists():
        write_scenes(data, 12)
    (folder / "luck.py").write_text(REWARD)
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": str(checkpoint)},
        "data": {
            "train": str(data),
            "columns": {"id": "idx", "prompt": "prompt", "images": "image"},
        },
        "rollout": {"group_size": 3, "max_new_tokens": 4},
        "rewards": {"weights": {f"{folder / 'luck.py'}:luck": 1.0}},
        "train": {"prompts_per_step": 2, "steps": 4, "learning_rate": 1e-3, "tokens_per_pass": 200},
        "output": {"folder": str(folder / "run"), "checkpoint_every": 1, "samples_every": 2},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def launcher(processes: int) -> list[str]:
    """The words in front of `-m gpg_vl`: this Python, or several of it under torchrun."""
    if processes == 1:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return [sys.executable, *torchrun]


def gpg_vl(
    *arguments: str | Path, processes: int = 1, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, or in several under torchrun."""
    return subprocess.run(
        [*launcher(processes), "-m", "gpg_vl", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
        timeout=timeout,
        check=False,
    )


def kill_when(config: Path, reached: Callable[[Path], bool], processes: int = 1) -> None:
    """Start a run and kill all its processes with SIGKILL as soon as its folder is as `reached` wants it."""
    process = subprocess.Popen(
        [*launcher(processes), "-m", "gpg_vl", "train", str(config)],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not reached(config.parent / "run"):
        time.sleep(0.005)
    assert process.poll() is None, "the run must be killed while it runs"

    # torchrun starts its workers in sessions of their own, and they would train on without it
    alive = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in alive:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(alive)


def kill_after(config: Path, rows: int, processes: int = 1) -> None:
    """Start a run and kill it as soon as metrics.jsonl has so many rows."""

    def reached(run: Path) -> bool:
        file = run / "metrics.jsonl"
        return file.exists() and file.read_bytes().count(b"\n") >= rows

    kill_when(config, reached, processes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
