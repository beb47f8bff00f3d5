"""Mathematics with a figure: MathVista, MathVerse and Geometry3K.

The owners of MathVista and MathVerse extract answers with a language model; what can be scored without one is scored here,
so these numbers are a lower bound of theirs for models that answer in prose.
"""

import re
from collections.abc import Mapping
from functools import partial
from string import ascii_uppercase as LETTERS

from gpg_vl.answers import choice, quantity
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers import mathvista as mathvista_rules
from gpg_vl.eval.scorers.options import gold_choices, gold_letters
from gpg_vl.eval.scorers.strict import either, strict_quantity
from gpg_vl.eval.statistics import micro_and
from gpg_vl.eval.task import THINK, Doc, Task, TaskPrompt

PROMPTS = {
    "official": TaskPrompt(template="{prompt}", max_new_tokens=1024),
    "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=2048),
}


def _tag_gold(doc: Doc) -> tuple[Response, ...]:
    """The gold in tags, which every notation survives."""
    return (
        gold_letters(doc)
        if doc.example.choices
        else (Response(text=f"<answer>{doc.gold}</answer>"),)
    )


# --- MathVista --------------------------------------------------------------------------------------------------------

ANSWER_TYPES = ("text", "integer", "float", "list")
TASKS = (
    "figure question answering",
    "geometry problem solving",
    "math word problem",
    "textbook question answering",
    "visual question answering",
)


def _mathvista_doc(entry: Entry) -> Doc:
    """A question with the column `task`. A hidden answer, as in the test split, is no choice."""
    entry.one_of("answer_type", ANSWER_TYPES)
    gold, choices = entry.text("answer"), None
    if entry["question_type"] == "multi_choice":
        choices = entry.options("choices")
        if gold not in choices:
            raise entry.wrong("answer", "one of the choices")
        gold = f"({LETTERS[choices.index(gold)]})"

    metadata = entry["metadata"] if isinstance(entry["metadata"], Mapping) else {}
    task = str(metadata.get("task", ""))
    return entry.doc(
        prompt=entry.get("query") or _query(entry, choices),
        gold=gold,
        images=entry.pictures("decoded_image" if entry.get("decoded_image") else "image"),
        choices=choices,
        kind=task,
        without=("decoded_image",),
        more={"task": task},
    )


_HINTS = {
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float": "requiring a floating-point number with {} and provide the final value, e.g., {}, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
_PLACES = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}


def _query(entry: Entry, choices: list[str] | None) -> str:
    """The ready prompt, which the layout of GitHub leaves to a script."""
    if choices:
        hint = "and provide the correct option letter, e.g., A, B, C, D, at the end."
    else:
        hint = _HINTS.get(entry["answer_type"], "at the end.")
        hint = hint.format(*_PLACES.get(int(entry.get("precision") or 2), _PLACES[2]))
    unit = f" (Unit: {entry['unit']})" if entry.get("unit") else ""
    query = f"Hint: Please answer the question {hint}\nQuestion: {entry.text('question')}{unit}"

    listed = (f"({letter}) {text}" for letter, text in zip(LETTERS, choices or (), strict=False))
    return "\n".join((query, "Choices:", *listed)) if choices else query


mathvista_files = partial(
    tables,
    name="MathVista",
    split="testmini",
    layouts=(("testmini.json",), ("data/testmini.json",)),  # as on GitHub
)
load_mathvista = loader(
    mathvista_files,
    _mathvista_doc,
    required=("question", "answer", "question_type", "answer_type", "choices", "metadata"),
    pictures=("decoded_image",),
)


def _bare(doc: Doc) -> tuple[Response, ...]:
    """The gold number, or the text of the option, by itself: what the harnesses read."""
    return gold_choices(doc)[2:] if doc.example.choices else (Response(text=doc.gold),)


def mathvista() -> Task:
    """The task, for `python -m gpg_vl.eval mathvista`; its `query` column is the ready prompt."""
    return Task(
        name="mathvista",
        description="MathVista testmini: figures, geometry, word problems; options, numbers, texts and lists",
        source="https://huggingface.co/datasets/AI4Math/MathVista (CC BY-SA 4.0)",
        sizes={"testmini": 1000},
        metric="accuracy; the published one extracts answers with a language model",
        blind="1/options on multiple choice, 0 % elsewhere",
        files=mathvista_files,
        load=load_mathvista,
        prompts=PROMPTS,
        default_prompt="official",
        scorers={
            "strict": mathvista_rules.strict,
            "lmms_no_model": mathvista_rules.lmms_no_model,
            "vlmevalkit": mathvista_rules.vlmevalkit,
        },
        default_scorers=("strict", "lmms_no_model"),
        gold_responses=lambda doc: (*_tag_gold(doc), *_bare(doc)),
        flawed=("lmms_no_model",),  # without its model it reads no letters and no lists
        aggregates=micro_and("task", TASKS),
        groups=("task",),
        strata=("task",),
    )


# --- MathVerse --------------------------------------------------------------------------------------------------------

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
_CHOICE = re.compile(r"^\s*\(?([A-H])\s*[:.)]\s*(\S.*?)\s*$", re.MULTILINE)


def _mathverse_doc(entry: Entry) -> Doc:
    # Where the question is in the picture, only the ready prompt has text.
    prompt = entry.text("query_wo" if entry.get("query_wo") else "question")
    gold, choices = entry.text("answer"), None
    if entry["question_type"] == "multi-choice":
        if not re.fullmatch("[A-H]", gold):
            raise entry.wrong("answer", "the letter of an option")
        choices = _listed_choices(str(entry.get("question_for_eval") or prompt), gold)
        gold = f"({gold})"
    return entry.doc(
        prompt=prompt,
        gold=gold,
        images=entry.pictures("image"),
        choices=choices,
        kind=entry["problem_version"],
    )


def _listed_choices(question: str, gold: str) -> list[str]:
    """The option texts behind "Choices:", one per line; the letters themselves where they cannot be told apart."""
    found = _CHOICE.findall(question.rpartition("Choices:")[2])
    letters = "".join(letter for letter, _ in found)
    if len(found) > 1 and LETTERS.startswith(letters) and gold in letters:
        return [text for _, text in found]
    return list(LETTERS[: max(4, LETTERS.index(gold) + 1)])


mathverse_files = partial(tables, name="MathVerse", split="testmini")
load_mathverse = loader(
    mathverse_files,
    _mathverse_doc,
    required=("problem_index", "problem_version", "question", "answer", "question_type"),
)


def mathverse() -> Task:
    """The task, for `python -m gpg_vl.eval mathverse`. A problem comes in five versions, and the bootstrap draws problems."""
    return Task(
        name="mathverse",
        description="MathVerse testmini: 788 geometry and function problems, each given in five versions from text to picture",
        source="https://huggingface.co/datasets/AI4Math/MathVerse (MIT)",
        sizes={"testmini": 3940},
        metric="accuracy; the published one is judged by a language model",
        blind="1/options on multiple choice, 0 % elsewhere",
        files=mathverse_files,
        load=load_mathverse,
        prompts=PROMPTS,
        default_prompt="official",
        scorers={"strict": either(choice.judge, quantity.judge)},
        default_scorers=("strict",),
        gold_responses=_tag_gold,
        aggregates=micro_and("problem_version", VERSIONS),
        groups=("problem_version",),
        strata=("problem_version",),
        cluster="problem_index",
    )


# --- Geometry3K -------------------------------------------------------------------------------------------------------

_EASY_R1 = (
    "{prompt} You FIRST think about the reasoning process as an internal monologue and then provide "
    "the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final "
    "answer MUST BE put in \\boxed{}."
)


def _geometry3k_doc(entry: Entry) -> Doc:
    """A question; `<image>` in a problem stands for its figure."""
    return entry.doc(
        prompt=entry.text("problem"), gold=entry.text("answer"), images=entry.pictures("images")
    )


geometry3k_files = partial(tables, name="Geometry3K", split="test")
load_geometry3k = loader(
    geometry3k_files,
    _geometry3k_doc,
    required=("images", "problem", "answer"),
    pictures=("images",),
)


def geometry3k() -> Task:
    """The task, for `python -m gpg_vl.eval geometry3k` (lmms-eval's task of that name is a remix with four choices)."""
    return Task(
        name="geometry3k",
        description="Geometry3K: find a length, an angle or an area in a figure",
        source="https://huggingface.co/datasets/hiyouga/geometry3k (MIT)",
        sizes={"test": 601, "validation": 300},
        metric="accuracy",
        blind="0 %: answers are open",
        files=geometry3k_files,
        load=load_geometry3k,
        prompts={
            "easyr1": TaskPrompt(template=_EASY_R1, max_new_tokens=2048),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
        },
        default_prompt="easyr1",
        scorers={"strict": strict_quantity},
        default_scorers=("strict",),
        gold_responses=lambda doc: (
            Response(text=f"<think>so</think>\\boxed{{{doc.gold}}}"),
            Response(text=f"<answer>{doc.gold}</answer>"),
        ),
    )
