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

SLOW = """
import time


def luck(completion, example):
    \"\"\"That of the other runs, slow enough for a process to be killed in the middle of a run.\"\"\"
    if completion.text.startswith("<think>"):
        return 1.0
    time.sleep(2)
    return sum(map(ord, completion.text)) % 5 / 4
"""

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
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
            *("-m", "gpg_vl", "train", str(config), *options),
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


def said(launch: Launch) -> list[str]:
    """The messages of gpg-vl. What torchrun adds is its own affair, but no stack of ours may be among it."""
    text = launch.log.read_text()
    assert "gpg_vl/" not in "".join(re.findall(r'File ".*', text)), text
    return [line for line in text.splitlines() if line.startswith("gpg-vl: ")]


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
        [message] = said(launches[0])
    assert re.search(
        r"Process 1 \(.*process id \d+\) is late: it has been in the rewards of step 1 for \d+ seconds; "
        r"processes 0 and 2 waited \d+ seconds, at most 0.1 minutes are allowed \(train.max_wait_minutes\)",
        message,
    ), message


def strip(run: Path) -> list[dict[str, object]]:
    """All metrics but those that have the path of the reward in their name."""
    return [{k: v for k, v in r.items() if not k.startswith("reward/")} for r in metrics(run)]


@pytest.fixture(scope="module")
def one_launcher(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Runs that were never stopped, by the number of processes below their only launcher."""
    runs = {}
    for processes in (2, 4):
        folder = tmp_path_factory.mktemp(f"one-launcher-{processes}")
        config = write_config(folder, tiny_checkpoint, train={"prompts_per_step": 4, "steps": 3})
        result = gpg_vl("train", config, processes=processes)
        assert result.returncode == 0, result.stderr
        runs[processes] = folder / "run"
    return runs


@pytest.mark.parametrize("each", [1, 2])
def test_two_launchers_train_as_one(
    one_launcher: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path, each: int
) -> None:
    """All metrics in all digits, loss and gradient norm among them."""
    config = write_config(tmp_path, tiny_checkpoint, train={"prompts_per_step": 4, "steps": 3})
    with launched(tmp_path, *nodes(config, processes=each)) as launches:
        for launch in launches:
            assert launch.wait(START + WITHIN) == 0, launch.log.read_text()
    rows = strip(tmp_path / "run")
    assert rows == strip(one_launcher[2 * each])
    assert any(row["grad_norm"] for row in rows)


@pytest.mark.parametrize(
    ("victim", "each", "message"),
    [
        ("process", 2, r"Process 3 \(.*\) has ended without a word; it was last seen in the "),
        ("launcher", 1, r"The launcher of process 1 \(.*\) has ended"),
        ("first launcher", 1, r"The launcher .* has ended"),
    ],
)
def test_a_killed_process_or_launcher_ends_all_and_resume_goes_on(
    one_launcher: dict[int, Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    victim: str,
    each: int,
    message: str,
) -> None:
    config = write_config(tmp_path, tiny_checkpoint, train={"prompts_per_step": 4, "steps": 3})
    reward = (tmp_path / "luck.py").read_text()
    (tmp_path / "luck.py").write_text(SLOW)
    with launched(tmp_path, *nodes(config, processes=each)) as launches:
        wait_for_rows(tmp_path / "run", 1, launches)
        if victim == "process":
            launches[1].of_rank(3).kill()
        else:
            launches[int(victim == "launcher")].kill_launcher()
        for launch in launches:
            assert launch.wait(WITHIN) != 0
            assert not launch.left_behind(WITHIN), launch.log.read_text()
        messages = [line for launch in launches for line in said(launch)]
    # the first launcher holds what the machines say to each other: without it each of them speaks for itself
    assert len(messages) == (2 if victim == "first launcher" else 1), messages
    assert all(re.search(message, line) for line in messages), messages
    assert all("go on from the last checkpoint with --resume" in line for line in messages)

    (tmp_path / "luck.py").write_text(reward)
    with launched(tmp_path, *nodes(config, "--resume", processes=each)) as launches:
        for launch in launches:
            assert launch.wait(START + WITHIN) == 0, launch.log.read_text()
    assert strip(tmp_path / "run") == strip(one_launcher[2 * each])
