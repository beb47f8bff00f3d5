"""The manifest of a checkpoint: size and digest of each file, so that a checkpoint is read completely or not at all.

    checkpoints/step-000040/manifest.json
        files       path in the checkpoint -> bytes and SHA-256
        metrics     the same of metrics.jsonl, as long as it was when the checkpoint was written
        run         everything else the run depends on, see `identity`
        sha256      of all of the above, as `json.dumps` writes it with sorted keys

SHA-256 is used because processors compute it in hardware, at 1 to 2 GB/s. It protects against accidents (a flipped bit, an
incomplete copy, files of another step), but not against someone who changes a file and its digest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpg_vl.errors import UserError

FILE = "manifest.json"
FORMAT = 1
CHUNK = 1 << 22
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Size and digest of a file, or of its beginning.

    Example: `Entry(bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")`
    """

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """See the module. Paths are relative to the checkpoint, with `/` between their parts.

    Example: `Manifest(files={"state.json": Entry(...)}, metrics=Entry(...), run={"steps": 100})`
    """

    files: Mapping[str, Entry]
    metrics: Entry
    run: Mapping[str, Any]


def list_files(folder: Path) -> list[str]:
    """All files of a checkpoint except its manifest and hidden files, which come from file systems and desktops."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_hidden and name.as_posix() != FILE:
            names.append(name.as_posix())
    return names


def digest_file(file: Path, *, length: int | None = None) -> Entry:
    """Size and digest of a file, or of its first `length` bytes. Raises OSError."""
    digest, left = hashlib.sha256(), length
    size = 0
    with file.open("rb") as stream:
        while left is None or left > 0:
            chunk = stream.read(CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                break
            digest.update(chunk)
            size += len(chunk)
            left = None if left is None else left - len(chunk)
    return Entry(bytes=size, sha256=digest.hexdigest())


def share_of(sizes: Mapping[str, int], *, index: int, number: int) -> list[str]:
    """The files that one of `number` processes digests: assigned in turn, the largest first."""
    largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
    return largest_first[index::number]


def find_missing(folder: Path, manifest: Manifest) -> list[str]:
    """Differences between the files' names and sizes and the manifest, as messages."""
    here = {name: (folder / name).stat().st_size for name in list_files(folder)}
    problems = [f"{name} is missing" for name in sorted(manifest.files.keys() - here.keys())]
    problems += [f"{name} does not belong to it" for name in sorted(here.keys() - manifest.files)]
    for name in sorted(here.keys() & manifest.files.keys()):
        if here[name] != manifest.files[name].bytes:
            problems.append(f"{name} has {here[name]} bytes, not {manifest.files[name].bytes}")
    return problems


def find_damaged(manifest: Manifest, found: Mapping[str, Entry | None]) -> list[str]:
    """Files whose content differs from the manifest, as messages. found: their current digests; None: cannot be read."""
    problems = []
    for name, entry in sorted(found.items()):
        if entry is None:
            problems.append(f"{name} cannot be read")
        elif entry != manifest.files[name]:
            problems.append(f"{name} has changed since it was written")
    return problems


def refuse_damage(folder: Path, problems: Sequence[str]) -> None:
    """Raises UserError if there are problems with the files of a checkpoint."""
    if not problems:
        return
    shown = "; ".join(problems[:5]) + (
        f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    )
    raise UserError(
        f"The checkpoint {folder} is damaged and cannot be resumed from: {shown}. All its files must be unchanged. Copy "
        f"it again if this is a copy, or delete this folder; --resume then takes the one before it."
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Raises OSError."""
    content = {
        "format": FORMAT,
        "files": {name: asdict(entry) for name, entry in manifest.files.items()},
        "metrics": asdict(manifest.metrics),
        "run": manifest.run,
    }
    text = json.dumps(content | {"sha256": _digest(content)}, indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest. Raises UserError if it is damaged, or written by a later version."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse_damage(folder, [f"{FILE} cannot be read ({type(error).__name__})"])
        raise

    written = content.pop("sha256", None) if isinstance(content, dict) else None
    if written is None or written != _digest(content):
        refuse_damage(folder, [f"{FILE} has changed since it was written"])
    if content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"The checkpoint {folder} was written by another version of gpg_vl: its {FILE} has the format "
            f"{content['format']}, this version reads {FORMAT}. Continue with the version that wrote it."
        )

    # the digest proves that nothing has changed, but not that this package wrote it
    manifest = _parse(content)
    if manifest is None:
        refuse_damage(folder, [f"{FILE} is not as gpg_vl writes it"])
        raise AssertionError
    return manifest


def _parse(content: Mapping[str, Any]) -> Manifest | None:
    """The manifest in a JSON object; None if a part is missing or of another type."""
    files, metrics, run = (
        content.get("files"),
        _parse_entry(content.get("metrics")),
        content.get("run"),
    )
    if not isinstance(files, dict) or not isinstance(run, dict) or metrics is None:
        return None

    entries: dict[str, Entry] = {}
    for name, value in files.items():
        entry = _parse_entry(value)
        if entry is None:
            return None
        entries[name] = entry
    return Manifest(files=entries, metrics=metrics, run=run)


def _parse_entry(value: object) -> Entry | None:
    if not isinstance(value, dict) or value.keys() != {"bytes", "sha256"}:
        return None
    size, sha256 = value["bytes"], value["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str):
        return None
    return Entry(bytes=size, sha256=sha256)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
