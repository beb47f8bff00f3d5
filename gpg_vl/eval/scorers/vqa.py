"""Short answers to pictures: the published metrics on the whole response, as the owner and the two harnesses hand it over.

The owners compare the response as it is; lmms-eval first strips the reasoning; VLMEvalKit first trims. `strict` is the
verdict of the judges of the training rewards on the answer alone, which forgive more: "12" for "12%". The reward `vqa`
alone gives full marks to the best of ten disagreeing answers, which `strict` does not.
"""

from collections.abc import Callable, Sequence

from gpg_vl.answers.short_answer import gold_answers
from gpg_vl.answers.text.metrics import anls, normalize_textvqa, relaxed_accuracy, soft_accuracy
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.task import Doc, Scorer, make_verdict

_LONGEST = 2000  # characters; an edit distance takes the product of the lengths
Metric = Callable[[str, Sequence[str]], float]
"""The score of an answer against the accepted ones."""


def textvqa_accuracy(text: str, answers: Sequence[str]) -> float:
    return soft_accuracy(text, answers, normalize_textvqa)


def relaxed(text: str, answers: Sequence[str]) -> float:
    return max(relaxed_accuracy(text.strip(), answer) for answer in answers)


def published_anls(text: str, answers: Sequence[str]) -> float:
    return anls(text[:_LONGEST], answers, raw_lengths=True)


def published(metric: Metric, prepare: Callable[[str], str]) -> Scorer:
    """A metric over the whole response."""

    def scorer(doc: Doc, response: Response) -> Verdict:
        text = prepare(response.text)
        return make_verdict(
            doc, metric(text, gold_answers(doc.example)), text if text.strip() else None
        )

    return scorer


def scorers(metric: Metric, strict: Scorer) -> dict[str, Scorer]:
    """`strict`, and the published metric as the owner and the two harnesses hand it the response."""
    return {
        "strict": strict,
        "official": published(metric, str),
        "lmms": published(metric, strip_reasoning),
        "vlmevalkit": published(metric, str.strip),
    }
