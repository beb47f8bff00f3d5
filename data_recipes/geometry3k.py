"""geometry3k: geometry problems with figures, in the prompt of EasyR1.

    python data_recipes/geometry3k.py --source hiyouga/geometry3k --out data/geometry3k
    python data_recipes/geometry3k.py --source ~/geometry3k --split train --out data/geometry3k

All three published splits are kept apart: train, validation and test become folders of their own.
"""

import sys
from typing import Any

from gpg_vl.data.recipe import RawRow, Recipe, main
from gpg_vl.types import Example

PROMPT = (
    "{problem} You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}."
)


def convert(row: RawRow) -> Example:
    """The problem, whose `<image>` marks stay where they are, in the published prompt."""
    return Example(
        id=row.id,
        images=row.images("images"),
        prompt=PROMPT.replace("{problem}", row.text("problem")),
        answer=row.text("answer"),
        task="geometry3k",
    )


def settings() -> dict[str, Any]:
    return {"rewards": {"weights": {"math": 1.0}}}


RECIPE = Recipe(
    name="geometry3k",
    title="geometry3k: geometry problems with figures",
    help=__doc__,
    licence="MIT, as the hub's card says",
    hub="hiyouga/geometry3k",
    columns=("images", "problem", "answer"),
    splits=("train", "validation", "test"),
    documented={"train": 2101, "validation": 300, "test": 601},
    convert=convert,
    settings=settings,
    notes=(
        "The prompt asks for the answer in \\boxed{}, not in <answer> tags, so the reward `format` does not fit it.",
    ),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
