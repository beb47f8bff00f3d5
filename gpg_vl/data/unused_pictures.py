"""Pictures and videos that no field is mapped to: a run on such data would not see them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from gpg_vl.data.images import ImageError, image_size
from gpg_vl.data.media import is_encoded, is_media_path, may_be_path, names_media
from gpg_vl.data.row_notes import shown
from gpg_vl.types import Example

Sign = Literal["sure", "name"]
"""`sure`: the cell is an image. `name`: its value or its column is named like one."""

_LOOKED_AT = 100
"""Number of rows of a column for which files are looked up; the result is used for the other rows too."""
_DEPTH, _ITEMS, _COLUMNS = 4, 4, 500
"""How deep in a cell, in how many items of a list, and in how many columns is looked."""


@dataclass(slots=True)
class _Column:
    rows: int = 0
    example: str = ""
    files_looked_for: int = 0


class UnusedPictures:
    """Collects, row by row, unmapped columns that look like images."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._columns: dict[str, _Column] = {}
        self._rows = 0

    def add(self, cells: Mapping[str, Any], example: Example, taken: Collection[str]) -> None:
        """Remember the cells of one row that its example does not use; `taken`: the columns of its fields."""
        self._rows += 1
        seen: set[str] = set()
        for column, cell in cells.items():
            for name, leaf in _leaves(column, cell, taken, _DEPTH):
                if name not in seen and self._is_unused(name, leaf, example.images):
                    seen.add(name)

        for name in seen:
            self._columns[name].rows += 1

    def notes(self) -> Iterator[str]:
        """One sentence for each column, those of most rows first."""
        for name, column in sorted(self._columns.items(), key=lambda item: -item[1].rows):
            if column.rows:
                yield (
                    f"The column {name!r} looks like pictures in {column.rows} of {self._rows} row(s), such as "
                    f"{column.example}, and no field takes it: the model would not see them. Declare it as columns: "
                    f"{{images: {name}}}, put its pictures into the images column, or remove it."
                )

    def _is_unused(self, name: str, leaf: object, images: Sequence[str | bytes]) -> bool:
        """Whether a cell is an image that the row does not use."""
        if name not in self._columns and len(self._columns) >= _COLUMNS:
            return False
        column = self._columns.setdefault(name, _Column())

        # if the row has images, a name alone may be that of one of them
        sign = self._sign_of(name, leaf, column)
        if sign is None or (images and (sign == "name" or _is_among(leaf, images))):
            return False
        column.example = column.example or (shown(leaf) if isinstance(leaf, str) else "its bytes")
        return True

    def _sign_of(self, name: str, leaf: object, column: _Column) -> Sign | None:
        if isinstance(leaf, bytes):
            return "sure" if is_encoded(leaf) else None
        if isinstance(leaf, dict):
            path, data = leaf.get("path"), leaf.get("bytes")
            is_picture = isinstance(data, bytes) and is_encoded(data)
            return "sure" if is_picture or (isinstance(path, str) and is_media_path(path)) else None
        if not isinstance(leaf, str) or not leaf:
            return None

        if is_encoded(leaf):
            return "sure"
        if is_media_path(leaf):
            return "sure" if self._exists(leaf, column) else "name"
        return "name" if names_media(name) and may_be_path(leaf) else None

    def _exists(self, path: str, column: _Column) -> bool:
        """Whether such an image exists below the root; looked up only for the first rows."""
        column.files_looked_for += 1
        if self._root is None or column.files_looked_for > _LOOKED_AT:
            return False
        try:
            image_size(path, root=self._root)
        except ImageError:
            return False
        return True


def _is_among(leaf: object, images: Sequence[str | bytes]) -> bool:
    """Whether an image is one of those that the row uses, by its bytes or its file name."""
    if isinstance(leaf, dict):
        return any(_is_among(leaf.get(key), images) for key in ("bytes", "path"))
    if isinstance(leaf, str):
        return PurePath(leaf).name in {PurePath(one).name for one in images if isinstance(one, str)}
    return leaf in images


def _leaves(
    name: str, cell: object, taken: Collection[str], depth: int
) -> Iterator[tuple[str, object]]:
    """(dotted name, cell) of what is in a column, a few items of each list; what a field takes is left out."""
    if name in taken or depth == 0:
        return
    if isinstance(cell, list):
        for item in cell[:_ITEMS]:
            yield from _leaves(name, item, taken, depth - 1)
    elif isinstance(cell, dict) and not {"bytes", "path"} & cell.keys():
        for key, item in cell.items():
            yield from _leaves(f"{name}.{key}", item, taken, depth - 1)
    else:
        yield name, cell
