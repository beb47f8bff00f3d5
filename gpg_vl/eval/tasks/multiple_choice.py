"""MMMU and BLINK: multiple choice over one or several pictures."""

from dataclasses import replace
from functools import partial
from string import ascii_uppercase as LETTERS

import numpy as np

from gpg_vl.answers.text.python_literal import python_literal
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import lmms_letter
from gpg_vl.eval.scorers.mmmu import mmmu as mmmu_rule
from gpg_vl.eval.scorers.mmmu import mmmu_lmms, mmmu_vlmevalkit, strict_mmmu
from gpg_vl.eval.scorers.options import gold_letter, gold_letters
from gpg_vl.eval.scorers.strict import strict_choice
from gpg_vl.eval.scorers.vlmevalkit import vlmevalkit_choice
from gpg_vl.eval.statistics import Floats, Sample, micro_and
from gpg_vl.eval.task import THINK, Doc, Task, TaskPrompt

PROMPTS = {
    "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=2048),
    "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
}

# --- MMMU -------------------------------------------------------------------------------------------------------------

_SUBJECTS = """
Art and Design: Art Art_Theory Design Music
Business: Accounting Economics Finance Manage Marketing
Science: Biology Chemistry Geography Math Physics
Health and Medicine: Basic_Medical_Science Clinical_Medicine Pharmacy Public_Health
Health and Medicine: Diagnostics_and_Laboratory_Medicine
Humanities and Social Science: History Literature Sociology Psychology
Tech and Engineering: Agriculture Architecture_and_Engineering Computer_Science Electronics
Tech and Engineering: Energy_and_Power Materials Mechanical_Engineering
"""
_DOMAIN = {
    subject: domain
    for domain, subjects in (line.split(": ") for line in _SUBJECTS.strip().splitlines())
    for subject in subjects.split()
}
DOMAINS = tuple(dict.fromkeys(_DOMAIN.values()))
_INSTRUCTIONS = {
    "multiple-choice": "Answer with the option's letter from the given choices directly.",
    "open": "Answer the question using a single word or phrase.",
}


_PICTURES = tuple(f"image_{number}" for number in range(1, 8))


def _mmmu_doc(entry: Entry) -> Doc:
    """A question with the columns `subject` and `domain`; the text names its images: `<image 1>`."""
    kind = entry.one_of("question_type", _INSTRUCTIONS)
    # The options are a list, but written as the text of one.
    entry = replace(entry, row={**entry.row, "options": _literal(entry)})
    subject = str(entry["id"]).partition("_")[2].rpartition("_")[0]

    prompt, choices, golds = entry.text("question"), None, _golds(entry["answer"])
    if kind == "multiple-choice":
        choices = entry.options("options")
        golds = [entry.one_of("answer", tuple(LETTERS[: len(choices)]))]
        lines = (f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
        prompt = "\n".join((prompt, *lines))

    return entry.doc(
        prompt=prompt,
        gold=golds[0],
        images=entry.pictures(
            *(name for name in _PICTURES if f"<{name.replace('_', ' ')}>" in prompt)
        ),
        choices=choices,
        kind=subject,
        without=_PICTURES,
        more={
            "subject": subject,
            "domain": _DOMAIN.get(subject, "other"),
            "golds": golds,
            "instruction": _INSTRUCTIONS[kind],
        },
    )


def _golds(answer: object) -> list[str]:
    """The accepted answers of an open question: a text, or the text of a list of them."""
    text = str(answer)
    value = python_literal(text) if text.startswith("[") else None
    return [str(one) for one in value] if isinstance(value, list) and value else [text]


def _literal(entry: Entry) -> list[object]:
    cell = entry["options"]
    short = isinstance(cell, str) and len(cell) < 20_000
    value = python_literal(cell) if short else cell
    if not isinstance(value, list):
        raise entry.wrong("options", "a list, or the text of one")
    return value


def _mmmu_responses(doc: Doc) -> tuple[Response, ...]:
    """The gold letter, or every accepted answer of an open question in tags."""
    if doc.example.choices:
        return gold_letters(doc)
    return tuple(Response(text=f"<answer>{gold}</answer>") for gold in doc.columns["golds"])


mmmu_files = partial(tables, name="MMMU", split="validation")
load_mmmu = loader(
    mmmu_files,
    _mmmu_doc,
    required=("id", "question", "options", "answer", "question_type"),
    pictures=_PICTURES,
)


def mmmu() -> Task:
    """The task, for `python -m gpg_vl.eval mmmu`. The images are in front, and the text names them `<image 1>`."""
    asked = TaskPrompt(template="{prompt}\n\n{instruction}", max_new_tokens=1024)
    # What the published rules extract of an open answer need not be what the gold is normalised to.
    published = {"official": mmmu_rule, "lmms": mmmu_lmms, "vlmevalkit": mmmu_vlmevalkit}
    return Task(
        name="mmmu",
        description="MMMU: questions of 30 university subjects; options, and a few open ones",
        source="https://huggingface.co/datasets/lmms-lab/MMMU (Apache-2.0)",
        sizes={"validation": 900, "dev": 150},
        metric="accuracy",
        blind="1/options, about 25 %; 0 % on the open ones",
        files=mmmu_files,
        load=load_mmmu,
        prompts={"official": asked, **PROMPTS},
        default_prompt="official",
        scorers={"strict": strict_mmmu, **published},
        gold_responses=_mmmu_responses,
        flawed=tuple(published),
        gold_label=lambda doc: gold_letter(doc) if doc.example.choices else "open",
        aggregates=micro_and("domain", DOMAINS),
        groups=("domain",),
        strata=("subject",),
        resample_within=("domain",),
    )


# --- BLINK ------------------------------------------------------------------------------------------------------------

_SUBTASKS = """
Art_Style Counting Forensic_Detection Functional_Correspondence IQ_Test Jigsaw Multi-view_Reasoning
Object_Localization Relative_Depth Relative_Reflectance Semantic_Correspondence Spatial_Relation
Visual_Correspondence Visual_Similarity
"""
SUBTASKS = tuple(_SUBTASKS.split())
_BLINK_PICTURES = ("image_1", "image_2", "image_3", "image_4")


def _blink_doc(entry: Entry) -> Doc:
    choices = entry.options("choices")
    return entry.doc(
        prompt=entry.text("prompt"),
        # In the test split, whose answers are hidden, it is none of these.
        gold=entry.one_of("answer", [f"({letter})" for letter in LETTERS[: len(choices)]]),
        images=entry.pictures(*(name for name in _BLINK_PICTURES if entry.get(name))),
        choices=choices,
        kind=entry.one_of("sub_task", SUBTASKS),
        without=_BLINK_PICTURES,
    )


blink_files = partial(tables, name="BLINK", split="val", folders=("", "data", *SUBTASKS))
load_blink = loader(
    blink_files,
    _blink_doc,
    required=("sub_task", "prompt", "choices", "answer"),
    pictures=_BLINK_PICTURES,
)


def _macro(sample: Sample) -> Floats:
    """The mean of the subtasks that are there, each weighing the same."""
    there = sorted(set(sample.columns["sub_task"].tolist()))
    mean_R: Floats = np.mean([sample.mean(sub_task=name) for name in there], axis=0)
    return mean_R


def blink() -> Task:
    """The task, for `python -m gpg_vl.eval blink`. The headline is the mean of the 14 subtasks."""
    asked = "{prompt}\nAnswer with the option's letter from the given choices directly."
    return Task(
        name="blink",
        description="BLINK: 14 perception tasks over one to four pictures, as multiple choice",
        source="https://huggingface.co/datasets/BLINK-Benchmark/BLINK (Apache-2.0)",
        sizes={"val": 1901},
        metric="accuracy, mean over subtasks",
        blind="1/options: 25 to 50 % by subtask",
        files=blink_files,
        load=load_blink,
        prompts={"official": TaskPrompt(template=asked, max_new_tokens=1024), **PROMPTS},
        default_prompt="official",
        scorers={"strict": strict_choice, "lmms": lmms_letter, "vlmevalkit": vlmevalkit_choice},
        default_scorers=("strict", "lmms"),
        gold_responses=gold_letters,
        gold_label=gold_letter,
        aggregates={"macro": _macro, **micro_and("sub_task", SUBTASKS)},
        groups=("sub_task",),
        strata=("sub_task",),
        resample_within=("sub_task",),
    )
