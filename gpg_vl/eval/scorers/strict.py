"""`strict`, the headline of every benchmark: one answer, taken after the reasoning, matched by the training reward's rule."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.task import Doc, Score, Scorer
from gpg_vl.rewards.parse import Extracted, extract_answer

_FLAGS = ("unclosed_think", "truncated", "several")
_NO_PARTS: Mapping[str, float] = {}


class Mark(NamedTuple):
    """What a judge makes of the piece of a response that counts as its answer.

    Example: `Mark(1.0, "4")`
    """

    score: float
    parsed: str | None
    """What was read; None if the answer cannot be read."""
    note: str = ""
    parts: Mapping[str, float] = _NO_PARTS


def judged(
    judge: Callable[[Doc, str], Mark],
    *,
    unanswered: Callable[[Doc], Mapping[str, float]] | None = None,
) -> Scorer:
    """A scorer that finds the answer as rewards do (`extract_answer`) and has `judge` mark it.

    `unanswered`: the parts of a row without an answer, where an aggregate needs some.
    """

    def scorer(doc: Doc, response: Response) -> Score:
        extracted = extract_answer(response.text, prefilled_think=response.prefilled_think)
        mark = Mark(0.0, None) if extracted.candidate is None else judge(doc, extracted.candidate)
        if mark.parsed is None and unanswered is not None:
            mark = mark._replace(parts=unanswered(doc))
        return Score(
            score=0.0 if mark.parsed is None else mark.score,
            answered=mark.parsed is not None,
            parsed=mark.parsed,
            notes=", ".join(filter(None, (mark.note, flags(extracted)))),
            parts=mark.parts,
        )

    return scorer


def flags(extracted: Extracted) -> str:
    """What was odd about the layout of a response: `truncated, several`."""
    return ", ".join(flag for flag in _FLAGS if getattr(extracted, flag))
