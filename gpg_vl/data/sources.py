"""Finds the tables of a source: files, folders of files, their splits, and data sets of the `datasets` library.

A source becomes tables of rows (`gpg_vl.data.tables`); `gpg_vl.data.read` gives the cells a meaning.
No code of a data set is run, and pickles are refused, because opening one runs code. A source that
cannot be read raises a `UserError`.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from gpg_vl.data.folder import Selection, refuse_other_kind, refuse_splits, select_files
from gpg_vl.data.json_rows import PlacedCells
from gpg_vl.data.tables import Table, cannot_read, one_line, open_dataset, open_file
from gpg_vl.errors import UserError
from gpg_vl.hub import (
    UnreachableError,
    cached_data_only,
    describe_unreachable_data,
    is_hub_name,
    is_reachable,
)
from gpg_vl.registry import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
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
"""File patterns of a split in a folder; a recipe may have its own."""
_HUB = "datasets:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def tables(source: str, fields: Collection[str]) -> Iterator[Table]:
    """The tables of a source, files in the order of their names.

    fields: the names of columns by which the objects of a .json file in a folder are known to be
    rows. Raises UserError.
    """
    if source.startswith(_HUB):
        yield _open_hub(source)
    elif _is_saved_dataset(Path(source)):
        yield open_dataset(source, _load_saved(source, Path(source), split=None))
    else:
        yield from map(open_file, choose_files(source, fields).files)


def choose_files(source: str, fields: Collection[str]) -> Selection:
    """The files of a source, and notes on files that are not read. None if the
    `datasets` library reads it.

    Raises UserError.
    """
    path = Path(source)
    if source.startswith(_HUB) or _is_saved_dataset(path):
        return Selection(files=())
    if path.is_dir():
        return select_files(path, fields)

    files = [path] if path.exists() else _match_pattern(path)
    if not files:
        raise UserError(
            f"The data source {source!r} does not exist.{_suggest_name(path)} A .jsonl, .json or .parquet file, a folder of "
            f"these, a pattern such as 'folder/train-*', or {_HUB}NAME[:SPLIT] is allowed. Correct the path."
        )
    for file in files:
        if not file.is_file():
            raise UserError(
                f"The data source {str(file)!r} is no regular file. It is read more than once, so a pipe or a device is not "
                f"allowed. Write its rows to a file."
            )
        refuse_other_kind(file)
    refuse_splits(path.parent, files)
    return Selection(files=tuple(files))


def _match_pattern(path: Path) -> list[Path]:
    """The files that a pattern in the last part of a path matches."""
    if not any(sign in path.name for sign in "*?["):
        return []
    return sorted(file for file in path.parent.glob(path.name) if file.is_file())


def _suggest_name(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


# ---- one split of a folder


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


# ---- what the datasets library knows


def hub_name(source: str) -> str | None:
    """The hub name in a source; None if it is a path or not a `datasets:` source."""
    if not source.startswith(_HUB):
        return None
    name, _ = _name_and_split(source)
    return name if is_hub_name(name) else None


def refuse_unreachable_source(source: str) -> None:
    """Raise UnreachableError for a hub data set that is not in the cache, if the hub cannot be reached."""
    if hub_name(source) is not None and not is_reachable():
        _open_hub(source)


def _name_and_split(source: str) -> tuple[str, str | None]:
    name = source.removeprefix(_HUB)
    if ":" not in name or Path(name).exists():
        return name, None
    name, _, split = name.rpartition(":")
    return name, split


def _open_hub(source: str) -> Table:
    """`datasets:NAME_OR_PATH[:SPLIT]`, from a saved folder or through `datasets.load_dataset`.

    Raises UnreachableError for a name that is not in the cache, if the hub cannot be reached.
    """
    import datasets  # takes a second to import, and only these sources need it

    name, split = _name_and_split(source)
    if _is_saved_dataset(Path(name)):
        return open_dataset(source, _load_saved(source, Path(name), split))

    try:
        with cached_data_only() if is_hub_name(name) else nullcontext():
            loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if is_hub_name(name) and not is_reachable():
            raise UnreachableError(describe_unreachable_data(name)) from None
        raise UserError(
            f"{source!r} cannot be loaded: {one_line(error)}. {_HUB}NAME_OR_PATH[:SPLIT] names a "
            f"data set that the datasets library finds. Check the name and the network, or download the "
            f"data set and give its files."
        ) from error
    return open_dataset(source, _choose_split(source, name, loaded, split))


def _is_saved_dataset(folder: Path) -> bool:
    """True for what `datasets.save_to_disk` writes."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_saved(source: str, folder: Path, split: str | None) -> "Dataset":
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        needed = "a complete folder written by datasets.save_to_disk"
        raise cannot_read(str(folder), needed, error) from error
    return _choose_split(source, str(folder), loaded, split)


def _choose_split(
    source: str, name: str, loaded: "Dataset | Mapping[str, Dataset]", split: str | None
) -> "Dataset":
    if not isinstance(loaded, Mapping):
        if split is None:
            return loaded
        raise UserError(
            f"{source!r} names the split {split!r}, and this data set was saved without splits. Only "
            f"{_HUB}{name} is allowed. Leave the split out."
        )

    splits = list(loaded)
    chosen = splits[0] if split is None and len(splits) == 1 else split
    if chosen is None or chosen not in loaded:
        given = "no split" if split is None else f"the split {split!r}"
        raise UserError(
            f"{source!r} names {given}, and the data "
            f"set has {len(splits)}. {did_you_mean(split or '', splits)} Name one of them: "
            f"{_HUB}{name}:{splits[0]}."
        )
    return loaded[chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubStream:
    """A split of a hub data set at one commit, which is streamed and not downloaded completely; images stay encoded.

    Example: `HubStream(repository="owner/set", split="train", commit="0123...", needed=("image",))`
    """

    repository: str
    split: str
    commit: str
    needed: Sequence[str]
    """Required columns; only they and the `optional` ones are read."""
    optional: Sequence[str] = ()
    pattern: str | None = None
    """The files of the split, if the hub does not define them."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.repository}@{self.commit[:8]}/{self.split}"

    @property
    def columns(self) -> None:
        """They are known once the stream is open."""
        return

    def rows(self, start: int = 0) -> Iterator[PlacedCells]:
        """See `Table`. Raises UserError, also if the stream is interrupted."""
        rows = _ask_hub(self.repository, lambda: iter(self._open().skip(start)))
        number = start
        while (cells := _ask_hub(self.repository, lambda: next(rows, None))) is not None:
            yield f"{self.name}[{number}]", cells
            number += 1

    def _open(self) -> Any:
        import datasets  # takes a second to import, and only this source needs it

        files = {self.split: self.pattern} if self.pattern else None
        stream = datasets.load_dataset(
            self.repository,
            data_files=files,
            split=self.split,
            streaming=True,
            revision=self.commit,
        ).decode(False)

        # unknown for JSON files before the first row
        present = stream.column_names or []
        if not present:
            return stream
        if missing := [column for column in self.needed if column not in present]:
            raise UserError(
                f"{self.repository} has no column {missing[0]!r}; it has {', '.join(present)}. "
                f"{did_you_mean(missing[0], present)} Give the data set that this recipe is made for; --help names it."
            )
        wanted = (*self.needed, *self.optional)
        return stream.select_columns([column for column in wanted if column in present])


def find_commit(repository: str, revision: str | None) -> str:
    """The commit of a branch or tag, so that a resumed run reads what the first one read. Raises UserError."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    def ask() -> str:
        return str(huggingface_hub.HfApi().dataset_info(repository, revision=revision).sha)

    return _ask_hub(repository, ask)


def _ask_hub(name: str, ask: Callable[[], T]) -> T:
    """Run a request to the hub. Raises UserError for errors of the hub or the network."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # the hub's client uses a different HTTP library in different versions; find the error class of the one in use
    kinds = HfHubHTTPError.__mro__
    transport = tuple(
        kind for kind in kinds if kind.__name__ == "HTTPError" and issubclass(kind, Exception)
    )
    try:
        return ask()
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError, *transport) as error:
        raise UserError(
            f"The hub's data set {name!r} cannot be read: {one_line(error)}. There is no local file or folder of that "
            f"name either. Check the name, the split and the network and run the same command again, or fetch the files and give "
            f"their folder as --source."
        ) from error
