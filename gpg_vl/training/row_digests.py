"""Digests of the rows of a data set: for each row one of its text and one of its images.

They are stored per row, so that a run that is resumed on changed data can report which rows have changed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpg_vl.data.images import read_image
from gpg_vl.errors import UserError
from gpg_vl.types import Example

WIDTH = 16
"""Bytes of a digest."""
SHOWN = 5
"""Maximum number of rows named in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDigests:
    """The digests of all rows, concatenated, `WIDTH` bytes each.

    Example: of two rows `RowDigests(texts=bytes(32), pictures=bytes(32))`
    """

    texts: bytes
    """Digests of id, prompt, answer, choices, task and every other mapped column."""
    pictures: bytes
    """Digests of the image files of a row, in order; their paths do not matter."""

    @property
    def whole(self) -> str:
        """One digest of everything, in 64 hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return self.texts + self.pictures

    @staticmethod
    def from_bytes(content: bytes) -> "RowDigests":
        half = len(content) // 2
        return RowDigests(texts=content[:half], pictures=content[half:])


def digest_rows(examples: Iterable[Example], root: Path | None) -> RowDigests:
    """Compute the digests. Reads the images of every row. Raises ImageError if one cannot be read.

    root: the folder that the paths of pictures are relative to.
    """
    texts, pictures = bytearray(), bytearray()
    for example in examples:
        text, picture = digest_row(example, root)
        texts += text
        pictures += picture
    return RowDigests(texts=bytes(texts), pictures=bytes(pictures))


def digest_row(example: Example, root: Path | None) -> tuple[bytes, bytes]:
    """The digests of a row's text and of its images, which are read. Raises ImageError if one cannot be read."""
    pictures = (_sha256(read_image(image, root=root)) for image in example.images)
    return _sha256(_write_out(example))[:WIDTH], _sha256(b"".join(pictures))[:WIDTH]


def refuse_changed_row(rows: RowDigests, number: int, example: Example, root: Path | None) -> None:
    """Raises UserError if a row, or any byte of its images, has changed since the data was checked."""
    at = slice(number * WIDTH, (number + 1) * WIDTH)
    text, pictures = digest_row(example, root)
    if (text, pictures) == (rows.texts[at], rows.pictures[at]):
        return
    what = "shows another picture" if text == rows.texts[at] else "says something else"
    raise UserError(
        f"Row {number} of the data (id {example.id!r}, {example.place}) {what} than when it was checked. A row is read "
        f"when it is drawn, so the data must not change until the run ends. Restore the old data and resume with "
        f"--resume, or start a new run."
    )


def describe_changes(before: RowDigests, now: RowDigests) -> list[str]:
    """The differences, as messages; empty if there are none."""
    rows_before, rows_now = _rows(before), _rows(now)
    if rows_before == rows_now:
        return []
    if len(rows_before) != len(rows_now):
        return [f"it had {len(rows_before)} rows and has {len(rows_now)}"]
    if sorted(rows_before) == sorted(rows_now):
        return ["its rows are in another order"]

    pairs = list(zip(rows_before, rows_now, strict=True))
    shown = [n for n, ((_, old), (_, new)) in enumerate(pairs) if old != new]
    said = [n for n, ((old, _), (new, _)) in enumerate(pairs) if old != new]
    changes = []
    if shown:
        changes.append(f"{_name_rows(shown, 'shows', 'show')} another picture now")
    if said:
        changes.append(
            f"{_name_rows(said, 'has', 'have')} another id, prompt, answer, choices, task or other column now"
        )
    return changes


def refuse_other_rows(before: RowDigests, now: RowDigests, checkpoint: Path) -> None:
    """Raises UserError that names the changed rows, unless this is the data that the run was started with."""
    changes = describe_changes(before, now)
    if changes:
        raise UserError(
            f"The data is not what the run in {checkpoint} was started with: {'; '.join(changes)} (rows are counted from "
            f"0). It would be a different run. Restore the old data, or start a new run in another output.folder."
        )


def _rows(digests: RowDigests) -> list[tuple[bytes, bytes]]:
    """(text, pictures) of each row."""
    starts = range(0, len(digests.texts), WIDTH)
    return [(digests.texts[at : at + WIDTH], digests.pictures[at : at + WIDTH]) for at in starts]


def _name_rows(rows: Sequence[int], one: str, several: str) -> str:
    if len(rows) == 1:
        return f"row {rows[0]} {one}"
    listed = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"rows {listed}{more} {several}"


def _write_out(example: Example) -> bytes:
    """The text of a row as bytes; equal bytes mean equal rows."""
    prompt = example.prompt
    turns = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    said = [example.id, turns, example.answer, example.choices, example.task, dict(example.meta)]
    return json.dumps(said, sort_keys=True).encode()


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
