"""The small run of the soak: how it is written, started, and compared with another one."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.memory import write_model

STEPS = 6
CLOCKS = ("seconds", "share_of_step")
"""Metrics that a clock has made, with all that begin so."""
REWARD = '''
def luck(completion, example):
    """Full marks for a gold answer; for anything else a number that depends on the text alone."""
    if completion.text.startswith("<think>"):
        return 1.0
    return sum(map(ord, completion.text)) % 5 / 4
'''


def write_run(folder: Path) -> Path:
    """The config of a run in `folder`: checkpoints, samples and evaluations as often as they can be."""
    shared = folder.parent
    folder.mkdir(parents=True)
    _write_shared(shared)
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": str(shared / "base")},
        "data": {
            "train": str(shared / "train.parquet"),
            "columns": {"id": "idx", "prompt": "prompt", "images": "image"},
        },
        "algorithm": {"beta_th": 1.0},
        "rollout": {"group_size": 3, "max_new_tokens": 4},
        "rewards": {"weights": {f"{shared / 'luck.py'}:luck": 1.0}, "workers": 1},
        "train": {
            "prompts_per_step": 4,
            "steps": STEPS,
            "learning_rate": 1e-3,
            "tokens_per_pass": 200,
        },
        "eval": {
            "task": "cvbench",
            "data": str(shared / "test.parquet"),
            "every": 2,
            "max_new_tokens": 4,
        },
        "output": {"folder": str(folder / "run"), "checkpoint_every": 1, "samples_every": 1},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@cache
def _write_shared(folder: Path) -> None:
    """What all runs of a way have in common: a path that a reward's name holds is in the metrics."""
    from gpg_vl.quickstart import scenes

    write_model(folder / "base", tiny=True)
    (folder / "luck.py").write_text(REWARD)
    for name, seed, rows in (("train", 11, 16), ("test", 12, 8)):
        table = pa.Table.from_pylist(list(scenes.rows(seed, rows)))
        pq.write_table(table, folder / f"{name}.parquet")


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def words(processes: int, config: Path, overrides: Sequence[str]) -> list[str]:
    """The command of a run, under torchrun if there are several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    return [*launcher, "-m", "gpg_vl", "train", str(config), *overrides]


# ---- what a run leaves


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two runs do not have in common."""
    mine, theirs = kept(one), kept(other)
    return sorted(
        name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
    )


def kept(run: Path) -> dict[str, str]:
    """Digests of everything that a run leaves but for its clocks, by name.

    Files of tensors and of rows are read: where a tensor lies in a file says nothing.
    """
    found = dict(_rows(run / "metrics.jsonl", "metrics"))
    newest = max((run / "checkpoints").iterdir())
    for file in sorted(newest.rglob("*")):
        name = file.relative_to(run / "checkpoints").as_posix()
        if file.suffix in (".pt", ".safetensors"):
            found[name] = _digest_tensors(file)
    for file in sorted((run / "samples").rglob("*")):
        if file.is_file():
            found[file.relative_to(run).as_posix()] = _digest(file.read_bytes())
    return found


def _rows(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """A name for each row, so that a row that is doubled or lost has a name too."""
    for number, line in enumerate(file.read_text().splitlines()):
        row = {key: value for key, value in json.loads(line).items() if not key.startswith(CLOCKS)}
        yield f"{name}:{number}", json.dumps(row, sort_keys=True)


def _digest_tensors(file: Path) -> str:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        content: Any = load_file(file)
    else:
        content = torch.load(file, weights_only=True, map_location="cpu")
    digest = hashlib.sha256()
    for name, leaf in _leaves(content, ""):
        digest.update(name.encode())
        digest.update(leaf)
    return digest.hexdigest()


def _leaves(content: Any, name: str) -> Iterator[tuple[str, bytes]]:
    """Every tensor and plain value of a nested content, with its bytes."""
    if isinstance(content, dict):
        for key in sorted(content, key=str):
            yield from _leaves(content[key], f"{name}/{key}")
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            yield from _leaves(item, f"{name}/{number}")
    elif isinstance(content, torch.Tensor):
        yield f"{name} {content.dtype} {tuple(content.shape)}", _bytes(content)
    else:
        yield name, repr(content).encode()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
