"""Splits whose rows are drawn by a program: nothing is read, and row i of a seed is always the same."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.recipe.recipe import Request
from gpg_vl.data.recipe.row import Source
from gpg_vl.errors import UserError

Draw = Callable[[int, int, int], Iterator[dict[str, Any]]]
"""(seed, number of rows, first row) -> the rows."""


def drawn_sources(request: Request, draw: Draw, *, name: str) -> list[Source]:
    """The splits `train` and `test` of a recipe with the options `rows` and `test_rows`.

    Train rows are drawn with the odd number 2 * seed + 1, held-out ones with the even number 2 * seed. `name` is the column
    that names a row. Raises UserError if there is nothing to train on.
    """
    numbers = {"train": request.options["rows"], "test": request.options["test_rows"]}
    if not numbers["train"]:
        raise UserError("--rows is 0. At least one picture to train on is needed.")

    sources = []
    for split, number in numbers.items():
        seed = 2 * request.seed + (split == "train")
        if number:
            sources.append(
                Source(
                    split=split,
                    read=partial(_rows, draw, name, seed, number),
                    total=number,
                    root=None,
                    facts={"drawn with": seed, "rows": number},
                )
            )
    return sources


def _rows(
    draw: Draw, name: str, seed: int, number: int, start: int
) -> Iterator[tuple[str, Cells | CellError]]:
    for row in draw(seed, number - start, start):
        yield row[name], row
