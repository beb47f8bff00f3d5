"""The two test sets of R1-V: GEOQA (geometry, 754 questions) and SuperCLEVR-200 (counting).

Both are JSONL files with `image_path`, `question` and `ground_truth`; the pictures come from Geo170K and from the
SuperCLEVR release, and are needed only when a model answers. No other owner's rule exists, so `official` is `r1v`.

Of GEOQA's golds 77 hold a root or π, which the published rule cannot read (see `gpg_vl.eval.scorers.r1v`): 17 parse to
nothing and are never right, 60 to their bare coefficient. A model that answers in LaTeX reaches at most 89.8 %; the ceiling
that is printed is higher, as it counts answers in the golds' own notation, which the rule misreads as it misreads the gold.
"""

from functools import partial

from gpg_vl.answers.count import parse_count
from gpg_vl.answers.quantity import parse_quantity
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.r1v import r1v_count, r1v_math
from gpg_vl.eval.scorers.strict import strict_count, strict_quantity
from gpg_vl.eval.statistics import micro_and
from gpg_vl.eval.task import Doc, Task, TaskPrompt

REQUIRED = ("image_path", "question", "ground_truth")
FORMS = ("degree", "root", "pi", "other")
_THINK = "Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."


def _geoqa_doc(entry: Entry) -> Doc:
    return _doc(entry, entry.text("ground_truth"))


def _superclevr_doc(entry: Entry) -> Doc:
    count = parse_count(str(entry["ground_truth"]))
    if count is None:
        raise entry.wrong("ground_truth", "a whole number")
    return _doc(entry, str(count))


def _doc(entry: Entry, gold: str) -> Doc:
    """A question with the column `form`, what its gold is made of."""
    return entry.doc(
        prompt=entry.text("question"),
        gold=gold,
        images=entry.pictures("image_path"),
        more={"form": gold_form(gold)},
    )


def gold_form(gold: str) -> str:
    """`degree`, `root`, `pi` or `other`: what decides whether the published rule can read a gold."""
    signs = {"root": ("√", r"\sqrt"), "pi": ("π", r"\pi"), "degree": ("°", r"\circ")}
    return next(
        (form for form, marks in signs.items() if any(mark in gold for mark in marks)), "other"
    )


def written_forms(doc: Doc) -> tuple[Response, ...]:
    """The gold quantity as the benchmark writes it, bare and in tags, and in LaTeX."""
    quantity = parse_quantity(doc.gold)
    latex = (
        ()
        if quantity is None
        else (f"<think>so</think> <answer> ${quantity.expression}$ </answer>",)
    )
    return tuple(
        Response(text=text)
        for text in (doc.gold, f"<think>so</think> <answer> {doc.gold} </answer>", *latex)
    )


geoqa_files = partial(tables, name="GEOQA", split="test", layouts=(("geoqa_test_prompts.jsonl",),))
superclevr_files = partial(
    tables,
    name="SuperCLEVR",
    split="test",
    layouts=(("superclevr_test200_counting_problems.jsonl",),),
)


def geoqa() -> Task:
    """The task, for `python -m gpg_vl.eval geoqa`."""
    return Task(
        name="geoqa",
        description="GEOQA: geometry problems with a figure; numbers, degrees, lengths and expressions",
        source="https://github.com/Deep-Agent/R1-V, geoqa_test_prompts.jsonl; images of Luckyjhg/Geo170K (no licence stated)",
        sizes={"test": 754},
        metric="accuracy",
        blind="0 %: answers are open",
        files=geoqa_files,
        load=loader(geoqa_files, _geoqa_doc, required=REQUIRED),
        prompts={
            # One blank before the instruction; the training prompt has two.
            "r1v": TaskPrompt(template="{prompt} " + _THINK, max_new_tokens=1024),
            "r1v_train": TaskPrompt(template="{prompt}  " + _THINK, max_new_tokens=1024),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
        },
        default_prompt="r1v",
        scorers={"strict": strict_quantity, "official": r1v_math, "r1v": r1v_math},
        gold_responses=written_forms,
        flawed=("official", "r1v"),
        aggregates=micro_and("form", FORMS),
        groups=("form",),
        strata=("form",),
    )


def superclevr() -> Task:
    """The task, for `python -m gpg_vl.eval superclevr`."""
    return Task(
        name="superclevr",
        description="SuperCLEVR-200: how many items are in the picture",
        source="https://github.com/Deep-Agent/R1-V, superclevr_test200_counting_problems.jsonl (no licence stated)",
        sizes={"test": 200},
        metric="accuracy",
        blind="12.5 %: counts are 3 to 10",
        files=superclevr_files,
        load=loader(superclevr_files, _superclevr_doc, required=REQUIRED),
        prompts={
            "r1v": TaskPrompt(template="{prompt} First o" + _THINK[1:], max_new_tokens=256),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=256),
        },
        default_prompt="r1v",
        scorers={"strict": strict_count, "official": r1v_count, "r1v": r1v_count},
        gold_responses=lambda doc: (
            Response(text=doc.gold),
            Response(text=f"<think>1, 2</think><answer>{doc.gold}</answer>"),
        ),
        gold_label=lambda doc: doc.gold,
        chance=lambda doc: 1 / 8,
    )
