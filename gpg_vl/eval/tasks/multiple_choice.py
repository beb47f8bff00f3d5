"""MMMU and BLINK: multiple choice over one or several pictures."""

import ast
from pathlib import Path

import numpy as np

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
from gpg_vl.eval.scorers.lmms import lmms_letter
from gpg_vl.eval.scorers.mmmu import mmmu as mmmu_rule
from gpg_vl.eval.scorers.mmmu import mmmu_lmms, mmmu_vlmevalkit, strict_mmmu
from gpg_vl.eval.scorers.options import gold_letter, gold_letters
from gpg_vl.eval.scorers.strict import strict_choice
from gpg_vl.eval.scorers.vlmevalkit import vlmevalkit_choice
from gpg_vl.eval.statistics import Floats, Sample, mean_of
from gpg_vl.eval.task import THINK, Doc, Task, TaskPrompt, one_of_options

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# --- MMMU -------------------------------------------------------------------------------------------------------------

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DOMAIN = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
_INSTRUCTIONS = {
    "multiple-choice": "Answer with the option's letter from the given choices directly.",
    "open": "Answer the question using a single word or phrase.",
}


def mmmu() -> Task:
    """The task, for `python -m gpg_vl.eval mmmu`. The images stand in front, and the text names them `<image 1>`."""
    return Task(
        name="mmmu",
        version="1",
        description="MMMU: questions of 30 university subjects; options, and a few open ones",
        source="https://huggingface.co/datasets/lmms-lab/MMMU (Apache-2.0)",
        sizes={"validation": 900, "dev": 150},
        metric="accuracy",
        blind="1/options, about 25 %; 0 % on the open ones",
        files=lambda path: tables(path, name="MMMU", split="validation"),
        load=load_mmmu,
        prompts={
            "official": TaskPrompt(template="{prompt}\n\n{instruction}", max_new_tokens=1024),
            "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=2048),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
        },
        default_prompt="official",
        scorers={
            "strict": strict_mmmu,
            "official": mmmu_rule,
            "lmms": mmmu_lmms,
            "vlmevalkit": mmmu_vlmevalkit,
        },
        default_scorers=("strict", "official"),
        gold_responses=lambda doc: gold_letters(doc) if doc.example.choices else _open_golds(doc),
        # What they extract of an open answer need not be what the gold is normalised to.
        flawed=("official", "lmms", "vlmevalkit"),
        gold_label=lambda doc: gold_letter(doc) if doc.example.choices else "open",
        chance=one_of_options,
        aggregates={
            "micro": Sample.mean,
            **{domain: mean_of("domain", domain) for domain in DOMAINS},
        },
        groups=("domain",),
        strata=("subject",),
        resample_within=("domain",),
    )


def _open_golds(doc: Doc) -> tuple[Response, ...]:
    return tuple(Response(text=f"<answer>{gold}</answer>") for gold in doc.columns["golds"])


def load_mmmu(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """The questions in order, with the columns `subject` and `domain`. Raises UserError."""
    pictures = tuple(f"image_{number}" for number in range(1, 8))
    rows = rows_of(
        mmmu().files(path),
        required=("id", "question", "options", "answer", "question_type"),
        without=() if images else pictures,
        root=root,
    )
    return [
        _mmmu_doc(doc_id, row, place, images, pictures) for doc_id, (row, place) in enumerate(rows)
    ]


def _mmmu_doc(doc_id: int, row: Row, place: Place, images: bool, pictures: tuple[str, ...]) -> Doc:
    if row["question_type"] not in _INSTRUCTIONS:
        raise place.wrong("question_type", row["question_type"], ", ".join(_INSTRUCTIONS))
    # The options are a list, but written as the text of one.
    options = _literal(row["options"], "options", place)
    subject = str(row["id"]).partition("_")[2].rpartition("_")[0]
    prompt, choices = text_cell(row, "question", place), None
    if row["question_type"] == "multiple-choice":
        choices = option_cell({"options": options}, "options", place)
        if row["answer"] not in LETTERS[: len(choices)]:
            raise place.wrong("answer", row["answer"], ", ".join(LETTERS[: len(choices)]))
        prompt += "\n" + "\n".join(
            f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)
        )
        golds = [row["answer"]]
    else:
        golds = _golds(row["answer"])
    shown = [name for name in pictures if f"<{name.replace('_', ' ')}>" in prompt]
    return make_doc(
        doc_id,
        row,
        place,
        prompt=prompt,
        gold=golds[0],
        images=tuple(image_cell(row.get(name), name, place) for name in shown) if images else (),
        choices=choices,
        kind=subject,
        without=pictures,
        more={
            "subject": subject,
            "domain": _DOMAIN.get(subject, "other"),
            "golds": golds,
            "instruction": _INSTRUCTIONS[row["question_type"]],
        },
    )


def _golds(answer: object) -> list[str]:
    """The accepted answers of an open question: a text, or the text of a list of them."""
    text = str(answer)
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        value = text
    return [str(one) for one in value] if isinstance(value, list) and value else [text]


def _literal(cell: object, column: str, place: Place) -> object:
    if isinstance(cell, str) and len(cell) < 20_000:
        try:
            return ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    if isinstance(cell, list):
        return cell
    raise place.wrong(column, cell, "a list, or the text of one")


# --- BLINK ------------------------------------------------------------------------------------------------------------

SUBTASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)


def blink() -> Task:
    """The task, for `python -m gpg_vl.eval blink`. The headline is the mean of the 14 subtasks."""
    return Task(
        name="blink",
        version="1",
        description="BLINK: 14 perception tasks over one to four pictures, as multiple choice",
        source="https://huggingface.co/datasets/BLINK-Benchmark/BLINK (Apache-2.0)",
        sizes={"val": 1901},
        metric="accuracy, mean over subtasks",
        blind="1/options: 25 to 50 % by subtask",
        files=lambda path: tables(path, name="BLINK", split="val", folders=("", "data", *SUBTASKS)),
        load=load_blink,
        prompts={
            "official": TaskPrompt(
                template="{prompt}\nAnswer with the option's letter from the given choices directly.",
                max_new_tokens=1024,
            ),
            "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=2048),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
        },
        default_prompt="official",
        scorers={"strict": strict_choice, "lmms": lmms_letter, "vlmevalkit": vlmevalkit_choice},
        default_scorers=("strict", "lmms"),
        gold_responses=gold_letters,
        gold_label=gold_letter,
        chance=one_of_options,
        aggregates={
            "macro": _macro,
            "micro": Sample.mean,
            **{name: mean_of("sub_task", name) for name in SUBTASKS},
        },
        groups=("sub_task",),
        strata=("sub_task",),
        resample_within=("sub_task",),
    )


def _macro(sample: Sample) -> Floats:
    """The mean of the subtasks that are there, each weighing the same."""
    there = sorted(set(sample.columns["sub_task"].tolist()))
    mean_R: Floats = np.mean([sample.mean(sub_task=name) for name in there], axis=0)
    return mean_R


def load_blink(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
    """The questions in order, subtask by subtask. Raises UserError; the test split, whose answers are hidden, is one."""
    pictures = ("image_1", "image_2", "image_3", "image_4")
    rows = rows_of(
        blink().files(path),
        required=("sub_task", "prompt", "choices", "answer"),
        without=() if images else pictures,
        root=root,
    )
    return [
        _blink_doc(doc_id, row, place, images, pictures) for doc_id, (row, place) in enumerate(rows)
    ]


def _blink_doc(doc_id: int, row: Row, place: Place, images: bool, pictures: tuple[str, ...]) -> Doc:
    choices = option_cell(row, "choices", place)
    golds = tuple(f"({letter})" for letter in LETTERS[: len(choices)])
    for column, allowed in (("answer", golds), ("sub_task", SUBTASKS)):
        if row[column] not in allowed:
            raise place.wrong(column, row[column], ", ".join(allowed))
    there = [name for name in pictures if row.get(name)]
    return make_doc(
        doc_id,
        row,
        place,
        prompt=text_cell(row, "prompt", place),
        gold=row["answer"],
        images=tuple(image_cell(row[name], name, place) for name in there) if images else (),
        choices=choices,
        kind=row["sub_task"],
        without=pictures,
    )
