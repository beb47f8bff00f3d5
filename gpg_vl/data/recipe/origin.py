"""The sources of a recipe's rows: local files, local folders, or the hub.

Rows come one at a time, from any row on, so that an interrupted conversion resumes where it stopped.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpg_vl.data.folder import kind_of
from gpg_vl.data.json_rows import PlacedCells
from gpg_vl.data.recipe.row import Source
from gpg_vl.data.sources import PICKLES, HubStream, find_commit, refusal_of_pickle, split_files
from gpg_vl.data.tables import count_parquet_rows, open_file, read_schema
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

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

    `columns` are required in every Parquet file; only they and the `optional` ones are read. `patterns`
    names the files of splits that are not laid out as `gpg_vl.data.sources.LAYOUT` says. `images` is the folder that
    image paths start from, by default that of the source.

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
        commits = {split: find_commit(name, revision) for split in splits}
        streams = [
            HubStream(
                repository=name,
                split=split,
                commit=commit,
                needed=columns,
                optional=optional,
                pattern=patterns.get(split),
            )
            for split, commit in commits.items()
        ]
        return [_hub_source(stream) for stream in streams]
    else:
        raise UserError(
            f"The source {name!r} does not exist. A file (.parquet, .jsonl, .json), a folder of them, or the id of a data "
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


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises UserError."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}. A readable file is needed. Check its permissions and its disk."
        ) from error


def _hub_source(stream: HubStream) -> Source:
    return Source(
        split=stream.split,
        read=stream.rows,
        total=None,
        root=None,
        facts={"hub": stream.repository, "revision": stream.commit},
    )


def _local_source(
    split: str,
    files: list[Path],
    base: Path,
    root: Path,
    columns: Sequence[str],
    optional: Sequence[str],
) -> Source:
    for file in files:
        if file.suffix in PICKLES:
            raise UserError(refusal_of_pickle(str(file)))
    names = {file: file.relative_to(base).as_posix() for file in files}
    opened = [
        open_file(
            file,
            name=names[file],
            columns=_choose_columns(file, columns, optional),
            as_stored=True,
        )
        for file in files
    ]
    lengths = [count_parquet_rows(file) if kind_of(file) == ".parquet" else None for file in files]

    def read(start: int) -> Iterator[PlacedCells]:
        for table, length in zip(opened, lengths, strict=True):
            if length is not None and start >= length:
                start -= length
                continue

            for row in table.rows(start if length is not None else 0):
                if start and length is None:
                    start -= 1
                else:
                    yield row
            start = 0 if length is not None else start

    return Source(
        split=split,
        read=read,
        total=sum(n for n in lengths if n is not None) if None not in lengths else None,
        root=root,
        facts={"files": {names[file]: checksum(file) for file in files}},
    )


def _choose_columns(
    file: Path, columns: Sequence[str], optional: Sequence[str]
) -> list[str] | None:
    """The columns to read of a Parquet file; None for JSON, whose rows each bring their own."""
    if kind_of(file) != ".parquet":
        return None
    present = read_schema(file).names
    if missing := [column for column in columns if column not in present]:
        raise UserError(
            f"{file} has no column {missing[0]!r}; it has {', '.join(present)}. {did_you_mean(missing[0], present)} "
            f"Give the published files of this data set; --help lists their columns."
        )
    return [column for column in (*columns, *optional) if column in present]
