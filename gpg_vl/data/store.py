"""The store for values computed from data files: next to the files, else in the user's cache folder.

The store is the folder `.gpg_vl` in the folder of the data or, if that is not writable, a folder in
`$XDG_CACHE_HOME/gpg_vl`. It may be removed at any time. The name of an entry contains the
status of its file, so an entry of a changed file is never used. Entries are written atomically.
"""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpg_vl.data.json_rows import open_text
from gpg_vl.errors import UserError

FOLDER = ".gpg_vl"


def find_store(folder: Path | None) -> Path | None:
    """The store for the data in a folder, created if needed; None if no place is writable.

    folder: None for data that is not in a folder, such as a data set of the hub.
    """
    next_to_data = [] if folder is None else [folder / FOLDER]
    for store in (*next_to_data, _cache() / digest_text(str(folder and folder.absolute()))):
        try:
            store.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(store, os.W_OK):
            return store
    return None


def open_store(folder: Path) -> Path:
    """The same. Raises UserError if there is no place for one."""
    store = find_store(folder)
    if store is None:
        raise UserError(
            f"Neither {folder / FOLDER} nor {_cache()} can be written. What is computed of the data is kept there. Make one "
            f"of them writable, or set XDG_CACHE_HOME to a folder with room."
        )
    return store


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpg_vl"


def status_of(file: Path) -> str:
    """The status of a file, which changes when it is written, replaced or moved: its size, times and inode.

    Raises OSError.
    """
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def digest_text(text: str) -> str:
    """A text as 32 hexadecimal digits, for the name of a file."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def entry_for(file: Path, store: Path, ending: str) -> Path:
    """The path of an entry for a file in its current state. Deletes entries of its earlier states. Raises OSError."""
    start = f"{file.name}-{digest_text(str(file.absolute()))[:8]}-"
    entry = store / f"{start}{digest_text(status_of(file))[:16]}{ending}"
    for old in store.glob(f"{glob.escape(start)}*{ending}"):
        if old != entry:
            old.unlink(missing_ok=True)
    return entry


@contextmanager
def writing(entry: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the entry at the end, unless something is raised before."""
    partial = entry.with_name(f"{entry.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
        partial.replace(entry)
    finally:
        partial.unlink(missing_ok=True)


def unpacked(file: Path) -> Path:
    """The unpacked copy of a gzipped file in its store, created if needed. Raises UserError."""
    store = open_store(file.parent)
    try:
        copy = entry_for(file, store, ".unpacked")
        if not copy.exists():
            with open_text(file) as unpacking, writing(copy) as stream:
                shutil.copyfileobj(unpacking, stream, 1 << 20)
    except OSError as error:
        raise UserError(
            f"{file} cannot be unpacked into {store}: {error.strerror or error}. Its rows are drawn in any order, so it is "
            f"unpacked once. Make room, or unpack it yourself."
        ) from error
    return copy


def is_gzipped(file: Path) -> bool:
    """Whether the bytes of a file are gzipped, whatever its name says. Raises OSError."""
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
