"""One run at a time in a folder; a lock goes with the process that held it."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from runs import gpg_vl, launched, rows_of, warm_launcher, write_config

from gpg_vl.errors import UserError
from gpg_vl.training import lock
from gpg_vl.training.lock import hold_folder

HOLD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from rich.console import Console
from gpg_vl.training import lock

folder, rank, forks = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "forks"
if rank:
    file = lock._join(folder, rank)
else:
    file = lock._take(folder, Console(file=sys.stderr))
if forks:
    import os
    if os.fork() == 0:
        time.sleep(120)
        os._exit(0)
print("held", flush=True)
time.sleep(120)
"""


def accelerator() -> Any:
    """Of one process."""
    return SimpleNamespace(
        num_processes=1, is_main_process=True, process_index=0, wait_for_everyone=lambda: None
    )


def console() -> Console:
    return Console(file=io.StringIO(), width=1000)


@contextmanager
def holder(folder: Path, rank: int = 0, forks: str = "no") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a process of a run."""
    words = [sys.executable, "-c", HOLD, str(folder), str(rank), forks]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        with suppress(ProcessLookupError):  # ended by the test, and without children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    with (
        holder(tmp_path) as first,
        pytest.raises(UserError, match=rf"Another run is using .*process id {first.pid}, since"),
        hold_folder(tmp_path, accelerator(), console()),
    ):
        pass


@pytest.mark.parametrize("forks", ["no", "forks"])
def test_a_killed_run_leaves_no_lock(tmp_path: Path, forks: str) -> None:
    """Not even with a child that lives on."""
    with holder(tmp_path, forks=forks) as first:
        first.kill()
        first.wait()
        with hold_folder(tmp_path, accelerator(), console()):
            assert f"process id {first.pid}" not in (tmp_path / ".lock").read_text()


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_folder(tmp_path / "new", accelerator(), console()):
            pass
    with holder(tmp_path / "new"):
        pass


def test_the_other_processes_of_a_dead_run_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write into the new run until they notice that their first one is gone."""
    (tmp_path / ".lock").write_text("somewhere, process id 1, since then\n")
    with holder(tmp_path, rank=1) as orphan:
        monkeypatch.setattr(lock, "PATIENCE", 0.5)
        with (
            pytest.raises(UserError, match=r"Processes of an earlier run are still alive.*id 1,"),
            hold_folder(tmp_path, accelerator(), console()),
        ):
            pass

        monkeypatch.setattr(lock, "PATIENCE", 30.0)
        # gone while it is waited for
        threading.Timer(1.0, orphan.kill).start()
        started = time.monotonic()
        with hold_folder(tmp_path, accelerator(), console()):
            assert 0.5 < time.monotonic() - started < 25


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    shown = io.StringIO()
    with hold_folder(tmp_path, accelerator(), Console(file=shown, width=1000)):
        pass
    assert "has no locks (No locks available): a second run" in shown.getvalue()


def test_a_full_disk_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "pwrite", full)
    with (
        pytest.raises(UserError, match=r"cannot be written: .*No space left.*Free disk space"),
        hold_folder(tmp_path, accelerator(), console()),
    ):
        pass


def test_a_second_run_is_refused_on_the_command_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With --resume and without; what the first one has written stays as it is."""
    config = write_config(tmp_path, tiny_checkpoint, train={"steps": 100000})
    run = tmp_path / "run"
    with launched(tmp_path, [*warm_launcher(1), "-m", "gpg_vl", "train", str(config)]) as [first]:
        while rows_of(run) < 1:
            assert first.is_running(), first.log.read_text()
            time.sleep(0.1)
        written = (run / "config.yaml").read_bytes()
        for options in ((), ("--resume",)):
            result = gpg_vl("train", config, "train.steps=7", *options)
            assert result.returncode == 2
            assert f"Another run is using the folder {run}" in result.stderr
            assert "Traceback" not in result.stderr
        assert first.is_running()
        assert (run / "config.yaml").read_bytes() == written


def test_a_lock_that_is_a_link_is_refused_and_its_target_is_kept(tmp_path: Path) -> None:
    """A run folder may come from somebody else: to sign such a lock would empty a file of the user."""
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / lock.FILE).symlink_to(target)
    with (
        pytest.raises(UserError, match=r"\.lock is a link.*Remove it"),
        hold_folder(folder, accelerator(), console()),
    ):
        pass
    assert target.read_text() == "mine"


def test_a_holder_that_signed_in_another_encoding_is_shown(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / lock.FILE).write_bytes(b"host \xff\xfe\n")
        with (
            pytest.raises(UserError, match=r"Another run is using the folder.*host \\xff\\xfe"),
            hold_folder(tmp_path, accelerator(), console()),
        ):
            pass
