"""Two boxes whose rows are added or compared, with reasoning before the answer: an endless training set of two-step problems.

    python data_recipes/places.py --out data/places --seed 1 --rows 8000 --test-rows 600
    python data_recipes/places.py --out data/places_worked --seed 2 --rows 256 --answers worked   # for sft

Row i of a seed is always the same picture. Train pictures are drawn with the odd number 2 * seed + 1 and held-out ones with the
even number 2 * seed, and pictures of an odd and of an even number are never the same (`gpg_vl/quickstart/places.py`). Needs no
network.
"""

import sys
from typing import Any

from gpg_vl.data.recipe import Option, RawRow, Recipe, Request, Source, drawn_sources, main
from gpg_vl.quickstart import places
from gpg_vl.types import Example


def convert(row: RawRow, *, rows: int, test_rows: int, answers: str) -> Example:
    """One picture and its question. The answer is a number; with `worked` a whole response."""
    return Example(
        id=row.id,
        images=row.images("image"),
        prompt=row.text("prompt"),
        answer=row.text("worked" if answers == "worked" else "answer"),
        task=row.text("task"),
        meta={},
    )


def opened(request: Request) -> list[Source]:
    return drawn_sources(request, places.rows, name="id")


def settings(*, rows: int, test_rows: int, answers: str) -> dict[str, Any]:
    if answers == "worked":
        return {"rewards": {"weights": {"verbatim": 1.0}}, "algorithm": {"name": "sft"}}
    return {"rewards": {"weights": {"counting": 1.0, "format": 0.5}}}


RECIPE = Recipe(
    name="places",
    title="Two boxes whose rows are added or compared",
    help=__doc__,
    licence="none: every picture is drawn by gpg_vl",
    splits=("train", "test"),
    has_source=False,
    open=opened,
    convert=convert,
    options={
        "rows": Option(default=8_000, help="pictures to train on"),
        "test_rows": Option(default=0, help="held-out pictures, none of which is among the others"),
        "answers": Option(
            default="number",
            choices=("number", "worked"),
            help="the number alone, or a whole response with its line of thought, to be learned by sft",
        ),
    },
    settings=settings,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
