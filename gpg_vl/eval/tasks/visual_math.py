"""Mathematics with a figure: MathVista, MathVerse and Geometry3K.

The owners of MathVista and MathVerse extract answers with a language model; what can be scored without one is scored here,
so these numbers are a lower bound of theirs for models that answer in prose.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from gpg_vl.answers import choice, quantity
from gpg_vl.eval.loading import (
    Place,
    Row,
    image_cell,
    make_doc,
    option_cell,
    rows_of,
    tables,
    text_cell,
)
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers import mathvista as mathvista_rules
from gpg_vl.eval.scorers.options import gold_choices, gold_letters
from gpg_vl.eval.scorers.strict import either, strict_quantity
from gpg_vl.eval.statistics import Sample, mean_of
from gpg_vl.eval.task import THINK, Doc, Task, TaskPrompt, one_of_options

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPTS = {
    "official": TaskPrompt(template="{prompt}", max_new_tokens=1024),
    "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=2048),
}


def _tagged(doc: Doc) -> tuple[Response, ...]:
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


def mathvista() -> Task:
    """The task, for `python -m gpg_vl.eval mathvista`; its `query` column is the ready prompt."""
    return Task(
        name="mathvista",
        version="1",
        description="MathVista testmini: figures, geometry, word problems; options, numbers, texts and lists",
        source="https://huggingface.co/datasets/AI4Math/MathVista (CC BY-SA 4.0)",
        sizes={"testmini": 1000},
        metric="accuracy; the published one extracts answers with a language model",
        blind="1/options on multiple choice, 0 % elsewhere",
        files=lambda path: tables(
            path,
            name="MathVista",
            split="testmini",
            layouts=(("testmini.json",), ("data/testmini.json",)),  # as on GitHub
        ),
        load=load_mathvista,
        prompts=PROMPTS,
        default_prompt="official",
        scorers={
            "strict": mathvista_rules.strict,
            "lmms_no_model": mathvista_rules.lmms_no_model,
            "vlmevalkit": mathvista_rules.vlmevalkit,
        },
        default_scorers=("strict", "lmms_no_model"),
        gold_responses=lambda doc: (*_tagged(doc), *_bare(doc)),
        flawed=("lmms_no_model",),  # without its model it reads no letters and no lists
        chance=one_of_options,
        aggregates={"micro": Sample.mean, **{task: mean_of("task", task) for task in TASKS}},
        groups=("task",),
        strata=("task",),
    )


def _bare(doc: Doc) -> tuple[Response, ...]:
    """The gold number, or the text of the option, by itself: what the harnesses read."""
    return gold_choices(doc)[2:] if doc.example.choices else (Response(text=doc.gold),)


def load_mathvista(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """The questions in order. Raises UserError; the test split, whose answers are hidden, is one."""
    required = ("question", "answer", "question_type", "answer_type", "choices", "metadata")
    pictures = ("decoded_image",)
    rows = rows_of(
        mathvista().files(path), required=required, without=() if images else pictures, root=root
    )
    return [_mathvista_doc(doc_id, row, place, images) for doc_id, (row, place) in enumerate(rows)]


def _mathvista_doc(doc_id: int, row: Row, place: Place, images: bool) -> Doc:
    if row["answer_type"] not in ANSWER_TYPES:
        raise place.wrong("answer_type", row["answer_type"], ", ".join(ANSWER_TYPES))
    gold, choices = text_cell(row, "answer", place), None
    if row["question_type"] == "multi_choice":
        choices = option_cell(row, "choices", place)
        if gold not in choices:
            raise place.wrong("answer", gold, "one of the choices")
        gold = f"({LETTERS[choices.index(gold)]})"
    metadata = row["metadata"] if isinstance(row["metadata"], Mapping) else {}
    return make_doc(
        doc_id,
        row,
        place,
        prompt=row.get("query") or _query(row, place, choices),
        gold=gold,
        images=(image_cell(row.get("decoded_image") or row.get("image"), "image", place),)
        if images
        else (),
        choices=choices,
        kind=str(metadata.get("task", "")),
        without=("decoded_image",),
        more={"task": str(metadata.get("task", ""))},
    )


_HINTS = {
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float": "requiring a floating-point number with {} and provide the final value, e.g., {}, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
_PLACES = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}


def _query(row: Row, place: Place, choices: list[str] | None) -> str:
    """The ready prompt, which the layout of GitHub leaves to a script."""
    if choices:
        hint = "and provide the correct option letter, e.g., A, B, C, D, at the end."
    else:
        hint = _HINTS.get(row["answer_type"], "at the end.")
        hint = hint.format(*_PLACES.get(int(row.get("precision") or 2), _PLACES[2]))
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    listed = "".join(
        f"\n({letter}) {text}" for letter, text in zip(LETTERS, choices or (), strict=False)
    )
    question = text_cell(row, "question", place)
    return f"Hint: Please answer the question {hint}\nQuestion: {question}{unit}" + (
        f"\nChoices:{listed}" if listed else ""
    )


# --- MathVerse --------------------------------------------------------------------------------------------------------

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
_CHOICE = re.compile(r"^\s*\(?([A-H])\s*[:.)]\s*(\S.*?)\s*$", re.MULTILINE)


def mathverse() -> Task:
    """The task, for `python -m gpg_vl.eval mathverse`. A problem comes in five versions, and the bootstrap draws problems."""
    return Task(
        name="mathverse",
        version="1",
        description="MathVerse testmini: 788 geometry and function problems, each told in five versions from text to picture",
        source="https://huggingface.co/datasets/AI4Math/MathVerse (MIT)",
        sizes={"testmini": 3940},
        metric="accuracy; the published one is judged by a language model",
        blind="1/options on multiple choice, 0 % elsewhere",
        files=lambda path: tables(path, name="MathVerse", split="testmini"),
        load=load_mathverse,
        prompts=PROMPTS,
        default_prompt="official",
        scorers={"strict": either(choice.judge, quantity.judge)},
        default_scorers=("strict",),
        gold_responses=_tagged,
        chance=one_of_options,
        aggregates={
            "micro": Sample.mean,
            **{version: mean_of("problem_version", version) for version in VERSIONS},
        },
        groups=("problem_version",),
        strata=("problem_version",),
        cluster="problem_index",
    )


def load_mathverse(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """The questions in order. Raises UserError."""
    required = ("problem_index", "problem_version", "question", "answer", "question_type")
    rows = rows_of(
        mathverse().files(path), required=required, without=() if images else ("image",), root=root
    )
    return [_mathverse_doc(doc_id, row, place, images) for doc_id, (row, place) in enumerate(rows)]


def _mathverse_doc(doc_id: int, row: Row, place: Place, images: bool) -> Doc:
    gold, choices = text_cell(row, "answer", place), None
    # Where the question stands in the picture, only the ready prompt has text.
    prompt = text_cell({"prompt": row.get("query_wo") or row["question"]}, "prompt", place)
    if row["question_type"] == "multi-choice":
        if not re.fullmatch("[A-H]", gold):
            raise place.wrong("answer", gold, "the letter of an option")
        choices = _listed_choices(str(row.get("question_for_eval") or prompt), gold)
        gold = f"({gold})"
    return make_doc(
        doc_id,
        row,
        place,
        prompt=prompt,
        gold=gold,
        images=(image_cell(row["image"], "image", place),) if images else (),
        choices=choices,
        kind=row["problem_version"],
    )


def _listed_choices(question: str, gold: str) -> list[str]:
    """The option texts behind "Choices:", one per line; the letters themselves where they cannot be told apart."""
    found = _CHOICE.findall(question.rpartition("Choices:")[2])
    letters = "".join(letter for letter, _ in found)
    if len(found) > 1 and LETTERS.startswith(letters) and gold in letters:
        return [text for _, text in found]
    return list(LETTERS[: max(4, LETTERS.index(gold) + 1)])


# --- Geometry3K -------------------------------------------------------------------------------------------------------


def geometry3k() -> Task:
    """The task, for `python -m gpg_vl.eval geometry3k` (lmms-eval's task of that name is a remix with four choices)."""
    return Task(
        name="geometry3k",
        version="1",
        description="Geometry3K: find a length, an angle or an area in a figure",
        source="https://huggingface.co/datasets/hiyouga/geometry3k (MIT)",
        sizes={"test": 601, "validation": 300},
        metric="accuracy",
        blind="0 %: answers are open",
        files=lambda path: tables(path, name="Geometry3K", split="test"),
        load=load_geometry3k,
        prompts={
            "easyr1": TaskPrompt(
                template="{prompt} You FIRST think about the reasoning process as an internal monologue and then provide the "
                "final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE "
                "put in \\boxed{}.",
                max_new_tokens=2048,
            ),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
        },
        default_prompt="easyr1",
        scorers={"strict": strict_quantity},
        default_scorers=("strict",),
        gold_responses=lambda doc: (
            Response(text=f"<think>so</think>\\boxed{{{doc.gold}}}"),
            Response(text=f"<answer>{doc.gold}</answer>"),
        ),
        chance=lambda doc: 0.0,
        aggregates={"micro": Sample.mean},
    )


def load_geometry3k(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """The questions in order; `<image>` in a problem stands for its figure. Raises UserError."""
    rows = rows_of(
        geometry3k().files(path),
        required=("images", "problem", "answer"),
        without=() if images else ("images",),
        root=root,
    )
    return [
        make_doc(
            doc_id,
            row,
            place,
            prompt=text_cell(row, "problem", place),
            gold=text_cell(row, "answer", place),
            images=tuple(image_cell(cell, "images", place) for cell in row["images"])
            if images
            else (),
        )
        for doc_id, (row, place) in enumerate(rows)
    ]
