"""A process whose store is gone says why it ends, whatever its main thread is doing at that moment."""

import subprocess
from pathlib import Path

import pytest
from runs import run_python

PROGRAM = """
import os, subprocess, sys, time
from types import SimpleNamespace

from gpg_vl.activity import CollectiveBrokenError
from gpg_vl.training import watchdog

moment, rank = sys.argv[1], int(sys.argv[2])
watchdog.BEAT, watchdog.END_GRACE, watchdog.SHORT_SILENCE = 0.2, 2.0, 2.0

# the store lives in a process of its own, as with torchrun, and is killed with it
holder = subprocess.Popen(
    [sys.executable, "-c", '''
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
'''],
    stdout=subprocess.PIPE,
    text=True,
)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=holder.stdout.readline().strip())
os.environ["TORCHELASTIC_RUN_ID"] = "a launcher"
watch = watchdog.Watchdog(
    SimpleNamespace(process_index=rank, local_process_index=rank, num_processes=2), minutes=1
)
watch.start()
holder.kill()
holder.wait()

if moment == "while it waits":
    time.sleep(600)
if moment == "late":  # the other process has ended first, a moment before this one would have
    time.sleep(1.8)
print("code", watch.settle(CollectiveBrokenError("Connection closed by peer")), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["while it waits", "at once", "late"])
def test_the_loss_of_the_store_is_reported_once_by_the_first_process(
    tmp_path: Path, moment: str
) -> None:
    result = run(tmp_path, moment, rank=0)
    assert result.returncode == 1
    messages = [line for line in result.stderr.splitlines() if line.startswith("gpg-vl: ")]
    assert len(messages) == 1, result.stderr
    assert "holds the store has ended" in messages[0]


def test_the_other_process_of_the_machine_reports_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "at once", rank=1)
    assert result.returncode == 1
    assert "gpg-vl: " not in result.stderr


def run(folder: Path, moment: str, *, rank: int) -> subprocess.CompletedProcess[str]:
    file = folder / "program.py"
    file.write_text(PROGRAM)
    return run_python(file, moment, str(rank), timeout=120)
