"""Small real runs for the tests: a data set, a reward that varies on a random model, a config, the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import warm
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
    return _launcher(processes, [sys.executable])


@cache
def warm_launcher(processes: int) -> list[str]:
    """The same without the seconds that imports take, for runs whose processes are not looked at."""
    return _launcher(processes, warm_python())


@cache
def warm_python() -> list[str]:
    """What stands for this Python in a command that starts without the seconds of its imports."""
    return warm.start(environment())


def _launcher(processes: int, python: list[str]) -> list[str]:
    if processes == 1:
        return python
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return [*python, *torchrun, "--no-python", *python]


def run_python(
    *words: object, processes: int = 1, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `python WORDS...` does, in a process of its own, or in several under torchrun."""
    return subprocess.run(
        [*warm_launcher(processes), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
        timeout=timeout,
        check=False,
    )


def gpg_vl(
    *arguments: str | Path, processes: int = 1, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, or in several under torchrun."""
    return run_python("-m", "gpg_vl", *arguments, processes=processes, cwd=cwd, timeout=timeout)


class Launch:
    """A launcher that was started, and all processes below it, those of torchrun's own sessions and reward workers included."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        with log.open("w") as file:
            self._process = psutil.Popen(
                words, env=environment(), start_new_session=True, stdout=file, stderr=file
            )
        self.log = log
        self._family: set[psutil.Process] = {self._process}

    def family(self) -> set[psutil.Process]:
        """All processes that were seen so far: one whose parent is gone is still of the family."""
        for one in list(self._family):
            with suppress(psutil.NoSuchProcess):
                self._family.update(one.children(recursive=True))
        return self._family

    def of_rank(self, rank: int) -> psutil.Process:
        """The training process of that rank."""
        for one in self.family():
            with suppress(psutil.NoSuchProcess):
                is_worker = one.parent() == self._process
                if is_worker and one.environ().get("RANK") == str(rank):
                    return one
        raise AssertionError(f"no process of rank {rank} below {self._process}")

    def kill_launcher(self) -> None:
        self._process.kill()

    def terminate_launcher(self) -> None:
        self._process.terminate()

    def is_running(self) -> bool:
        self.family()
        return bool(self._process.poll() is None)

    def wait(self, timeout: float) -> int:
        """The exit code of the launcher. Raises psutil.TimeoutExpired."""
        end = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < end:
            time.sleep(0.2)
        return int(self._process.wait(max(end - time.monotonic(), 0.1)))

    def left_behind(self, within: float) -> list[psutil.Process]:
        """Who is still there after so many seconds."""
        return list(psutil.wait_procs(self.family(), timeout=within)[1])

    def end(self) -> None:
        for one in self.family():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(self._family, timeout=30)


@contextmanager
def launched(folder: Path, *commands: Sequence[str]) -> Iterator[list[Launch]]:
    """Launchers side by side, one a command, with their output in files in `folder`; no process of theirs outlives the block."""
    launches: list[Launch] = []
    try:
        for number, words in enumerate(commands):
            launches.append(Launch(words, folder / f"launch-{number}.log"))
        yield launches
    finally:
        for launch in launches:
            launch.end()


def kill_when(config: Path, reached: Callable[[Path], bool], processes: int = 1) -> None:
    """Start a run and kill all its processes with SIGKILL as soon as its folder is as `reached` wants it."""
    words = [*warm_launcher(processes), "-m", "gpg_vl", "train", str(config)]
    with launched(config.parent, words) as [launch]:
        while launch.is_running() and not reached(config.parent / "run"):
            time.sleep(0.005)
        assert launch.is_running(), "the run must be killed while it runs"


def rows_of(run: Path) -> int:
    """How many rows metrics.jsonl has so far."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_after(config: Path, rows: int, processes: int = 1) -> None:
    """Start a run and kill it as soon as metrics.jsonl has so many rows."""
    kill_when(config, lambda run: rows_of(run) >= rows, processes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "share_of_step")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def seconds_of_steps(folder: Path) -> list[float]:
    """How long each training step of a run took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"]["step"] for row in rows if row["kind"] == "train"]
