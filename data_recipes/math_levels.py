"""MATH, competition problems of levels 3 to 5: the text training set of the paper's mathematics runs.

    python data_recipes/math_levels.py --source DigitalLearningGmbH/MATH-lighteval --out data/math
    python data_recipes/math_levels.py --source ~/math/train.jsonl --levels 1-5 --out data/math_all

Rows have a problem, a level (`Level 3` or 3) and a worked solution, whose last \\boxed{} is the answer. Problems of other
levels are left out and counted. Do not train on MATH-500 or any other part of the test split.
"""

import sys
from typing import Any

from gpg_vl.answers.extract import last_boxed
from gpg_vl.data.recipe import BrokenRowError, LeftOut, Option, RawRow, Recipe, main
from gpg_vl.types import Example, Message

GPG = (
    "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think about the "
    "reasoning process as an internal monologue and then provide the user with the answer. The reasoning process MUST BE "
    "enclosed within <think> and </think> tags."
)
LIGHTEVAL = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the following "
    "format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is "
    "just the final number or expression that solves the problem. Think step by step before answering.\n\n{Question}"
)


def convert(row: RawRow, *, prompt: str, levels: str) -> Example | LeftOut:
    """The problem, with the content of the solution's last box as its answer."""
    level = row.text("level").removeprefix("Level ").strip()
    if level not in ("?", "1", "2", "3", "4", "5"):
        raise BrokenRowError(
            f"The level is {row.text('level')!r:.80}. `Level 1` to `Level 5`, or 1 to 5, is needed."
        )
    if not levels[0] <= level <= levels[-1]:  # "?" stands behind the digits
        return LeftOut(reason=f"level {level}")
    answer = last_boxed(row.text("solution"))
    if not answer:
        raise BrokenRowError(
            "The solution has no \\boxed{} with anything in it, so there is no answer."
        )
    problem = row.text("problem")
    texts: dict[str, str | tuple[Message, ...]] = {
        "gpg": (Message(role="system", content=GPG), Message(role="user", content=problem)),
        "lighteval": LIGHTEVAL.replace("{Question}", problem),
        "plain": problem,
    }
    subject = next((row.text(name) for name in ("subject", "type") if row.cells.get(name)), "")
    return Example(
        id=row.id, prompt=texts[prompt], answer=answer, task=subject, meta={"level": int(level)}
    )


def settings(*, prompt: str, levels: str) -> dict[str, Any]:
    return {"rewards": {"weights": {"math": 1.0}}}


RECIPE = Recipe(
    name="math_levels",
    title="MATH: competition problems",
    help=__doc__,
    licence="not recorded; ask its publisher before you pass it on",
    hub="DigitalLearningGmbH/MATH-lighteval",
    columns=("problem", "level", "solution"),
    optional=("subject", "type"),
    documented={"train": 7500},
    convert=convert,
    options={
        "prompt": Option(
            default="gpg",
            choices=("gpg", "lighteval", "plain"),
            help="the paper's system turn before the problem, the text that evaluations use, or the problem alone",
        ),
        "levels": Option(
            default="3-5",
            choices=tuple(f"{a}-{b}" for a in range(1, 6) for b in range(a, 6)),
            help="levels that are kept",
        ),
    },
    settings=settings,
    notes=("The hub's id and its number of rows are not verified.",),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
