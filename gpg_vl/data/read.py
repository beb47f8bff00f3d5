"""A source of rows becomes examples: which column is which field, and what becomes of a broken row.

A source that cannot be read at all (no such file, not Parquet, no column for the answers) is a
`UserError`. A row that cannot be understood is a `RowProblem` in the place of its `Example`, so a
caller sees every row exactly once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.rows import Row, RowProblem, parse_row
from gpg_vl.data.sources import Table, choose_files, tables
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
}
"""The fields of an example, and the column names that are taken for them where none is declared."""
REQUIRED = ("prompt", "answer")
OnExample = Callable[[Mapping[str, Any], Example, Collection[str]], None]
"""Called with the cells of a row, the example they became, and the columns that its fields took."""


def load_examples(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    limit: int | None = None,
    answers: bool = True,
) -> list[Example]:
    """Every example of a source, or of its first `limit` rows; or none, if one is broken.

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
        raise UserError(
            f"{source} holds no rows. At least one is needed. Check that it was written completely."
        )
    return [row for row in rows if isinstance(row, Example)]


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
    our fields (id, images, prompt, answer, choices, task) to the columns of the source, with dots
    to reach into structs (`answer: reward_model.ground_truth`); what it leaves out is found by the
    names in `COMMON_NAMES`. Rows without an id are called by their number. `on_example` is shown each
    example with the cells it was made of.

    answers: whether each row needs a gold answer; False: a row without one has the answer "".

    Raises:
        UserError: when the first row is asked for, if the source cannot be read or its columns
            cannot be told apart; later, if a file breaks off, or if a JSONL file ends without any
            row that has a needed column.
    """
    declared = _check_mapping(columns or {})
    yield from islice(_all_rows(str(source), declared, on_example, answers=answers), limit)


def notes_of(source: str | Path, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What is to be said of a source beside its rows: which of its files are not read.

    Raises UserError as `read_rows` does.
    """
    declared = _check_mapping(columns or {})
    return choose_files(str(source), _names_of_rows(declared)).notes


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

    # programs write Parquet files without rows; an empty file of text was not written to its end
    for name in empty if number else ():
        message = "The file holds no rows. A file of rows is needed. Fetch or write it again, or remove it."
        yield RowProblem(row=number, source=name, kind="source", message=message)


def _names_of_rows(declared: Mapping[str, str]) -> frozenset[str]:
    """The columns by which rows are known: those of the question and of its answer."""
    names: set[str] = set()
    for field in REQUIRED:
        names |= {declared[field].split(".")[0]} if field in declared else set(COMMON_NAMES[field])
    return frozenset(names)


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

    # most rows have the columns of the one before; those of all rows are kept in order
    columns: dict[str, None] = {}
    mappings: dict[tuple[str, ...], Mapping[str, str]] = {}
    for number, (place, cells) in enumerate(table.rows, first):
        if isinstance(cells, CellError):
            yield RowProblem(row=number, source=place, kind=cells.kind, message=cells.message)
            continue

        names = tuple(cells)
        if names not in mappings:
            mappings[names] = resolve_columns(names, declared, where=place)
            columns |= dict.fromkeys(names)
        row = parse_row(cells, mappings[names], row=number, source=place, answers=answers)
        if on_example is not None and isinstance(row, Example):
            on_example(cells, row, mappings[names].values())
        yield row

    # the rows of a JSONL file may lack a column one by one, but one that all lack is a wrong name
    if columns:
        _require(columns, declared, required, where=table.name)


def resolve_columns(
    available: Collection[str], declared: Mapping[str, str], *, where: str
) -> dict[str, str]:
    """The column of each field: the declared one, else the only one with a common name. Other
    fields are absent.

    Raises:
        UserError: if two columns have common names for one field and none of them is declared.
    """
    mapping = dict(declared)
    for field, names in COMMON_NAMES.items():
        found = [name for name in names if name in available and name not in declared.values()]
        if field in declared or not found:
            continue

        if len(found) > 1:
            raise UserError(
                f"{where} has the columns {' and '.join(map(repr, found))}, and each could be the "
                f"{field}. One column per field is allowed. Declare which it is: columns: {{{field}: "
                f"{found[0]}}}."
            )
        mapping[field] = found[0]
    return mapping


def folder_of(source: str | Path) -> Path | None:
    """The folder that paths of pictures start from if nothing else is said; None of `datasets:` and what it names."""
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
    for field, common_names in COMMON_NAMES.items():
        if field in declared:
            names: tuple[str, ...] = (declared[field],)
        elif field in required:
            names = common_names
        else:
            continue

        # what a dotted name reaches into is known row by row
        if not any(name in available or name.split(".")[0] in available for name in names):
            raise UserError(
                f"{where} has no column {' or '.join(map(repr, names))} for the {field}. "
                f"{did_you_mean(names[0], list(available))} Declare the right one: columns: {{{field}: "
                f"<column>}}."
            )
