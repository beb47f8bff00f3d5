"""Stores the result of a data check, so that the next start on the same data need not read it again.

A result is found again only if nothing that it depends on has changed: the status of every row file and every image (size,
modification times, inode), the settings that the check reads, tokenizer and chat template, the code of this package, and the
versions of its libraries. A status does not prove the content. So the digests of all rows are stored with the result, and a
row is compared with its digest when it is drawn.
"""

import hashlib
import json
import platform
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np

from gpg_vl.config import Config
from gpg_vl.data.check import DataReport
from gpg_vl.data.store import FOLDER, find_store, status_of, writing
from gpg_vl.training.identity import digest_base
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.types import Example, Message

FORMAT = 1
"""The version of the file format; other versions are not read."""
KEPT = 32
"""Maximum number of results in a store; the oldest are deleted."""
_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
    "pyarrow",
    "datasets",
    "jinja2",
    "numpy",
)
_GROUPS = ("gpg_vl.rewards", "gpg_vl.families", "gpg_vl.eval_tasks")
_NOT_CHECKED = ("pass_rate", "skip_solved", "workers")
"""Keys of the data section that do not affect the check: they select among checked rows, or set who reads them."""
_STATUS_THREADS = 16
_TORN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of a check.

    Example: `Checked(report=report, rows=digest_rows(examples, root), pictures=("img/7.png",), statuses="9f86...",
    is_proved=True)`
    """

    report: DataReport
    rows: RowDigests
    pictures: tuple[str, ...] = ()
    """The paths of all images, each once, in the order of the rows."""
    statuses: str = ""
    """The digest of their file statuses when they were read, see `digest_statuses`."""
    is_proved: bool = False
    """True if the built-in rewards gave full marks to the gold answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckStore:
    """The place where the result of one check is stored.

    Example: `CheckStore(file=Path("data/.gpg_vl/check-9f86d0.npz"), root=Path("data"))`
    """

    file: Path
    root: Path | None
    """The folder that image paths are relative to."""

    def find(self) -> Checked | None:
        """The stored result; None if there is none, or if an image has changed since."""
        try:
            with self.file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
                checked = _from_arrays({name: kept[name] for name in kept.files})
        except _TORN:
            return None
        now = digest_statuses(locate(self.root, checked.pictures))
        return checked if now == checked.statuses else None

    def keep(self, checked: Checked) -> None:
        """Write the result atomically. If the store is full or missing nothing is written, and the next start checks
        again."""
        try:
            with writing(self.file) as stream:
                np.savez_compressed(stream, **_to_arrays(checked))
            results = sorted(
                self.file.parent.glob("check-*.npz"), key=lambda file: file.stat().st_mtime
            )
            for old in results[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError:
            return


def open_check_store(
    config: Config,
    files: Iterable[Path],
    notes: Sequence[str],
    *,
    answers: bool,
    folder: Path | None,
    root: Path | None,
) -> CheckStore | None:
    """The place of a check's result, named by everything that the check depends on except images. None if nothing can be stored
    there, or if a file is missing.

    files: the row files. notes: other facts about the source. folder: the folder of the source.
    """
    store = find_store(folder)
    statuses = digest_statuses(files)
    if store is None or statuses is None:
        return None

    depends = {
        "format": FORMAT,
        "files": statuses,
        "notes": list(notes),
        "answers": answers,
        "settings": _settings(config),
        "root": None if root is None else str(root.absolute()),
        "model": digest_base(config.model.path, config.model.revision, with_weights=False),
        "code": _digest_package(),
        "versions": _versions(),
    }
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return CheckStore(file=store / f"check-{name[:40]}.npz", root=root)


def digest_statuses(files: Iterable[Path]) -> str | None:
    """One digest of the status of many files, without reading them; None if one is missing."""
    listed = list(files)
    try:
        with ThreadPoolExecutor(_STATUS_THREADS) as pool:
            return digest_pairs(zip(listed, pool.map(status_of, listed), strict=True))
    except OSError:
        return None


def digest_pairs(pairs: Iterable[tuple[Path, str]]) -> str:
    """The same digest, for files whose status is known."""
    digest = hashlib.sha256()
    for file, status in pairs:
        digest.update(f"{file.absolute()}\0{status}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def locate(root: Path | None, pictures: Iterable[str]) -> list[Path]:
    """The files of images, from their paths in the rows."""
    return [(root or Path()) / picture for picture in pictures]


def _settings(config: Config) -> dict[str, Any]:
    """The settings of a config that a check reads."""
    tree = config.model_dump(mode="json")
    evaluation = {name: tree["eval"][name] for name in ("task", "data")}
    if config.eval.data is not None:
        evaluation["files"] = digest_statuses(sorted(_files_below(Path(config.eval.data))))
    return {
        "model": [tree["model"][name] for name in ("path", "revision")],
        "data": {name: value for name, value in tree["data"].items() if name not in _NOT_CHECKED},
        "prompt": tree["prompt"],
        "rewards": [tree["rewards"][name] for name in ("weights", "gold")],
        "max_new_tokens": tree["rollout"]["max_new_tokens"],
        "algorithm": tree["algorithm"]["name"],
        "eval": evaluation,
    }


def _files_below(path: Path) -> list[Path]:
    """The files of an evaluation data set, without stored results that may be in the same folder."""
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and FOLDER not in file.parts]


@cache
def _digest_package() -> str:
    """A digest of this package's code, because another version may check differently."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _versions() -> dict[str, str]:
    """The versions of the libraries that read rows and images, and of packages that provide families and rewards."""
    found = {name: version(name) for name in _LIBRARIES}
    for entry in [one for group in _GROUPS for one in entry_points(group=group)]:
        if entry.dist is not None:
            found[entry.dist.name] = entry.dist.version
    return {**found, "python": platform.python_version()}


# ---- on disk


def _to_arrays(checked: Checked) -> dict[str, Any]:
    report = asdict(checked.report)
    tokens, image_tokens = report.pop("tokens"), report.pop("image_tokens")
    report["image_sizes"] = [[*size, count] for size, count in report["image_sizes"].items()]
    report["golds"] = [asdict(one) for one in checked.report.golds]
    text = {
        "report": report,
        "pictures": checked.pictures,
        "statuses": checked.statuses,
        "is_proved": checked.is_proved,
    }
    return {
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "tokens": np.array(tokens, np.int64),
        "image_tokens": np.array(image_tokens, np.int64),
        "texts": np.frombuffer(checked.rows.texts, np.uint8),
        "row_pictures": np.frombuffer(checked.rows.pictures, np.uint8),
    }


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Checked:
    text = json.loads(arrays["text"].tobytes())
    report = text["report"]
    report |= {
        "tokens": tuple(arrays["tokens"].tolist()),
        "image_tokens": tuple(arrays["image_tokens"].tolist()),
        "image_sizes": {(width, height): count for width, height, count in report["image_sizes"]},
        "problems": (),
        "notes": tuple(report["notes"]),
        "golds": tuple(_to_example(one) for one in report["golds"]),
    }
    return Checked(
        report=DataReport(**report),
        rows=RowDigests(texts=arrays["texts"].tobytes(), pictures=arrays["row_pictures"].tobytes()),
        pictures=tuple(text["pictures"]),
        statuses=text["statuses"],
        is_proved=text["is_proved"],
    )


def _to_example(fields: dict[str, Any]) -> Example:
    prompt, choices = fields["prompt"], fields["choices"]
    if not isinstance(prompt, str):
        prompt = tuple(Message(**turn) for turn in prompt)
    return Example(
        **{
            **fields,
            "prompt": prompt,
            "choices": None if choices is None else tuple(choices),
            "images": (),
        }
    )
