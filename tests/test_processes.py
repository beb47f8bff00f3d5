"""Several processes under one or two launchers: the same numbers, one message, one end."""

import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import (
    Launch,
    gpg_vl,
    launched,
    launcher,
    metrics,
    rows_of,
    warm_python,
    write_config,
)

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


def nodes(
    config: Path, *options: str, processes: int, launcher: str = "torchrun", warm: bool = False
) -> list[list[str]]:
    """The commands of two launchers on this machine, each with so many processes.

    warm: without the seconds of imports, for runs whose processes are not looked at.
    """
    python = warm_python() if warm else [sys.executable]
    port = str(free_port())
    commands = []
    for node in ("0", "1"):
        if launcher == "torchrun":
            words = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", node]
            words += ["--nproc-per-node", str(processes)]
            words += ["--master-addr", "127.0.0.1", "--master-port", port]
            words += ["--no-python", *python]
        else:
            words = ["-m", "accelerate.commands.launch", "--num_machines", "2"]
            words += ["--machine_rank", node, "--num_processes", str(2 * processes)]
            words += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--multi_gpu"]
        commands.append([*python, *words, "-m", "gpg_vl", "train", str(config), *options])
    return commands


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


@pytest.mark.parametrize(
    ("launcher", "each"), [("torchrun", 1), ("torchrun", 2), ("accelerate", 1)]
)
def test_two_launchers_train_as_one(
    one_launcher: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path, launcher: str, each: int
) -> None:
    """All metrics in all digits, loss and gradient norm among them."""
    config = write_config(tmp_path, tiny_checkpoint, train={"prompts_per_step": 4, "steps": 3})
    is_torchrun = launcher == "torchrun"
    commands = nodes(config, processes=each, launcher=launcher, warm=is_torchrun)
    with launched(tmp_path, *commands) as launches:
        for launch in launches:
            assert launch.wait(START + WITHIN) == 0, launch.log.read_text()
    rows = strip(tmp_path / "run")
    assert rows == strip(one_launcher[2 * each])
    assert any(row["grad_norm"] for row in rows)


def test_a_terminated_launcher_leaves_a_checkpoint_and_resume_goes_on(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """SIGTERM as Slurm sends it before a job's time is over, to a launcher of two processes that share their weights."""
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        train={"steps": 100000, "sharding": "fsdp2"},
        output={"checkpoint_every": 0, "samples_every": 0},
    )
    run = tmp_path / "run"
    with launched(tmp_path, [*launcher(2), "-m", "gpg_vl", "train", str(config)]) as launches:
        wait_for_rows(run, 2, launches)
        launches[0].terminate_launcher()
        assert launches[0].wait(WITHIN) != 0, "a script must not take it for finished"
        assert not launches[0].left_behind(10)
        assert "stopping after this step, with a checkpoint" in launches[0].log.read_text()
    steps = [row["step"] for row in metrics(run)]
    [checkpoint] = (run / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{steps[-1]:06d}"

    more = steps[-1] + 2
    result = gpg_vl("train", config, "--resume", f"train.steps={more}", processes=2)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in metrics(run)] == list(range(1, more + 1))


def killed(folder: Path, checkpoint: Path, victim: str, *, each: int) -> list[str]:
    """What is said when one process or launcher of two is killed in the middle of a run, and nobody is left."""
    config = write_config(folder, checkpoint, train={"prompts_per_step": 4, "steps": 3})
    reward = (folder / "luck.py").read_text()
    (folder / "luck.py").write_text(SLOW)
    with launched(folder, *nodes(config, processes=each)) as launches:
        wait_for_rows(folder / "run", 1, launches)
        if victim == "process":
            launches[1].of_rank(2 * each - 1).kill()
        else:
            launches[0 if victim == "first launcher" else 1].kill_launcher()
        end = time.monotonic() + WITHIN
        for launch in launches:
            assert launch.wait(end - time.monotonic()) != 0
            assert not launch.left_behind(end - time.monotonic()), launch.log.read_text()
    (folder / "luck.py").write_text(reward)

    messages = [line for launch in launches for line in said(launch)]
    assert all("resume from the last checkpoint with --resume" in line for line in messages)
    return messages


def test_a_killed_process_ends_all_and_resume_goes_on(
    one_launcher: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    [message] = killed(tmp_path, tiny_checkpoint, "process", each=2)
    assert re.search(
        r"Process 3 \(.*\) has ended without a message; it was last seen in the ", message
    ), message

    config = tmp_path / "config.yaml"
    with launched(tmp_path, *nodes(config, "--resume", processes=2, warm=True)) as launches:
        for launch in launches:
            assert launch.wait(START + WITHIN) == 0, launch.log.read_text()
    assert strip(tmp_path / "run") == strip(one_launcher[4])


@pytest.mark.slow
def test_a_killed_launcher_ends_all(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its process would live on for ever, with nobody to end it."""
    [message] = killed(tmp_path, tiny_checkpoint, "launcher", each=1)
    assert re.search(r"The launcher of process 1 \(.*\) has ended", message), message


@pytest.mark.slow
def test_without_the_first_launcher_each_node_speaks_for_itself(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It holds what the nodes say to each other."""
    messages = killed(tmp_path, tiny_checkpoint, "first launcher", each=1)
    assert len(messages) == 2
    assert all("The launcher or the process that holds the store" in m for m in messages)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "1"],
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--num_processes", "1", "--cpu"],
    ],
)
def test_the_only_launcher_takes_its_processes_with_it(
    tiny_checkpoint: Path, tmp_path: Path, words: list[str]
) -> None:
    """Of one process too, which has nobody else to notice it."""
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        train={"steps": 100000},
        output={"checkpoint_every": 2, "samples_every": 0},
    )
    run = tmp_path / "run"
    command = [sys.executable, "-m", words[0], *words[1:], "-m", "gpg_vl", "train", str(config)]
    with launched(tmp_path, command) as launches:
        wait_for_rows(run, 3, launches)
        launches[0].kill_launcher()
        assert not launches[0].left_behind(WITHIN), launches[0].log.read_text()
        messages = said(launches[0])
    assert messages, "it ended without a word"
    assert all("resume from the last checkpoint with --resume" in line for line in messages)
