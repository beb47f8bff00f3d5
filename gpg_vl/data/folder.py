"""Selects the files of a folder that contain rows.

All files of a folder are read, so it must have the rows of one split, and no row twice. Files that look like two splits,
or like two copies of one file, raise a `UserError`. Files that are not read are named in a note.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from gpg_vl.data.json_rows import first_keys
from gpg_vl.errors import UserError

LINES = (".jsonl", ".ndjson", ".jsonlines")
DOCUMENT = (".json",)
PARQUET = (".parquet",)
ALLOWED = ".parquet, .jsonl and .json files, the last two also as .gz,"
"""The readable formats, for messages."""

_SPLIT_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "minival"), "validation"),
    **dict.fromkeys(
        ("test", "testing", "testmini", "eval", "evaluation", "heldout", "holdout"), "test"
    ),
}
# `testset` and `traindata` count as words too
_OF_SPLIT = re.compile(r"(?:data|dataset|set|split|file)$")
# Other files in a folder of rows: images, videos, sounds, texts about the data, programs.
_NO_ROWS = re.compile(
    r"png|jpe?g?|jpe|jfif|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|j2k|jxl|svg|p[bgnp]m|ico|psd|mp4|mov|avi|mkv|webm|wav|mp3"
    r"|flac|md|txt|rst|html?|pdf|py|ipynb|sh|ya?ml|toml|cfg|ini|log|lock|bib|sha256|md5|partial"
)
_WITHOUT_SUFFIX = frozenset({"LICENSE", "LICENCE", "README", "NOTICE", "CITATION", "COPYING"})
_SHOWN = 8
_LOOKED_AT = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The files of a folder that are read, in the order of their names, and notes on the others.

    Example: `Selection(files=(Path("d/a.jsonl"),), notes=("Not read of d: b.csv. ...",))`
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def kind_of(file: Path) -> str | None:
    """`.jsonl`, `.json` or `.parquet`, by the name in any case, with or without `.gz`; None for any other file."""
    name = file.name.lower()
    if name.endswith(PARQUET):
        return ".parquet"

    name = name.removesuffix(".gz")
    if name.endswith(LINES):
        return ".jsonl"
    return ".json" if name.endswith(DOCUMENT) else None


def refuse_other_kind(file: Path) -> None:
    """Raise UserError for a file whose name does not end like a file of rows."""
    if kind_of(file) is None:
        raise UserError(
            f"The data file {str(file)!r} ends in {file.suffix!r}. {ALLOWED} are allowed. Convert it, or give it the "
            f"right name."
        )


def select_files(folder: Path, fields: Collection[str]) -> Selection:
    """The files of a folder that hold rows.

    fields: column names by which objects in a .json file are recognised as rows.

    Raises:
        UserError: if there are none; if they are of several splits; if two of them are one file, or
            copies of one in several formats; if one is a broken link.
    """
    files, unread = [], []
    for path in _list_folder(folder):
        if path.name.startswith("."):
            continue
        if kind_of(path) and _is_file(path) and _holds_rows(path, fields):
            files.append(path)
        elif not path.is_dir() and not _is_no_row(path):
            unread.append(path.name)

    below = list(islice(_files_below(folder), _SHOWN + 1))
    if not files:
        raise UserError(_describe_empty(folder, unread, below))
    refuse_splits(folder, files)
    _refuse_copies(files)
    return Selection(files=tuple(files), notes=tuple(_describe_unread(folder, unread, below)))


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"The folder {str(folder)!r} cannot be read: {error.strerror}. A readable folder is needed. Check its "
            f"permissions and its disk."
        ) from error


def _is_file(path: Path) -> bool:
    """Whether a path leads to a regular file. Raises UserError for a broken link."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link that leads nowhere, to {path.readlink()}. Links to files that exist are read. Restore the "
            f"file, or remove the link."
        )
    return path.is_file()


def _holds_rows(path: Path, fields: Collection[str]) -> bool:
    """False for a .json file whose objects have none of the columns, such as a description of the data."""
    if kind_of(path) != ".json":
        return True
    try:
        return not first_keys(path).isdisjoint(fields)
    except UserError:
        return False


def _is_no_row(path: Path) -> bool:
    suffix = path.suffix.lower().removeprefix(".")
    return bool(_NO_ROWS.fullmatch(suffix)) or path.stem in _WITHOUT_SUFFIX


def _files_below(folder: Path) -> Iterator[str]:
    """Files of rows in subfolders, as relative paths; in a large folder only among the first thousands of files."""
    for path in islice(folder.rglob("*"), _LOOKED_AT):
        if kind_of(path) not in (".jsonl", ".parquet"):
            continue

        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if len(inside.parts) > 1 and not is_hidden and path.is_file():
            yield inside.as_posix()


def split_of(name: str) -> str:
    """The split in a file's name: train, validation or test; "" if it names none or several.

    Only whole words count: `latest.jsonl` and `contest.jsonl` name no split.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", re.sub(r"held[-_ ]?out", "heldout", name))
    lower = (word.lower() for word in words)
    known = (word if word in _SPLIT_WORDS else _OF_SPLIT.sub("", word) for word in lower)
    found = {_SPLIT_WORDS[word] for word in known if word in _SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def refuse_splits(folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError if files of a test or validation split are among others."""
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(split_of(file.name), []).append(file.name)
    if len(splits) < 2 or not {"validation", "test"} & splits.keys():
        return

    held = "; ".join(f"{split or 'no split'}: {_list(names)}" for split, names in splits.items())
    names = splits.get("train") or next(iter(splits.values()))
    chosen = folder / (names[0] if len(names) == 1 else f"{_common_start(names)}*")
    raise UserError(
        f"The files of {str(folder)!r} belong to several splits, by their names: {held}. A folder is read whole, and rows "
        f"that are tested on must not be trained on. Name the files of one split, such as {str(chosen)!r}, or move the "
        f"others to a folder of their own."
    )


def _common_start(names: Sequence[str]) -> str:
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return "".join(column[0] for column in letters)


def _refuse_copies(files: Sequence[Path]) -> None:
    """Raise UserError if two names lead to the same rows."""
    places: dict[tuple[int, int], Path] = {}
    stems: dict[str, Path] = {}
    for file in files:
        status = file.stat()
        twin = places.setdefault((status.st_dev, status.st_ino), file)
        if twin is not file:
            raise UserError(
                f"{file} and {twin} are one file, by a link. Rows are read once. Remove one of the names."
            )

        stem = re.sub(r"(\.(jsonl|ndjson|jsonlines|json|parquet|gz))+$", "", file.name, flags=re.I)
        twin = stems.setdefault(stem, file)
        if twin is not file:
            raise UserError(
                f"{file} and {twin} have one name in two formats, so they look like the same rows twice. Rows are read "
                f"once. Remove one, or give one of them as the source; rename it where its rows are others."
            )


def _describe_empty(folder: Path, unread: Sequence[str], below: Sequence[str]) -> str:
    remedy = "Give the folder that holds them."
    if below:
        inner = sorted({str((folder / name).parent) for name in below})
        remedy = f"Give the folder that holds them: {_list(inner)} do."
    elif unread:
        remedy = f"It holds {_list(unread)}: convert these."
    return (
        f"The folder {str(folder)!r} holds no .jsonl, .json or .parquet file of rows. Files in the folder itself are read, not "
        f"those in its subfolders. {remedy}"
    )


def _describe_unread(folder: Path, unread: Sequence[str], below: Sequence[str]) -> Iterator[str]:
    if unread:
        yield (
            f"{len(unread)} file(s) of {str(folder)!r} are not read: {_list(unread)}. {ALLOWED} are read, where their rows have "
            f"the columns of a question or its answer. Convert them if they hold rows."
        )
    if below:
        more = " at least" if len(below) > _SHOWN else ""
        yield (
            f"{len(below)}{more} file(s) in subfolders of {str(folder)!r} are not read: {_list(below)}. Files in the folder "
            f"itself are read. Move them there if their rows are meant."
        )


def _list(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    listed = ", ".join(map(repr, names[:_SHOWN]))
    return f"{listed} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else listed
