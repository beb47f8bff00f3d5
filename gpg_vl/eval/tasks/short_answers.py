"""Short answers to charts, scene text, documents and photographs: ChartQA, TextVQA, DocVQA and VQAv2.

`official` is the owners' metric on the whole response. `strict` is the verdict of the training reward on the answer alone, but
for VQA accuracy, where the reward is a share of what can be reached and `strict` is not: where annotators disagree no answer
has 1, and the ceiling says how far one can come.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gpg_vl.answers.short_answer import gold_answers
from gpg_vl.answers.text.metrics import soft_accuracy
from gpg_vl.eval.loading import Entry, loader, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers import vqa
from gpg_vl.eval.scorers.strict import strict_anls, strict_relaxed, strict_textvqa, strict_vqa
from gpg_vl.eval.statistics import micro_and
from gpg_vl.eval.task import THINK, Doc, Scorer, Task, TaskPrompt

_PHRASE = "\nAnswer the question using a single word or phrase."
_KINDS = ("human", "augmented")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """What differs between the data sets."""

    name: str
    title: str
    source: str
    split: str
    size: int
    metric: str
    answers: str
    """The column of the accepted answer, or answers."""
    scorers: Mapping[str, Scorer]
    tokens: int
    """The published limit; far too short for a model that reasons."""
    suffix: str = _PHRASE
    folders: tuple[str, ...] = ("", "data")


SETS = {
    "chartqa": _Set(
        name="chartqa",
        title="ChartQA: questions about charts, by people and by a program",
        source="lmms-lab/ChartQA (GPL-3.0)",
        split="test",
        size=2500,
        metric="relaxed accuracy: numbers within 5 %",
        answers="answer",
        scorers=vqa.scorers(vqa.relaxed, strict_relaxed),
        tokens=16,
        suffix="\nAnswer the question with a single word.",
    ),
    "textvqa": _Set(
        name="textvqa",
        title="TextVQA: questions about text in photographs, ten answers each",
        source="lmms-lab/textvqa (CC BY 4.0)",
        split="validation",
        size=5000,
        metric="VQA accuracy",
        answers="answers",
        scorers=vqa.scorers(vqa.textvqa_accuracy, strict_textvqa),
        tokens=16,
    ),
    "docvqa": _Set(
        name="docvqa",
        title="DocVQA: questions about scanned documents",
        source="lmms-lab/DocVQA (Apache-2.0)",
        split="validation",
        size=5349,
        metric="ANLS: edit similarity, 0 below one half",
        answers="answers",
        scorers=vqa.scorers(vqa.published_anls, strict_anls),
        tokens=32,
        folders=("", "DocVQA", "data"),
    ),
    "vqav2": _Set(
        name="vqav2",
        title="VQAv2: questions about photographs, ten answers each",
        source="lmms-lab/VQAv2 (CC BY 4.0)",
        split="validation",
        size=214354,
        metric="VQA accuracy",
        answers="answers",
        scorers=vqa.scorers(soft_accuracy, strict_vqa),
        tokens=16,
    ),
}


def _task(one: _Set) -> Task:
    best = _best(one)
    files = partial(tables, name=one.name, split=one.split, folders=one.folders)
    return Task(
        name=one.name,
        version="3",
        description=one.title,
        source=f"https://huggingface.co/datasets/{one.source}",
        sizes={one.split: one.size},
        metric=one.metric,
        blind="0 %: answers are open",
        files=files,
        load=loader(files, partial(_doc, one), required=("question", one.answers)),
        prompts={
            "official": TaskPrompt(template="{prompt}" + one.suffix, max_new_tokens=one.tokens),
            "think": TaskPrompt(template="{prompt}" + THINK, max_new_tokens=1024),
            "plain": TaskPrompt(template="{prompt}", max_new_tokens=256),
        },
        default_prompt="official",
        scorers=one.scorers,
        gold_responses=lambda doc: _golds(best(doc)[0]),
        full_marks=lambda doc: best(doc)[1],
        # VQA accuracy may like another accepted answer better than the one that strict does.
        flawed=tuple(name for name in one.scorers if name != "strict"),
    )


# Of VQAv2 take a part with `--limit`: the whole is 214,354 questions.
textvqa, docvqa, vqav2 = (partial(_task, SETS[name]) for name in ("textvqa", "docvqa", "vqav2"))


def chartqa() -> Task:
    """The task, for `python -m gpg_vl.eval chartqa`; accuracy per kind of question as well."""
    return replace(
        _task(SETS["chartqa"]),
        aggregates=micro_and("kind", _KINDS),
        groups=("kind",),
        strata=("kind",),
    )


def _best(one: _Set) -> Callable[[Doc], tuple[str, float]]:
    """The accepted answer that `strict` likes best, and its score."""
    strict = one.scorers["strict"]

    def best(doc: Doc) -> tuple[str, float]:
        answers = dict.fromkeys(gold_answers(doc.example))
        scores = {text: strict(doc, _tag(text)).score for text in answers}
        return max(scores.items(), key=lambda one: one[1])

    return best


def _tag(text: str) -> Response:
    return Response(text=f"<answer>{text}</answer>")


def _golds(answer: str) -> tuple[Response, ...]:
    """The answer in tags and bare."""
    return _tag(answer), Response(text=answer)


def _doc(one: _Set, entry: Entry) -> Doc:
    # In a split whose answers are hidden there is no text among them.
    answers = entry[one.answers]
    texts = answers if isinstance(answers, list) else [answers]
    texts = [text.get("answer") if isinstance(text, Mapping) else text for text in texts]
    if not (texts and all(isinstance(text, str) and text.strip() for text in texts)):
        raise entry.wrong(one.answers, "a text, or a list of texts")

    kind = str(entry.get("type")).removesuffix("_test")
    more: dict[str, object] = {"kind": kind if kind in _KINDS else "other"}
    if len(texts) > 1:
        more["answers"] = texts
    return entry.doc(
        prompt=entry.text("question"), gold=texts[0], images=entry.pictures("image"), more=more
    )
