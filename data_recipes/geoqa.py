"""GEOQA_R1V_Train_8K: geometry problems with a figure and one number or expression as the answer.

    python data_recipes/geoqa.py --source leonardPKU/GEOQA_R1V_Train_8K --out data/geoqa
    python data_recipes/geoqa.py --source ~/GEOQA_R1V_Train_8K --out data/geoqa         # a folder with data/train-*.parquet

The prompt is the one that R1-V and the paper trained with, the figure in front of it. Solutions come as
`<answer> 145° </answer>`; the answer kept is what stands inside, degree signs and roots as they are.
"""

import sys
from typing import Any

from gpg_vl.data.recipe import RawRow, Recipe, main, untagged
from gpg_vl.types import Example

# two blanks, as in the training code; the evaluation prompt of the same project has one
PROMPT = "{problem}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."


def convert(row: RawRow) -> Example:
    """The problem in the published prompt."""
    return Example(
        id=row.id,
        images=row.images("image"),
        prompt=PROMPT.replace("{problem}", row.text("problem")),
        answer=untagged(row.text("solution")),
        task="geoqa",
    )


def settings() -> dict[str, Any]:
    return {"rewards": {"weights": {"geometry": 1.0, "format": 1.0}}}


RECIPE = Recipe(
    name="geoqa",
    title="GEOQA_R1V_Train_8K: geometry problems with a figure",
    help=__doc__,
    licence="not stated on the hub's card; ask its publisher before you pass it on",
    hub="leonardPKU/GEOQA_R1V_Train_8K",
    columns=("image", "problem", "solution"),
    documented={"train": 8031},
    convert=convert,
    settings=settings,
    notes=("The published number of rows, 8031, is not verified.",),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
