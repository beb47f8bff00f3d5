"""A data set on the hub as a recipe's source: a stream at one commit, through the `datasets` library.

Nothing of the data set is run and nothing is downloaded as a whole; pictures stay encoded.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from gpg_vl.data.cells import CellError
from gpg_vl.data.recipe.row import Source
from gpg_vl.data.sources import Cells
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

T = TypeVar("T")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_source(
    name: str,
    split: str,
    *,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    pattern: str | None,
    revision: str | None,
) -> Source:
    """A split of the data set `owner/name`. A branch or tag is resolved to its commit once, so that a resumed run reads
    what the first one read.

    Raises:
        UserError: if the hub cannot be reached or has no such data set; later, if the stream breaks off.
    """
    commit = revision if revision and _COMMIT.fullmatch(revision) else _commit(name, revision)

    def read(start: int) -> Iterator[tuple[str, Cells | CellError]]:
        rows = _asked(
            name, lambda: iter(_stream(name, split, columns, optional, pattern, commit).skip(start))
        )
        number = start
        while (cells := _asked(name, lambda: next(rows, None))) is not None:
            yield f"{name}@{commit[:8]}/{split}[{number}]", cells
            number += 1

    return Source(
        split=split, read=read, total=None, root=None, facts={"hub": name, "revision": commit}
    )


def _commit(name: str, revision: str | None) -> str:
    import huggingface_hub

    return str(
        _asked(name, lambda: huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    )


def _stream(
    name: str,
    split: str,
    columns: Sequence[str],
    optional: Sequence[str],
    pattern: str | None,
    commit: str,
) -> Any:
    import datasets  # takes a second to import, and only this source needs it

    files = {split: pattern} if pattern else None
    stream = datasets.load_dataset(
        name, data_files=files, split=split, streaming=True, revision=commit
    ).decode(False)
    present = stream.column_names or []  # unknown for JSON files before the first row
    if present and (missing := [column for column in columns if column not in present]):
        raise UserError(
            f"{name} has no column {missing[0]!r}; it has {', '.join(present)}. {did_you_mean(missing[0], present)} Give "
            f"the data set that this recipe is made for; --help names it."
        )
    return (
        stream.select_columns([c for c in (*columns, *optional) if c in present])
        if present
        else stream
    )


def _asked(name: str, ask: Callable[[], T]) -> T:
    """What the hub answers. Raises UserError for what is wrong there or on the way there."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # the error of the HTTP library below the hub's client, whichever that is in its version
    kinds = HfHubHTTPError.__mro__
    transport = tuple(
        kind for kind in kinds if kind.__name__ == "HTTPError" and issubclass(kind, Exception)
    )
    try:
        return ask()
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError, *transport) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The hub's data set {name!r} cannot be read: {words}. There is no local file or folder of that name either. "
            f"Check the name, the split and the network and run the same command again, or fetch the files and give "
            f"their folder as --source."
        ) from error
