"""CLEVR counting: the number of objects in a drawn scene; the training set of the SuperCLEVR evaluation.

    python data_recipes/clevr.py --source leonardPKU/clevr_cogen_a_train --limit 10000 --out data/clevr
    python data_recipes/clevr.py --source MMInstruction/Clevr_CoGenT_TrainA_70K_Complex --out data/clevr_complex
    python data_recipes/clevr.py --source ~/clevr_cogen_a_train --out data/clevr        # a folder with data/train-*.parquet

The prompt is R1-V's. A solution such as `<answer> 3 </answer>` must hold one whole number; other rows are reported.
"""

import re
import sys
from typing import Any

from gpg_vl.data.recipe import BrokenRowError, RawRow, Recipe, main, untagged
from gpg_vl.types import Example

PROMPT = "{problem}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."


def convert(row: RawRow) -> Example:
    """The question in the published prompt, with a whole number as its answer."""
    answer = untagged(row.text("solution"))
    if not re.fullmatch(r"[0-9]{1,9}", answer):
        raise BrokenRowError(
            f"The solution {answer!r:.80} is not a count. A whole number such as 3 is needed."
        )
    return Example(
        id=row.id,
        images=row.images("image"),
        prompt=PROMPT.replace("{problem}", row.text("problem")),
        answer=answer,
        task="counting",
    )


def settings() -> dict[str, Any]:
    return {"rewards": {"weights": {"counting": 1.0, "format": 1.0}}}


RECIPE = Recipe(
    name="clevr",
    title="CLEVR CoGenT A: counting in drawn scenes",
    help=__doc__,
    licence="not stated on the hub's card; ask its publisher before you pass it on",
    hub="leonardPKU/clevr_cogen_a_train",
    columns=("image", "problem", "solution"),
    documented={"train": 70_000},
    convert=convert,
    settings=settings,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
