"""GSM8K: grade school word problems, whose worked answers end in `#### 72`.

    python data_recipes/gsm8k.py --source openai/gsm8k --out data/gsm8k
    python data_recipes/gsm8k.py --source ~/gsm8k/main --out data/gsm8k        # a folder with train-*.parquet, test-*.parquet

Train and test stay folders of their own. The answer is the number behind `####`, without commas.
"""

import re
import sys
from typing import Any

from gpg_vl.data.recipe import BrokenRowError, Option, RawRow, Recipe, main
from gpg_vl.types import Example, Message

GPG = (
    "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think about the "
    "reasoning process as an internal monologue and then provide the user with the answer. The reasoning process MUST BE "
    "enclosed within <think> and </think> tags."
)
HASHES = '{question} Let\'s think step by step and output the final answer after "####".'
_GOLD = re.compile(r"#### (-?[0-9][0-9.,]{0,40})\s*$")


def convert(row: RawRow, *, prompt: str) -> Example:
    """The question, with the number behind the last `####` as its answer."""
    found = _GOLD.search(row.text("answer"))
    if found is None:
        raise BrokenRowError("The answer does not end in `#### ` and a number.")
    question = row.text("question")
    texts: dict[str, str | tuple[Message, ...]] = {
        "gpg": (Message(role="system", content=GPG), Message(role="user", content=question)),
        "hashes": HASHES.replace("{question}", question),
        "plain": question,
    }
    return Example(
        id=row.id, prompt=texts[prompt], answer=found[1].replace(",", "").rstrip("."), task="gsm8k"
    )


def settings(*, prompt: str) -> dict[str, Any]:
    return {"rewards": {"weights": {"math": 1.0}}}


RECIPE = Recipe(
    name="gsm8k",
    title="GSM8K: grade school word problems",
    help=__doc__,
    licence="MIT, as the hub's card says",
    hub="openai/gsm8k",
    columns=("question", "answer"),
    splits=("train", "test"),
    patterns={"train": "main/train-*.parquet", "test": "main/test-*.parquet"},
    documented={"train": 7473, "test": 1319},
    convert=convert,
    options={
        "prompt": Option(
            default="gpg",
            choices=("gpg", "hashes", "plain"),
            help="the paper's system turn before the question, the text that asks for ####, or the question alone",
        ),
    },
    settings=settings,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
