"""Writes a data set folder shard by shard, so that a stop at any moment loses at most the work of one shard and no row.

    OUT/journal.jsonl           first the plan, then one line per finished shard
    OUT/SPLIT/part-00000.jsonl  the rows of a shard
    OUT/SPLIT/images/ab/ab...   images, each named by its own SHA-256

A shard counts from the moment its line in the journal is complete. An incomplete line, or a part
without a line, of an interrupted run is written again with the same bytes.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gpg_vl.data.images import Picture
from gpg_vl.errors import RunError, UserError, cut

JOURNAL = "journal.jsonl"
_EXTENSIONS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The result of one shard of source rows. Every source row is converted, left out or broken.

    Example: 500 rows of which one is broken and two are left out: `Shard(split="train", number=3, source_rows=500,
    rows=497, sha256="9f86d0...", left_out={"more than one image": 2}, broken=1, last=False)`
    """

    split: str
    number: int
    source_rows: int
    rows: int
    """Rows written; a source row may become several."""
    left_out: Mapping[str, int]
    """Source rows that a rule of the recipe leaves out, by the rule."""
    broken: int
    last: bool
    """True if the split ends here."""
    sha256: str | None = None
    """The checksum of the part's file; None if it has no rows and so no file."""

    @property
    def part(self) -> str:
        """The file of the rows, relative to the folder."""
        return f"{self.split}/part-{self.number:05d}.jsonl"


class Output:
    """The folder of one data set, held by one process. Made by `open_output`."""

    def __init__(self, folder: Path, journal: BinaryIO, shards: list[Shard]) -> None:
        self.folder = folder
        self.shards = shards
        """The finished shards, in the order they were written."""
        self._journal = journal

    def store(self, split: str, picture: Picture) -> str:
        """Write an image unless it exists, and return its path relative to the split's folder."""
        name = picture_name(picture)
        file = self.folder / split / name
        with _writing(file):
            if not file.exists() or file.stat().st_size != len(picture.data):
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(file, [picture.data], sync=False)
        return name

    def commit(
        self, shard: Shard, rows: Sequence[bytes], broken: Sequence[Mapping[str, Any]]
    ) -> Shard:
        """Write the rows of a shard, then the line that makes them count. Returns the shard with its checksum."""
        file = self.folder / shard.part
        if rows:
            digest = hashlib.sha256()
            for row in rows:
                digest.update(row)
            shard = replace(shard, sha256=digest.hexdigest())
        with _writing(file):
            if rows:
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(file, rows)
            self._journal.write(json_line({**asdict(shard), "problems": list(broken)}))
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.shards.append(shard)
        return shard

    def problems(self) -> Iterator[dict[str, Any]]:
        """The broken rows of all shards, as they were reported, read again from the journal."""
        with (self.folder / JOURNAL).open("rb") as lines:
            next(lines)
            for line in lines:
                yield from json.loads(line)["problems"]

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file in the folder itself, atomically."""
        with _writing(self.folder / name):
            replace_file(self.folder / name, chunks)


def picture_name(picture: Picture) -> str:
    """The path of an image in its split: `images/ab/ab12....png`. Equal images share one file."""
    digest = hashlib.sha256(picture.data).hexdigest()
    return f"images/{digest[:2]}/{digest}.{_EXTENSIONS[picture.format]}"


@contextmanager
def open_output(folder: Path, plan: Mapping[str, Any]) -> Iterator[Output]:
    """Begin the folder, or resume it if it was begun with the same plan.

    Raises:
        UserError: if the folder holds something else, another process is writing it, or a finished part was changed.
        RunError: if it cannot be written.
    """
    file = folder / JOURNAL
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if strangers := sorted(
                p.name for p in folder.iterdir() if p.name != f"{JOURNAL}.partial"
            ):
                raise UserError(
                    f"The folder {folder} holds {strangers[0]} and is no data set that was begun here. An empty or new "
                    f"folder is allowed. Choose another --out."
                )
            replace_file(file, [json_line({"plan": plan})])
        journal = file.open("r+b")
    with journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is writing {folder}. One at a time is allowed. Wait for it, or choose another --out."
            ) from None
        shards = _resumed(journal, folder, plan)
        yield Output(folder, journal, shards)


def _resumed(journal: BinaryIO, folder: Path, plan: Mapping[str, Any]) -> list[Shard]:
    """The finished shards. Half a line at the end of the journal is cut off."""
    shards: list[Shard] = []
    end = 0
    for number, line in enumerate(journal):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        if number == 0:
            _refuse_other_plan(folder, entry["plan"], json.loads(json.dumps(plan)))
        else:
            del entry["problems"]
            shards.append(Shard(**entry))
        end += len(line)
    journal.truncate(end)
    journal.seek(end)

    # a finished part is used only if it has not changed
    for shard in shards:
        part = folder / shard.part
        if shard.sha256 and (
            not part.is_file() or hashlib.sha256(part.read_bytes()).hexdigest() != shard.sha256
        ):
            raise UserError(
                f"{part} is not as it was written: it is missing or was changed. Finished parts must stay as they are. "
                f"Delete {folder} and convert again, or choose another --out."
            )
    return shards


def _refuse_other_plan(folder: Path, begun: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    if begun == plan:
        return
    other = [key for key in {**begun, **plan} if begun.get(key) != plan.get(key)]
    differences = "; ".join(
        f"{key}: {_cut(begun.get(key))} then, {_cut(plan.get(key))} now" for key in other
    )
    raise UserError(
        f"The folder {folder} was begun differently ({differences}). Run the same command as before to continue, choose "
        f"another --out, or delete the folder."
    )


def _cut(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False), 120)


def json_line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON that any reader takes: ASCII, no NaN. Raises ValueError for what JSON cannot hold."""
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def replace_file(file: Path, chunks: Iterable[bytes], *, sync: bool = True) -> None:
    """Write a file under a temporary name, then rename it. `sync` flushes it to the disk, so that it survives a power
    cut."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.writelines(chunks)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    partial.replace(file)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}. A folder with permission and room to write is needed. "
            f"Make room or choose another --out; the same command continues where this one stopped."
        ) from error
