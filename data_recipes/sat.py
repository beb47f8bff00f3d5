"""SAT, spatial questions about pictures: the training set of the paper's CV-Bench result.

    python data_recipes/sat.py --source array/SAT --out data/sat                  # from the hub: what the paper trained on
    python data_recipes/sat.py --source ~/SAT_train.parquet --out data/sat        # from a file that was fetched before
    python data_recipes/sat.py --source ~/SAT --split static --limit 0 --multi-image keep --out data/sat_static

The paper's runs took the first 15,000 rows of SAT_train.parquet and skipped those with several pictures; that is the
default here, and the rows left out are counted. The card of the set says that the order of the options must be drawn,
as the stored one may give the answer away: it is drawn for each row from the seed and the row's number.
"""

import sys
from collections.abc import Sequence
from typing import Any

from gpg_vl.data.recipe import LeftOut, Option, RawRow, Recipe, main
from gpg_vl.types import Example

BASE = (
    "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question} \nAssistant: Let me solve this step by step.\n"
)
INSTRUCT = "{question}  Output the thinking process in <think> </think> and final answer (option) in <answer> </answer> tags."


def convert(row: RawRow, *, prompt: str, multi_image: str) -> Example | LeftOut:
    """The paper's prompt with the options in a drawn order. The answer is the option's text."""
    images = row.images("image_bytes")
    if len(images) > 1 and multi_image == "leave-out":
        return LeftOut(reason="more than one image, which the paper skips")
    options = row.texts("answers")
    row.random().shuffle(options)
    asked = f" Answer in natural language. {row.text('question')} Choose between the following options: {listed(options)}"
    marks = "<image>" * len(images)
    texts = {
        "base": marks + BASE.replace("{question}", asked),
        "instruct": INSTRUCT.replace("{question}", marks + asked),
        "plain": marks + asked,
    }
    return Example(
        id=row.id,
        images=images,
        prompt=texts[prompt],
        answer=row.text("correct_answer"),
        choices=tuple(options),
        task=row.text("question_type"),
    )


def listed(options: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


def settings(*, prompt: str, multi_image: str) -> dict[str, Any]:
    """A base model answers bare text that has opened its reasoning; the others use their chat template."""
    style = {"prompt": {"chat": "plain", "prefill": "<think>"}} if prompt == "base" else {}
    return {**style, "rewards": {"weights": {"choice": 1.0, "format": 1.0}}}


RECIPE = Recipe(
    name="sat",
    title="SAT: spatial aptitude training",
    help=__doc__,
    licence="MIT, as the hub's card says",
    hub="array/SAT",
    columns=("image_bytes", "question", "answers", "question_type", "correct_answer"),
    patterns={split: f"SAT_{split}.parquet" for split in ("train", "static", "val", "test")},
    documented={"train": 175_000, "static": 127_000, "val": 4000, "test": 150},
    limit=15_000,
    convert=convert,
    options={
        "prompt": Option(
            default="base",
            choices=("base", "instruct", "plain"),
            help="the paper's text for a base model, the one for an instruct model, or the bare question",
        ),
        "multi_image": Option(
            default="leave-out",
            choices=("leave-out", "keep"),
            help="rows with several pictures, which the paper skips",
        ),
    },
    settings=settings,
    notes=(
        "Answers are option texts in natural language here and letters in CV-Bench, as in the paper.",
        "The paper's base prompt had the word <image> beside the picture; here the word is a mark and becomes the picture.",
    ),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
