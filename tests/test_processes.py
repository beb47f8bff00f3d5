"""Several processes under one or two launchers: the same numbers, one message, one end."""

import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import Launch, gpg_vl, launched, launcher, metrics, rows_of, write_config

WITHIN = 60.0
"""Seconds in which all processes must have ended once one of them has."""
START = 120.0
"""Seconds that a run of a few tiny steps may take to start on a busy machine."""

SLEEPY = '''
import os
import time


def luck(completion, example):
    """That of the other runs, but process 1 falls asleep over it."""
    if completion.text.startswith("<think>"):
        return 1.0
    if os.environ["RANK"] == "1":
        time.sleep(600)
    return sum(map(ord, completion.text)) % 5 / 4
'''


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def nodes(config: Path, *options: str, processes: int, number: int = 2) -> list[list[str]]:
    """The commands of so many launchers on this machine, each with so many processes."""
    port = free_port()
    return [
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(number)),
            *("--node-rank", str(node), "--nproc-per-node", str(processes)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"),
            *("--rdzv-id", "test", "-m", "gpg_vl", "train", str(config), *options),
        ]
        for node in range(number)
    ]


def wait_for_rows(run: Path, rows: int, launches: Sequence[Launch]) -> None:
    end = time.monotonic() + START
    while rows_of(run) < rows:
        assert time.monotonic() < end, [launch.log.read_text() for launch in launches]
        assert all(launch.is_running() for launch in launches), [
            launch.log.read_text() for launch in launches
        ]
        time.sleep(0.05)


def said(launches: Sequence[Launch]) -> list[str]:
    """The messages of gpg-vl, and the tracebacks that are not torchrun's own."""
    text = "\n".join(launch.log.read_text() for launch in launches)
    own = text.count("torch/distributed/run.py") and text.count("ChildFailedError")
    assert text.count("Traceback") <= own, text
    return [line for line in text.splitlines() if line.startswith("gpg-vl: ")]


def numbers(run: Path) -> list[dict[str, object]]:
    return [{k: row[k] for k in ("step", "loss", "grad_norm", "reward")} for row in metrics(run)]


def test_a_late_process_ends_all_with_its_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Three processes; one sleeps in a reward, and its reward worker goes with it."""
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        train={"prompts_per_step": 3, "max_wait_minutes": 0.1},
        rewards={"time_limit": 900},
    )
    (tmp_path / "luck.py").write_text(SLEEPY)
    command = [*launcher(3), "-m", "gpg_vl", "train", str(config)]
    with launched(tmp_path, command) as launches:
        assert launches[0].wait(START + WITHIN) == 1
        assert not launches[0].left_behind(10)
        [message] = said(launches)
    assert re.search(
        r"Process 1 \(.*process id \d+\) is late: it has been in the rewards of step 1 for \d+ seconds; "
        r"processes 0 and 2 waited \d+ seconds, at most 0.1 minutes are allowed \(train.max_wait_minutes\)",
        message,
    ), message
