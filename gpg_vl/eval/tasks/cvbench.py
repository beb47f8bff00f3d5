"""CV-Bench (nyu-visionx/CV-Bench, Apache-2.0): counting, relations, depth and distance as multiple choice.

2638 rows: Count 788, Relation 650, Depth 600, Distance 600; images of ADE20K, COCO (2D) and Omni3D (3D). From the
Cambrian-1 paper, arXiv:2406.16860. Two single numbers are in use, and neither may be compared with the other:

- `official`, the data card's formula: half the mean of the ADE20K and COCO accuracies plus half the Omni3D accuracy;
- `micro`, right answers over all rows, which GPG, VisualThinker and lmms-eval print as the total.
"""

from dataclasses import replace
from functools import partial
from string import ascii_uppercase

import numpy as np

from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.scorers.cambrian import cambrian
from gpg_vl.eval.scorers.lmms import lmms_letter, lmms_reasoning
from gpg_vl.eval.scorers.options import gold_choices, gold_letter
from gpg_vl.eval.scorers.strict import strict_choice
from gpg_vl.eval.scorers.visualthinker import visualthinker
from gpg_vl.eval.scorers.vlmevalkit import vlmevalkit_choice
from gpg_vl.eval.statistics import Aggregate, Floats, Sample, mean_of
from gpg_vl.eval.task import Doc, Task, TaskPrompt

KINDS = ("2D", "3D")
TASKS = ("Count", "Relation", "Depth", "Distance")
SOURCES = ("ADE20K", "COCO", "Omni3D")
DRAWN = {"drawn 2D bright": "ADE20K", "drawn 2D dark": "COCO", "drawn 3D": "Omni3D"}
"""Sources of scenes that were drawn, each with the source whose place it takes in the formula. No
score is reported under the name of a source that gave no picture."""
REQUIRED = ("type", "task", "choices", "answer", "prompt", "source")
LAYOUTS = (
    ("test_2d.parquet", "test_3d.parquet"),
    ("test.parquet",),
    ("test_2d.jsonl", "test_3d.jsonl"),
    ("test.jsonl",),
)

_CAMBRIAN = TaskPrompt(
    template="{prompt}\nAnswer with the option's letter from the given choices directly.",
    max_new_tokens=512,
)
PROMPTS = {
    "official": _CAMBRIAN,
    "cambrian": _CAMBRIAN,
    "lmms": TaskPrompt(
        template="Note: You only need to respond with {letters} without providing any additional "
        "information.\n\n{prompt}",
        system="You are a helpful assistant.",
        max_new_tokens=1024,
    ),
    "visualthinker": TaskPrompt(
        template="{prompt}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> "
        "tags.",
        max_new_tokens=1024,
    ),
    # For base checkpoints: bare text without roles, which ends inside the reasoning.
    # NOTE: the original has the image and then the word <image>; a mark stands for the image, so here the word is lost.
    "visualthinker_base": TaskPrompt(
        template="<image>A conversation between User and Assistant. The user asks a question about the image, and the "
        "Assistant solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer.\nUser: {prompt} \nAssistant: Let me solve this step by step.\n",
        chat="plain",
        prefill="<think>",
        max_new_tokens=1024,
    ),
    "lmms_reasoning": TaskPrompt(
        template="{prompt}",
        system="You are a helpful assistant. When user asks a question, your response must include two parts: first, "
        "reasoning process enclosed in <analysis>...</analysis> tags, then final answer enclosed in "
        "<answer>...</answer> tags.Please provide a clear, concise response within <answer> </answer> tags that directly "
        "addresses to question.",
        max_new_tokens=49152,
    ),
    # What VLMEvalKit's Qwen2-VL wrapper asks instead of the benchmark's own prompt.
    "vlmevalkit": TaskPrompt(
        template="Question: {question}\nOptions:\n{options}\nPlease select the correct answer from the options above.",
        max_new_tokens=2048,
    ),
    "plain": TaskPrompt(template="{prompt}", max_new_tokens=1024),
}


SCORERS = {
    "strict": strict_choice,
    "official": cambrian,
    "cambrian": cambrian,
    "lmms": lmms_letter,
    "lmms_reasoning": lmms_reasoning,
    "vlmevalkit": vlmevalkit_choice,
    "visualthinker": visualthinker,
}

# --- aggregates: accuracies in [0, 1], one per resample -------------------------------------------------------------


def two_d(sample: Sample) -> Floats:
    """Mean of the two source accuracies, each source weighing the same (data card)."""
    parts = _in_formula(sample)
    return (parts.mean(source="ADE20K") + parts.mean(source="COCO")) / 2


def three_d(sample: Sample) -> Floats:
    return _in_formula(sample).mean(source="Omni3D")


def _in_formula(sample: Sample) -> Sample:
    """The sample with drawn sources called as those whose place they take."""
    named = [DRAWN.get(str(name), str(name)) for name in sample.columns["source"]]
    return replace(sample, columns={**sample.columns, "source": np.array(named, dtype=np.str_)})


def official(sample: Sample) -> Floats:
    """1/2 ((ADE20K + COCO)/2 + Omni3D): the data card, and Cambrian-1 appendix C."""
    return (two_d(sample) + three_d(sample)) / 2


AGGREGATES: dict[str, Aggregate] = {
    "official": official,
    "micro": Sample.mean,
    "2D": two_d,
    "3D": three_d,
    **{name: mean_of("task", name) for name in TASKS},
    **{name: mean_of("source", name) for name in SOURCES},
}


# --- data -----------------------------------------------------------------------------------------------------------


def _doc(entry: Entry) -> Doc:
    for column, allowed in (("type", KINDS), ("task", TASKS), ("source", (*SOURCES, *DRAWN))):
        entry.one_of(column, allowed)

    # An image is a picture in the column `image`, or the name of a file, there or in `filename`.
    choices = entry.options("choices")
    return entry.doc(
        prompt=entry.text("prompt"),
        gold=entry.one_of("answer", [f"({letter})" for letter in ascii_uppercase[: len(choices)]]),
        images=entry.pictures("image" if entry.get("image") else "filename"),
        choices=choices,
        kind=entry["task"],
    )


data_files = partial(tables, name="CV-Bench", split="test", layouts=LAYOUTS)
load = loader(data_files, _doc, required=REQUIRED)
"""2D before 3D."""


# --- the task ---


def cvbench() -> Task:
    """The task, for `python -m gpg_vl.eval cvbench`.

    The benchmark owner's question is the default; models that were trained to reason are asked with
    `visualthinker` or their own style.
    """
    return Task(
        name="cvbench",
        description="CV-Bench: 2D counting and relations, 3D depth and distance; multiple choice with 2 to 6 options",
        source="https://huggingface.co/datasets/nyu-visionx/CV-Bench (Apache-2.0)",
        sizes={"test": 2638},
        metric="accuracy; `official` weighs 2D and 3D equally, `micro` every row",
        blind="1/options: 50 % on Relation, Depth and Distance, 17 to 25 % on Count",
        files=data_files,
        load=load,
        prompts=PROMPTS,
        default_prompt="official",
        scorers=SCORERS,
        gold_responses=gold_choices,
        gold_label=gold_letter,
        aggregates=AGGREGATES,
        groups=("type", "task", "source"),
        strata=("source", "task"),
        resample_within=("source",),
    )
