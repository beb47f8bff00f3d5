"""A run whose disk is full at every file that it writes: one message each, and it resumes as if nothing had been.

Part of `python -m benchmarks.soak`. A run that is left alone says which files are written and in which order. For each of
them the run is made again on a file system of its own (tmpfs, in a mount namespace: no privileges are needed), which has
room for all files before it and half of it. Then the run is given room and resumed, and compared with the first one.
Every such run must end with an error and one message; the exception is the run that has no room for its report.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak_run import differences, environment, words, write_run

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
PAGE = 4096
ROOM = "256m"
"""What a run is given to be resumed with."""
SAYS = ("No space left on device", "no space left", "disk is full", "ENOSPC")
"""One of these stands in the message."""
SHORT = ("train.steps=2", "output.samples_every=2", "output.keep_checkpoints=2")
"""Every sort of file once or twice, and none that makes room for another one."""
REPORT = "report.html"
"""The page of a run is made of what the run has written, and can be made later: without room for it the run ends well."""
BALLAST = ".ballast"
"""A page that is filled before the run starts, since tmpfs has a page at the least."""


def measure(folder: Path) -> dict[str, Any]:
    """Fill the disk at every file of a run. Raises CalledProcessError where namespaces are not allowed."""
    with tempfile.TemporaryDirectory() as results:
        file = Path(results) / "found.json"
        subprocess.run(
            [*NAMESPACE, sys.executable, "-m", __name__, str(folder), str(file)], check=True
        )
        return dict(json.loads(file.read_text()))


def as_lines(found: dict[str, Any]) -> list[str]:
    """The paragraph of the table's file."""
    said = (
        f"A run of {found['writes']} files met a full disk at {found['tried']} of them, in the middle of each. "
        f"{found['one_message']} ended with one message that says so and no traceback (without room for its page a run ends "
        f"well, and says how to make it later). With room again, "
        f"{found['resumed']} were resumed and ended bit for bit as the run that was left alone."
    )
    return ["## Full disks", "", said]


def fill_at_every_write(folder: Path) -> dict[str, Any]:
    """What became of each run. In a mount namespace of its own."""
    alone = write_run(folder / "alone")
    _run(alone, check=True)
    writes = list(_writes(alone.parent / "run"))

    found: dict[str, Any] = {"writes": len(writes), "tried": 0, "one_message": 0, "resumed": 0}
    found["wrong"] = []
    for name, room in writes:
        outcome = _fill(name, folder / "full", alone.parent / "run", room)
        found["tried"] += 1
        found["one_message"] += outcome["one_message"]
        found["resumed"] += outcome["resumed"]
        if not (outcome["one_message"] and outcome["resumed"]):
            found["wrong"].append({"file": name, "room": room, **outcome})
        print(json.dumps({"file": name, "room": room, **outcome}), flush=True)
    return found


def _writes(run: Path) -> Iterator[tuple[str, int]]:
    """(file, bytes of room with which it is the one that does not fit), in the order in which files were written."""
    files = [file for file in run.rglob("*") if file.is_file()]
    before = 0
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        pages = -(-file.stat().st_size // PAGE)
        if pages:
            yield file.relative_to(run).as_posix(), (before + pages // 2) * PAGE
        before += pages


def _fill(name: str, folder: Path, alone: Path, room: int) -> dict[str, Any]:
    """One run with so much room that the file `name` does not fit, and its resumption."""
    config = write_run(folder)
    run = folder / "run"
    run.mkdir()
    _mount(run, str(room + PAGE))
    (run / BALLAST).write_bytes(b"0" * PAGE)
    try:
        first = _run(config)
        is_report = name == REPORT
        message = (first.stdout if is_report else first.stderr).strip()
        one_message = (
            (first.returncode == 0) == is_report
            and "Traceback" not in message
            and any(words in message for words in SAYS)
        )
        _mount(run, ROOM, "remount,")
        second = _run(config)
        different = differences(alone, run) if second.returncode == 0 else ["did not resume"]
        return {
            "one_message": one_message,
            "resumed": second.returncode == 0 and not different,
            "code": first.returncode,
            "message": message[-600:],
            "different": different[:5],
            "second": second.stderr.strip()[-600:],
        }
    finally:
        subprocess.run(["umount", str(run)], check=True)
        shutil.rmtree(folder)


def _mount(folder: Path, size: str, options: str = "") -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"{options}size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)


def _run(config: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words(1, config, SHORT), "--resume"],
        env=environment(),
        check=check,
        capture_output=True,
        text=True,
        timeout=600,
    )


def main(arguments: Sequence[str]) -> None:
    folder, file = map(Path, arguments)
    file.write_text(json.dumps(fill_at_every_write(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
