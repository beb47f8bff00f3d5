"""Drawn scenes for the four CV-Bench tasks, Count, Relation, Depth and Distance: an endless training set.

    python data_recipes/scenes.py --out data/scenes --seed 1 --rows 10000 --test-rows 1200
    python data_recipes/scenes.py --out data/scenes_words --seed 2 --rows 256 --answers words      # for sft

Row i of a seed is always the same scene. Train scenes are drawn with the odd number 2 * seed + 1 and held-out ones with the
even number 2 * seed, and scenes of an odd and of an even number are never the same (`gpg_vl/quickstart/scenes.py`). Needs no
network. `gpg-vl quickstart` writes its own scenes, in CV-Bench's columns.
"""

import sys
from typing import Any

from gpg_vl.data.recipe import Option, RawRow, Recipe, Request, Source, drawn_sources, main
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example


def convert(row: RawRow, *, rows: int, test_rows: int, answers: str) -> Example:
    """One scene. The answer is a letter in parentheses, as in CV-Bench, or the words of that option."""
    choices, answer = tuple(row.texts("choices")), row.text("answer")
    if answers == "words":
        answer = choices[ord(answer[1]) - ord("A")]
    return Example(
        id=row.id,
        images=row.images("image"),
        prompt=row.text("prompt"),
        answer=answer,
        choices=choices,
        task=row.text("task"),
        meta={"type": row.text("type"), "source": row.text("source")},
    )


def opened(request: Request) -> list[Source]:
    return drawn_sources(request, scenes.rows, name="filename")


def settings(*, rows: int, test_rows: int, answers: str) -> dict[str, Any]:
    return {"rewards": {"weights": {"choice": 1.0}}}


RECIPE = Recipe(
    name="scenes",
    title="Drawn scenes for the CV-Bench tasks",
    help=__doc__,
    licence="none: every picture is drawn by gpg_vl",
    splits=("train", "test"),
    has_source=False,
    open=opened,
    convert=convert,
    options={
        "rows": Option(default=10_000, help="scenes to train on"),
        "test_rows": Option(default=0, help="held-out scenes, none of which is among the others"),
        "answers": Option(
            default="letter",
            choices=("letter", "words"),
            help="the letter of the right option, or its words, which the quickstart's model answers with",
        ),
    },
    settings=settings,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
