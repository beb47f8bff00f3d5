"""Reads a source of rows as examples: assigns columns to fields, and handles broken rows.

A source that cannot be read at all (no such file, not Parquet, no column for the answers) raises a
`UserError`. For a row that cannot be parsed a `RowProblem` is returned instead of an `Example`, so a
caller gets every row exactly once.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, overload

from gpg_vl.data.cells import CellError
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.layouts import PROMPT_NAMES, columns_of_layout
from gpg_vl.data.rows import Row, RowProblem, parse_row
from gpg_vl.data.sources import choose_files, tables
from gpg_vl.data.tables import Table
from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean
from gpg_vl.types import Example

COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "idx"),
    "images": ("images", "image"),
    "prompt": ("prompt", "question", "problem"),
    "answer": ("answer", "solution", "ground_truth"),
    "choices": ("choices", "options"),
    "task": ("task",),
    "system": (),
}
"""The fields of an example, and the column names that are recognised if none is declared. For layouts of other programs see
`data.layouts`."""
REQUIRED = ("prompt", "answer")
OnExample = Callable[[Mapping[str, Any], Example, Collection[str]], None]
"""Called with the cells of a row, its example, and the columns that its fields used."""


class Examples(Sequence[Example]):
    """The examples of a source, or of its first `limit` rows, read on access.

    Only the positions of rows are in memory; images, texts and answers stay in the files. Raises UserError if the source
    cannot be read or has no rows; later, on access to a broken row. The arguments are those of `read_rows`.

    Example: `Examples("data/train")[7].answer`
    """

    def __init__(
        self,
        source: str | Path,
        columns: Mapping[str, str] | None = None,
        *,
        limit: int | None = None,
        answers: bool = True,
    ) -> None:
        self._source, self._answers = str(source), answers
        self._declared = _check_mapping(columns or {})
        self._tables = tuple(tables(self._source, _names_of_rows(self._declared)))
        self._ends = list(accumulate(map(len, self._tables)))
        self._mappings = Mappings(self._declared)

        rows = self._ends[-1] if self._ends else 0
        self._size = rows if limit is None else min(limit, rows)
        if not self._size:
            raise _no_rows(source)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[Example]:
        """Iterate in order, which is faster than access by number."""
        number = 0
        for table in self._tables:
            for place, cells in islice(table.rows(), len(self) - number):
                yield self._parse(number, place, cells)
                number += 1

    def _read(self, number: int) -> Example:
        at = bisect_right(self._ends, number)
        place, cells = self._tables[at].row(number - (self._ends[at - 1] if at else 0))
        return self._parse(number, place, cells)

    def _parse(self, number: int, place: str, cells: Cells | CellError) -> Example:
        row = self._mappings.parse(cells, row=number, source=place, answers=self._answers)
        if isinstance(row, RowProblem):
            raise UserError(f"A row of {self._source} cannot be used: {row}")
        return row


def load_examples(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    limit: int | None = None,
    answers: bool = True,
) -> list[Example]:
    """Load every example of a source, or of its first `limit` rows. Raises if any row is broken.

    answers: see `read_rows`.

    Raises:
        UserError: if the source cannot be read, holds no row, or holds a broken row: the first ten
            and their number.
    """
    rows = list(read_rows(source, columns, limit=limit, answers=answers))
    problems = [row for row in rows if isinstance(row, RowProblem)]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{len(problems)} of the {len(rows)} rows of {source} cannot be used:\n{listed}{more}\nEvery "
            f"row must be usable, because none is dropped silently. Correct or remove these rows."
        )

    if not rows:
        raise _no_rows(source)
    return [row for row in rows if isinstance(row, Example)]


def _no_rows(source: str | Path) -> UserError:
    return UserError(
        f"{source} holds no rows. At least one is needed. Check that it was written completely."
    )


def read_rows(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    limit: int | None = None,
    answers: bool = True,
    on_example: OnExample | None = None,
) -> Iterator[Row]:
    """Every row of a source, or its first `limit` rows, in order, as an Example or a RowProblem.

    `source` is a `.jsonl`, `.json` or `.parquet` file, a folder of these (in the order of their
    names) or a pattern such as `folder/train-*`, a folder written by `datasets.save_to_disk`, or
    `datasets:NAME_OR_PATH[:SPLIT]`. JSON may be gzipped. `columns` maps
    our fields (id, images, prompt, answer, choices, task, system) to the columns of the source,
    with dots to reach into structs (`answer: meta.gold`); what it leaves out is found by the names
    in `COMMON_NAMES`, or by those of other programs in `gpg_vl.data.layouts`. If the answer is declared to be in the
    prompt's column, it is the last turn of the conversation. The id of a row without one is its number. `on_example` is
    called with each example and its cells.

    answers: whether each row needs a gold answer; False: a row without one has the answer "".

    Raises:
        UserError: at the first row, if the source cannot be read or its columns are ambiguous; later,
            if a file is incomplete, or if no row of a JSONL file has a required column.
    """
    declared = _check_mapping(columns or {})
    yield from islice(_all_rows(str(source), declared, on_example, answers=answers), limit)


def notes_of(source: str | Path, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Notes on a source itself: which of its files are not read.

    Raises UserError as `read_rows` does.
    """
    declared = _check_mapping(columns or {})
    return choose_files(str(source), _names_of_rows(declared)).notes


def files_of(source: str | Path, columns: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """The files with the rows of a source; empty if some rows are not in a known file.

    Raises UserError as `read_rows` does.
    """
    declared = _check_mapping(columns or {})
    by_table = [table.files for table in tables(str(source), _names_of_rows(declared))]
    return tuple(file for files in by_table for file in files) if all(by_table) else ()


def _all_rows(
    source: str, declared: Mapping[str, str], on_example: OnExample | None, *, answers: bool
) -> Iterator[Row]:
    number = 0
    empty: list[str] = []
    for table in tables(source, _names_of_rows(declared)):
        first = number
        for row in _parse_table(table, declared, on_example, first=first, answers=answers):
            yield row
            number += 1
        if number == first and table.columns is None:
            empty.append(table.name)

    # programs write Parquet files without rows, but an empty text file was not written completely
    for name in empty if number else ():
        message = "The file holds no rows. A file of rows is needed. Fetch or write it again, or remove it."
        yield RowProblem(row=number, source=name, kind="source", message=message)


def _names_of_rows(declared: Mapping[str, str]) -> frozenset[str]:
    """The columns by which rows are recognised: those of the question and of its answer."""
    names: set[str] = set()
    for field in REQUIRED:
        names |= {declared[field].split(".")[0]} if field in declared else set(COMMON_NAMES[field])
    return frozenset(names if "prompt" in declared else names | set(PROMPT_NAMES))


def _parse_table(
    table: Table,
    declared: Mapping[str, str],
    on_example: OnExample | None,
    *,
    first: int,
    answers: bool,
) -> Iterator[Row]:
    required = [field for field in REQUIRED if answers or field != "answer"]
    if table.columns is not None:
        _require(table.columns, declared, required, where=table.name)

    mappings = Mappings(declared)
    for number, (place, cells) in enumerate(table.rows(), first):
        row = mappings.parse(cells, row=number, source=place, answers=answers)
        if on_example is not None and isinstance(row, Example):
            assert not isinstance(cells, CellError), place
            on_example(cells, row, mappings.of(cells, place).values())
        yield row

    # single rows of a JSONL file may lack a column, but a column that all rows lack is a wrong name
    if mappings.columns:
        _require(mappings.columns, declared, required, where=table.name)


class Mappings:
    """The columns of the fields for each row, cached because most rows have the same columns as the one before."""

    def __init__(self, declared: Mapping[str, str]) -> None:
        self._declared = declared
        self._known: dict[tuple[str, ...], Mapping[str, str]] = {}
        self.columns: dict[str, None] = {}
        """The columns of all rows, in order."""

    def of(self, cells: Cells, place: str) -> Mapping[str, str]:
        """The mapping of a row. Raises UserError as `resolve_columns` does."""
        names = tuple(cells)
        if names not in self._known:
            self._known[names] = resolve_columns(names, self._declared, where=place)
            self.columns |= dict.fromkeys(names)
        return self._known[names]

    def parse(self, cells: Cells | CellError, *, row: int, source: str, answers: bool) -> Row:
        """Parse a row of a table. `row`: its number in the whole source."""
        if isinstance(cells, CellError):
            return RowProblem(row=row, source=source, kind=cells.kind, message=cells.message)
        mapping = self.of(cells, source)
        return parse_row(cells, mapping, row=row, source=source, answers=answers)


def resolve_columns(
    available: Collection[str], declared: Mapping[str, str], *, where: str
) -> dict[str, str]:
    """The column of each field: the declared one, else the only one with a common name. Other
    fields are absent. If there is none of these, the names of other programs are tried
    (`gpg_vl.data.layouts`).

    Raises:
        UserError: if two columns have common names for one field and none of them is declared.
    """
    mapping = dict(declared)
    for field, names in COMMON_NAMES.items():
        found = [name for name in names if name in available and name not in declared.values()]
        if field in declared or not found:
            continue

        if len(found) > 1:
            raise _several_columns(field, found, where)
        mapping[field] = found[0]

    of_layout, several = columns_of_layout(available, mapping)
    if several:
        raise _several_columns("prompt", several, where)
    return mapping | of_layout


def _several_columns(field: str, found: Sequence[str], where: str) -> UserError:
    return UserError(
        f"{where} has the columns {' and '.join(map(repr, found))}, and each could be the {field}. One column per field is "
        f"allowed. Declare which it is: columns: {{{field}: {found[0]}}}."
    )


def folder_of(source: str | Path) -> Path | None:
    """The default folder of relative image paths; None for `datasets:` sources."""
    if str(source).startswith("datasets:"):
        return None
    path = Path(source)
    return path if path.is_dir() else path.parent


def _check_mapping(columns: Mapping[str, str]) -> dict[str, str]:
    for field, column in columns.items():
        if field not in COMMON_NAMES:
            raise UserError(
                f"The column mapping names the field {field!r}, which examples do not have. "
                f"{did_you_mean(field, list(COMMON_NAMES))} Write the mapping as columns: {{field: "
                f"column}}."
            )
        if not isinstance(column, str) or not column:
            raise UserError(
                f"The column mapping gives {column!r} for the field {field!r}. The name of a column is "
                f"allowed. Name one, or leave the field out."
            )
    return dict(columns)


def _require(
    available: Collection[str],
    declared: Mapping[str, str],
    required: Collection[str],
    *,
    where: str,
) -> None:
    """Raise UserError if a declared column, or any column for a required field, is missing."""
    common = {
        field: name for field, names in COMMON_NAMES.items() for name in names if name in available
    }
    of_layout, several = columns_of_layout(available, common | dict(declared))
    for field, common_names in COMMON_NAMES.items():
        if field in declared:
            names: tuple[str, ...] = (declared[field],)
        elif field in required and not several and field not in of_layout:
            names = common_names
        else:
            continue

        # a dotted name can only be checked row by row
        if not any(name in available or name.split(".")[0] in available for name in names):
            raise UserError(
                f"{where} has no column {' or '.join(map(repr, names))} for the {field}. "
                f"{did_you_mean(names[0], list(available))} Declare the right one: columns: {{{field}: "
                f"<column>}}."
            )
