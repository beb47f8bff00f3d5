"""Where a recipe's rows come from: local files, local folders, or the hub.

A source is a Parquet, JSONL or JSON file, a folder of these in the layout of the hub, or a data set on the hub
(`gpg_vl.data.recipe.hub`). Rows come one at a time, from any row on, so that an interrupted conversion goes on where it stopped.
Pickles are refused: opening one runs what its author wrote.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpg_vl.data.json_rows import PlacedCells, json_rows, jsonl_rows
from gpg_vl.data.recipe.hub import hub_source
from gpg_vl.data.recipe.row import Source
from gpg_vl.data.sources import parquet_rows
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

SUFFIXES = (".parquet", ".jsonl", ".json")
PICKLES = (".p", ".pkl", ".pickle", ".pth", ".pt", ".npy", ".npz")
LAYOUT = (
    "{split}-*.parquet",
    "data/{split}-*.parquet",
    "{split}.parquet",
    "{split}.jsonl",
    "{split}.json",
    "{split}/*.parquet",
    "{split}/*.jsonl",
)
"""Where the files of a split lie in a folder, unless a recipe knows better."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(
    name: str,
    splits: Sequence[str],
    *,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    patterns: Mapping[str, str],
    revision: str | None,
    images: Path | None,
) -> list[Source]:
    """The splits of a local file, a local folder or a data set on the hub.

    `columns` are those that every Parquet file must have; they and the `optional` ones are read, no others. `patterns`
    names the files of splits that are not laid out as `LAYOUT` says. `images` is the folder that image paths start
    from, by default that of the source.

    Raises:
        UserError: if there is no such source, a split is missing, or a column is.
    """
    path = Path(name)
    if path.is_file():
        found = {splits[0]: [path]}
        base = path.parent
    elif path.is_dir():
        found = {split: split_files(path, split, patterns.get(split)) for split in splits}
        base = path
    elif _HUB_ID.fullmatch(name):
        return [
            hub_source(
                name,
                split,
                columns=columns,
                optional=optional,
                pattern=patterns.get(split),
                revision=revision,
            )
            for split in splits
        ]
    else:
        raise UserError(
            f"The source {name!r} does not exist. A file ({', '.join(SUFFIXES)}), a folder of them, or the id of a data "
            f"set on the hub, such as owner/name, is allowed. Correct --source."
        )
    if revision is not None:
        raise UserError(
            f"--revision {revision} was given, but {name!r} is a local path, which has no revisions. Leave it out; "
            f"checksums of the files are written into the card."
        )
    root = images or base
    return [
        _local_source(split, files, base, root, columns, optional) for split, files in found.items()
    ]


def split_files(folder: Path, split: str, pattern: str | None = None) -> list[Path]:
    """The files of a split, in the order of their names. Raises UserError if there are none or too many kinds."""
    if pattern and (files := sorted(folder.glob(pattern))):
        return files
    forms = [form.format(split=split) for form in LAYOUT]
    matched = {form: files for form in forms if (files := sorted(folder.glob(form)))}
    if len(matched) == 1:
        return next(iter(matched.values()))
    if matched:
        raise UserError(
            f"The folder {folder} holds the split {split!r} more than once: {', '.join(matched)}. One kind of file per "
            f"split is allowed. Give the file itself, or remove the others."
        )
    wanted = ", ".join([pattern, *forms] if pattern else forms)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    raise UserError(
        f"The folder {folder} holds no file of the split {split!r}; looked for {wanted}. Give --split, or the folder that "
        f"holds the files.{' ' + refusal_of_pickle(pickles[0]) if pickles else ''}"
    )


def refusal_of_pickle(name: str) -> str:
    """Why a pickle is not opened, and how to convert it."""
    return (
        f"{name} is a pickle (or may hold one), which runs code when it is opened, so it is never opened here. Convert it "
        f"where you trust it: read it with its publisher's own code and write one JSON object per line, with the columns "
        f"that --help lists; or fetch the Parquet copy of this data set."
    )


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises UserError."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}. A readable file is needed. Check its permissions and its disk."
        ) from error


def _local_source(
    split: str,
    files: list[Path],
    base: Path,
    root: Path,
    columns: Sequence[str],
    optional: Sequence[str],
) -> Source:
    read_columns = {file: _checked_columns(file, columns, optional) for file in files}
    names = {file: file.relative_to(base).as_posix() for file in files}
    lengths = [_length(file) for file in files]

    def read(start: int) -> Iterator[PlacedCells]:
        for file, length in zip(files, lengths, strict=True):
            if length is not None:
                if start < length:
                    yield from parquet_rows(
                        file, name=names[file], columns=read_columns[file], start=start
                    )
                start = max(0, start - length)
                continue
            rows = (
                jsonl_rows(file, name=names[file])
                if file.suffix == ".jsonl"
                else json_rows(file, name=names[file])
            )
            for row in rows:
                if start:
                    start -= 1
                else:
                    yield row

    return Source(
        split=split,
        read=read,
        total=sum(n for n in lengths if n is not None) if None not in lengths else None,
        root=root,
        facts={"files": {names[file]: checksum(file) for file in files}},
    )


def _checked_columns(
    file: Path, columns: Sequence[str], optional: Sequence[str]
) -> list[str] | None:
    """The columns to read of a Parquet file; None for JSON, whose rows each bring their own."""
    if file.suffix in PICKLES:
        raise UserError(refusal_of_pickle(str(file)))
    if file.suffix not in SUFFIXES:
        raise UserError(
            f"The source file {str(file)!r} ends in {file.suffix!r}. {', '.join(SUFFIXES)} are allowed. Convert it, or "
            f"give it the right name."
        )
    if file.suffix != ".parquet":
        return None
    present = _parquet(file, lambda: pq.read_schema(file).names)
    if missing := [column for column in columns if column not in present]:
        raise UserError(
            f"{file} has no column {missing[0]!r}; it has {', '.join(present)}. {did_you_mean(missing[0], present)} "
            f"Give the published files of this data set; --help lists their columns."
        )
    return [column for column in (*columns, *optional) if column in present]


def _length(file: Path) -> int | None:
    return (
        _parquet(file, lambda: pq.read_metadata(file).num_rows)
        if file.suffix == ".parquet"
        else None
    )


def _parquet(file: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{file} cannot be read: {words}. A complete Parquet file is needed. Fetch it again."
        ) from error
