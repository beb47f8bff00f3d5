"""A lock that allows only one run at a time in a run folder.

It is an operating system lock on bytes of the file `.lock` in the folder: process n of a run locks byte n. The lock ends with its
process, however that ends, and it works across nodes that share the folder if the file system supports locks. It belongs to the
process and not to the open file (fcntl, not flock), so a child that outlives the process does not keep it.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from accelerate import Accelerator
from rich.console import Console

from gpg_vl.errors import UserError
from gpg_vl.training.collectives import on_main, wait_for_all

FILE = ".lock"
PATIENCE = 60.0
"""Seconds after which the other processes of a run have surely noticed that its first process has ended."""
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_folder(folder: Path, accelerator: Accelerator, console: Console) -> Iterator[None]:
    """Create the run folder if needed, and keep other runs out of it during the block.

    All processes call it together. Raises UserError if another run uses the folder.
    """
    files: list[IO[str]] = []
    try:
        on_main(accelerator, lambda: files.append(_take(folder, console)))
        if not accelerator.is_main_process and (folder / FILE).exists():
            files.append(_join(folder, accelerator.process_index))
        yield
        # release the lock only when all processes have stopped writing
        wait_for_all(accelerator)
    finally:
        for file in files:
            file.close()


def _take(folder: Path, console: Console) -> IO[str]:
    """Take the lock of the first process. First lock all bytes for a moment, which proves that no process of an earlier run
    is left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open(folder / FILE, "a+")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f"{folder / FILE} is a link. The lock file must be in the run folder itself, because it is written to. "
                f"Remove it, or choose another output.folder."
            ) from None
        raise UserError(
            f"The run folder {folder} cannot be written: {error}. Choose another output.folder."
        ) from None

    try:
        end = time.monotonic() + PATIENCE
        while not _lock(file):
            is_alive = not _lock(file, length=1)
            if is_alive or time.monotonic() > end:
                _refuse(folder, file, is_alive=is_alive)
            fcntl.lockf(file, fcntl.LOCK_UN, 1, 0)
            time.sleep(0.2)
        fcntl.lockf(file, fcntl.LOCK_UN, 0, 1)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise UserError(
                f"The run folder {folder} cannot be locked: {error}. Choose another output.folder."
            ) from None
        console.print(
            f"The file system of {folder} has no locks ({error.strerror}): a second run in this folder would not be noticed.",
        )

    _sign(folder, file)
    return file


def _open(file: Path, mode: str) -> IO[str]:
    """Open a file, but no link: a folder from outside could use a link to make us overwrite any file. Raises OSError (ELOOP
    for a link)."""

    def open_no_link(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)

    # another program may have written it in another encoding
    return open(file, mode, encoding="utf-8", errors="backslashreplace", opener=open_no_link)


def _sign(folder: Path, file: IO[str]) -> None:
    """Write who holds the lock, for the message of a run that does not get it."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    name = f"{socket.gethostname()}, process id {os.getpid()}, since {started}\n"
    try:
        # unbuffered, because otherwise closing the file would raise again on a full disk
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), name.encode(), 0)
    except OSError as error:
        file.close()
        raise UserError(
            f"The run folder {folder} cannot be written: {error}. Free disk space, or choose another output.folder."
        ) from None


def _join(folder: Path, process: int) -> IO[str]:
    """Take the lock of another process of the run, after the first process has released all bytes but its own."""
    file = _open(folder / FILE, "r+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, process)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return file


def _lock(file: IO[str], *, length: int = 0) -> bool:
    """Lock the first `length` bytes, or all if 0. Returns False if another process has locked one of them."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, 0)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return False
    return True


def _refuse(folder: Path, file: IO[str], *, is_alive: bool) -> None:
    file.seek(0)
    holder = file.read(500).strip() or "an unknown process"
    file.close()
    if is_alive:
        raise UserError(
            f"Another run is using the folder {folder}: {holder}. Two runs would overwrite each other's files. Wait for "
            f"it or end it, or choose another output.folder."
        )
    raise UserError(
        f"Processes of an earlier run are still alive in the folder {folder}; its first one ({holder}) has ended. They "
        f"would write to the new run's files. End them, or choose another output.folder."
    )
