"""Short answers to pictures: the published metrics on the whole response, and `strict`, the same on the answer alone.

`strict` can therefore be compared with published numbers. It differs from `official` in what it is handed, the answer as
rewards find it; in that an article or a dash is compared as it is written, where the normal form leaves nothing of it; and
in that runs of blanks count once in ANLS, whose published form can be raised by padding. The training rewards forgive more
(`gpg_vl.rewards.vqa`): "12" for "12%", and the best of ten disagreeing answers has full marks there.

The metrics of the owners compare the whole response; lmms-eval's first strips the reasoning; VLMEvalKit's first trims.
"""

from collections.abc import Callable, Sequence

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.task import Doc, Score, Scorer
from gpg_vl.rewards.vqa import (
    anls,
    compared_textvqa,
    compared_vqa,
    gold_answers,
    normalize_textvqa,
    relaxed_accuracy,
    soft_accuracy,
)

_LONGEST = 2000  # characters; an edit distance takes the product of the lengths
Metric = Callable[[str, Sequence[str]], float]
"""The score of an answer against the accepted ones."""


def golds(doc: Doc) -> tuple[str, ...]:
    """The accepted answers: the column `answers`, else the gold answer alone."""
    return gold_answers(doc.example)


# --- metrics ----------------------------------------------------------------------------------------------------------


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    return soft_accuracy(text, answers)


def textvqa_accuracy(text: str, answers: Sequence[str]) -> float:
    return soft_accuracy(text, answers, normalize_textvqa)


def strict_vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """VQA accuracy; where the normal form leaves nothing of an answer, it is compared as it is written."""
    return soft_accuracy(text, answers, compared_vqa)


def strict_textvqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """The same with the normal form of TextVQA."""
    return soft_accuracy(text, answers, compared_textvqa)


def relaxed(text: str, answers: Sequence[str]) -> float:
    return max(relaxed_accuracy(text.strip(), answer) for answer in answers)


def published_anls(text: str, answers: Sequence[str]) -> float:
    return anls(text[:_LONGEST], answers, raw_lengths=True)


def unpadded_anls(text: str, answers: Sequence[str]) -> float:
    """The published ANLS of the text with runs of blanks as one, so that they cannot lengthen its denominator."""
    return published_anls(" ".join(text[:_LONGEST].split()), answers)


# --- scorers ----------------------------------------------------------------------------------------------------------


def on_answer(metric: Metric) -> Scorer:
    """A metric over the answer, found as rewards find it."""
    return judged(lambda doc, candidate: Mark(metric(candidate, golds(doc)), candidate))


strict_soft = on_answer(strict_vqa_accuracy)
strict_textvqa = on_answer(strict_textvqa_accuracy)
strict_relaxed = on_answer(relaxed)
strict_anls = on_answer(unpadded_anls)


def published(metric: Metric, prepare: Callable[[str], str]) -> Scorer:
    """A metric over the whole response."""

    def scorer(doc: Doc, response: Response) -> Score:
        text = prepare(response.text)
        return Score(
            score=metric(text, golds(doc)), answered=bool(text.strip()), parsed=text or None
        )

    return scorer


def whole(text: str) -> str:
    return text


def scorers(metric: Metric, strict: Scorer) -> dict[str, Scorer]:
    """`strict`, and the published metric as the owner and the two harnesses hand it the response."""
    return {
        "strict": strict,
        "official": published(metric, whole),
        "lmms": published(metric, strip_reasoning),
        "vlmevalkit": published(metric, str.strip),
    }
