"""Short answers to pictures: our rules, which are the training rewards', and the published metrics.

The metrics of the owners compare the whole response; lmms-eval's first strips the reasoning; VLMEvalKit's first trims.
"""

from collections.abc import Callable, Sequence

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.task import Doc, Score, Scorer
from gpg_vl.rewards.vqa import anls, gold_answers, match_relaxed, normalize_vqa, relaxed_accuracy, soft_accuracy

_LONGEST = 2000  # characters; an edit distance takes the product of the lengths


def golds(doc: Doc) -> tuple[str, ...]:
    """The accepted answers: the column `answers`, else the gold answer alone."""
    return gold_answers(doc.example)


def best_soft(doc: Doc) -> tuple[str, float]:
    """The accepted answer with the greatest soft accuracy, and that; below 1 where the annotators disagree."""
    answers = golds(doc)
    return max(((gold, soft_accuracy(gold, answers)) for gold in answers), key=lambda one: one[1])


def _soft_mark(doc: Doc, candidate: str) -> Mark:
    best = best_soft(doc)[1]
    score = min(1.0, soft_accuracy(candidate, golds(doc)) / best) if best else 0.0
    return Mark(score, normalize_vqa(candidate) or None)


def _relaxed_mark(doc: Doc, candidate: str) -> Mark:
    return Mark(float(any(match_relaxed(candidate, gold) for gold in golds(doc))), candidate)


def _anls_mark(doc: Doc, candidate: str) -> Mark:
    return Mark(anls(candidate[:_LONGEST], golds(doc)), candidate)


strict_soft = judged(_soft_mark)
"""Soft accuracy of the answer, as a share of the best that an accepted answer has: the reward `vqa`."""
strict_relaxed = judged(_relaxed_mark)
"""Numbers within 5 %, with percent signs, currency and thousands read: the reward `vqa_relaxed`."""
strict_anls = judged(_anls_mark)
"""Edit similarity to the nearest accepted answer, blanks counted once: the reward `vqa_anls`."""


def published(metric: Callable[[str, Sequence[str]], float], prepare: Callable[[str], str]) -> Scorer:
    """A metric over the whole response."""

    def scorer(doc: Doc, response: Response) -> Score:
        text = prepare(response.text)
        return Score(score=metric(text, golds(doc)), answered=bool(text.strip()), parsed=text or None)

    return scorer


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    return soft_accuracy(text, answers)


def textvqa_accuracy(text: str, answers: Sequence[str]) -> float:
    return soft_accuracy(text, answers, textvqa=True)


def relaxed(text: str, answers: Sequence[str]) -> float:
    return max(relaxed_accuracy(text.strip(), answer) for answer in answers)


def published_anls(text: str, answers: Sequence[str]) -> float:
    return anls(text[:_LONGEST], answers, raw_lengths=True)


def whole(text: str) -> str:
    return text


def scorers(metric: Callable[[str, Sequence[str]], float], strict: Scorer) -> dict[str, Scorer]:
    """`strict`, and the published metric as the owner and the two harnesses hand it the response."""
    return {
        "strict": strict,
        "official": published(metric, whole),
        "lmms": published(metric, strip_reasoning),
        "vlmevalkit": published(metric, str.strip),
    }
