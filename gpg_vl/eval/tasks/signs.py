"""Two signs to add or to compare: the held-out part of `data_recipes/signs.py`, a world that takes two steps.

`official` is `strict`: there is no other owner.
"""

from functools import partial

from gpg_vl.answers.count import parse_count
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import strict_count
from gpg_vl.eval.statistics import micro_and
from gpg_vl.eval.task import Doc, Task, TaskPrompt

CHANCE = {"Add": 0.1, "Compare": 0.2}
"""Of the most frequent answer, which is 9: ten sums in a hundred, eighteen pairs in ninety."""
_files = partial(tables, name="signs", split="test")


def _doc(entry: Entry) -> Doc:
    if parse_count(entry.text("answer")) is None:
        raise entry.wrong("answer", "a whole number")
    return entry.doc(
        prompt=entry.text("prompt"),
        gold=entry.text("answer"),
        images=entry.pictures("images"),
        without=("images",),
    )


def signs() -> Task:
    """The task, for `python -m gpg_vl.eval signs`."""
    return Task(
        name="signs",
        description="Two signs to add or to compare, with a line of thought before the answer",
        source="drawn by data_recipes/signs.py",
        sizes={"test": 600},
        metric="accuracy",
        blind="10 % of Add and 20 % of Compare: the most frequent answer",
        files=_files,
        load=loader(_files, _doc, required=("prompt", "answer", "task"), pictures=("images",)),
        prompts={"own": TaskPrompt(template="{prompt}", max_new_tokens=64)},
        default_prompt="own",
        scorers={"strict": strict_count, "official": strict_count},
        default_scorers=("strict",),
        gold_responses=lambda doc: (
            Response(text=doc.gold),
            Response(text=f"<think> The red box </think> <answer> {doc.gold} </answer>"),
        ),
        gold_label=lambda doc: doc.gold,
        chance=lambda doc: CHANCE[str(doc.columns["task"])],
        aggregates=micro_and("task", tuple(CHANCE)),
        groups=("task",),
        strata=("task",),
    )
