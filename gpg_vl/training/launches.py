"""Writes run.json and log.txt of a run folder: what ran, where, with which versions, when, and how it ended.

Each launch of a run has an entry in run.json. An entry without `ended` is of a launch that was killed or still runs.
"""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from packaging.requirements import Requirement
from rich.console import Console

from gpg_vl.errors import RunError
from gpg_vl.peak_memory import WHOLE, Peak, record_peaks
from gpg_vl.report.page import write_report
from gpg_vl.report.visible_text import visible
from gpg_vl.training.state import RunState

FORMAT = 1
MOST_LAUNCHES = 1000
"""Maximum number of entries in run.json; if there are more, the oldest except the first are removed."""

log = logging.getLogger("gpg_vl.run")


@dataclass(slots=True, kw_only=True)
class Launch:
    """What is recorded when a launch ends."""

    first_step: int | None = None
    last_step: int | None = None
    """The run's steps at the beginning and at the end of the launch; None until the launch knows its first step."""
    finished: bool = False

    def set_step(self, step: int) -> None:
        """Record the number of finished steps. The first call sets where the launch begins."""
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step = step


@contextmanager
def report_launch(folder: Path, accelerator: Accelerator, console: Console) -> Iterator[Launch]:
    """Record the block as a launch of the run in `folder`, and write the report after it, however it ends.

    All processes enter it; only the main process writes. Raises RunError if the folder cannot be written.
    """
    if not accelerator.is_main_process:
        yield Launch()
        return
    try:
        with record_launch(folder, processes=accelerator.num_processes) as launch:
            yield launch
    finally:
        _report(folder, console)


def _report(folder: Path, console: Console) -> None:
    """Write the report. If the disk is full, only a line says so; the run is not affected."""
    try:
        line_text = f"report: {write_report(folder)}"
    except OSError as error:
        line_text = f"The report could not be written: {error}. Free disk space, then: gpg-vl report {folder}"
    console.print(line_text, highlight=False, markup=False, soft_wrap=True)


def log_checkpoints(checkpoint: Callable[[RunState], Path]) -> Callable[[RunState], Path]:
    """Wrap `checkpoint` so that it logs a line for each checkpoint."""

    def save(state: RunState) -> Path:
        folder = checkpoint(state)
        log.info("step %d: checkpoint %s", state.step, folder.name)
        return folder

    return save


@contextmanager
def record_launch(folder: Path, *, processes: int) -> Iterator[Launch]:
    """Record the block as a launch: in run.json from its beginning, and with its log records in log.txt.

    Main process only. Raises RunError if the folder cannot be written.
    """
    launch = Launch()
    file = folder / "run.json"
    with _log_file(folder / "log.txt"), record_peaks() as peaks:
        earlier, entry = _read_launches(file), describe(processes)
        _write(file, [*earlier, entry])
        log.info("started: %s", " ".join(entry["command"]))
        try:
            yield launch
        except BaseException as error:
            # do not replace the error that ended the run by the error of writing it down
            with suppress(RunError):
                _write(
                    file,
                    [*earlier, {**entry, **_end(launch, _describe_error(error), peaks.read())}],
                )
            raise
        outcome = "finished" if launch.finished else "stopped before its end"
        _write(file, [*earlier, {**entry, **_end(launch, outcome, peaks.read())}])


def _describe_error(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"failed: {type(error).__name__}: {error}"


def _end(launch: Launch, outcome: str, peaks: Mapping[str, Peak]) -> dict[str, Any]:
    log.info("ended: %s", outcome)
    known = launch.first_step is not None
    return {
        "ended": _now(),
        "outcome": outcome,
        "steps": {"first": launch.first_step, "last": launch.last_step} if known else None,
        "peak memory": _sizes(peaks[WHOLE]),
        "peak memory by phase": {
            name: {"process": peak.process, "gpu": peak.gpu}
            for name, peak in peaks.items()
            if name != WHOLE
        },
    }


def describe(processes: int) -> dict[str, Any]:
    """The entry of run.json for a launch at its beginning."""
    return {
        "command": command(),
        "started": _stamp(psutil.Process().create_time()),
        "ended": None,
        "outcome": None,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": dict(versions()),
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "memory": _size(psutil.virtual_memory().total),
        },
        "devices": _devices(),
        "processes": processes,
    }


def command() -> list[str]:
    """The command line of the program, without the folder of the program."""
    program = Path(sys.argv[0])
    start = ["python", "-m", "gpg_vl"] if program.name == "__main__.py" else [program.name]
    return [*start, *sys.argv[1:]]


def commit() -> str | None:
    """The git commit of this package, with `, changed` if its files differ; None if it is not in a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}, changed" if changed else head


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sizes(peak: Peak) -> dict[str, str]:
    """Peak memory as text, for the GPU only if there is one."""
    held = {"process": _size(peak.process)}
    return {**held, "gpu": _size(peak.gpu)} if torch.cuda.is_available() else held


def versions() -> Iterator[tuple[str, str]]:
    """The versions of this package and of its dependencies, as far as they are installed."""
    yield "gpg_vl", version("gpg_vl")
    wanted = map(Requirement, requires("gpg_vl") or ())
    names = {one.name for one in wanted if "dev" not in str(one.marker)}
    for name in sorted(names, key=str.lower):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return [f"CPU, {torch.get_num_threads()} threads"]
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _size(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"


def _now() -> str:
    return _stamp(time.time())


def _stamp(seconds: float) -> str:
    """Seconds since the epoch as a date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# ---- the files


def _read_launches(file: Path) -> list[dict[str, Any]]:
    """The earlier launches. An unreadable file is ignored, because it is not worth stopping a run for."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    launches = tree.get("launches") if isinstance(tree, dict) else None
    known = [one for one in launches if isinstance(one, dict)] if isinstance(launches, list) else []
    return known if len(known) < MOST_LAUNCHES else [known[0], *known[2 - MOST_LAUNCHES :]]


def _write(file: Path, launches: list[dict[str, Any]]) -> None:
    """Write atomically."""
    text = json.dumps({"format": FORMAT, "launches": launches}, indent=2) + "\n"
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written: {error}. Free disk space and resume from the last checkpoint with --resume."
        ) from error


class _Lines(logging.Formatter):
    """Formats a record as a line with the time in UTC, and escapes it, because messages may contain text from outside."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line_text = visible(record.getMessage()).replace("\n", "\n    ")
        return f"{at} {record.levelname.lower()} {line_text}"


@contextmanager
def _log_file(file: Path) -> Iterator[None]:
    """Inside the block this package's log records are also appended to a file."""
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{file} cannot be written: {error}. Free disk space, or choose another output.folder."
        ) from error
    handler.setFormatter(_Lines())
    handler.handleError = partial(_refuse_log, file)  # type: ignore[method-assign]
    package_log = logging.getLogger("gpg_vl")
    level = package_log.level
    package_log.addHandler(handler)
    package_log.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        # do not replace the error that ended the run by an error of the log file
        with suppress(RunError):
            _end_log(handler, level, file)
        raise
    _end_log(handler, level, file)


def _end_log(handler: logging.Handler, level: int, file: Path) -> None:
    package_log = logging.getLogger("gpg_vl")
    package_log.setLevel(level)
    package_log.removeHandler(handler)
    try:
        handler.close()
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error}. Free disk space.") from error


def _refuse_log(file: Path, record: logging.LogRecord) -> None:
    """Handle an error of writing a log line. By default logging would print a traceback and continue."""
    raise RunError(f"{file} cannot be written: {sys.exc_info()[1]}. Free disk space.")
