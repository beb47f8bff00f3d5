"""Two boxes whose rows are added or compared: the held-out part of `data_recipes/places.py`, a world of two steps.

`official` is `strict`: there is no other owner.
"""

from functools import partial

from gpg_vl.answers.count import parse_count
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import strict_count
from gpg_vl.eval.statistics import micro_and
from gpg_vl.eval.task import Doc, Task, TaskPrompt

CHANCE = {"Add": 0.233, "Compare": 0.431}
"""Of the most frequent answer, which is 5 and 4: counted over all pairs of cells (tests/test_places.py)."""
_files = partial(tables, name="places", split="test")


def _doc(entry: Entry) -> Doc:
    if parse_count(entry.text("answer")) is None:
        raise entry.wrong("answer", "a whole number")
    return entry.doc(
        prompt=entry.text("prompt"),
        gold=entry.text("answer"),
        images=entry.pictures("images"),
        without=("images",),
    )


def places() -> Task:
    """The task, for `python -m gpg_vl.eval places`."""
    return Task(
        name="places",
        description="Two boxes whose rows are added or compared, with a line of thought before the answer",
        source="drawn by data_recipes/places.py",
        sizes={"test": 600},
        metric="accuracy",
        blind="23 % of Add and 43 % of Compare: the most frequent answer",
        files=_files,
        load=loader(_files, _doc, required=("prompt", "answer", "task"), pictures=("images",)),
        prompts={"own": TaskPrompt(template="{prompt}", max_new_tokens=64)},
        default_prompt="own",
        scorers={"strict": strict_count, "official": strict_count},
        default_scorers=("strict",),
        gold_responses=lambda doc: (
            Response(text=doc.gold),
            Response(text=f"<think> 1 2 red box pink ball </think> <answer> {doc.gold} </answer>"),
        ),
        gold_label=lambda doc: doc.gold,
        chance=lambda doc: CHANCE[str(doc.columns["task"])],
        aggregates=micro_and("task", tuple(CHANCE)),
        groups=("task",),
        strata=("task",),
    )
