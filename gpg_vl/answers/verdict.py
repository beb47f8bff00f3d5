"""The verdict on an answer: how it was read, and its score. Rewards, strict scorers and the report use the same record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpg_vl.answers.extract import extract_answer
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's result for one answer.

    Example: `Verdict(score=1.0, parsed="4", gold="4")`
    """

    score: float
    """The score of the answer, in the range of the reward: from 0 to 1 for all built-in judges."""
    parsed: str | None
    """The answer in normalised form; None if there is no answer, or if it could not be read."""
    gold: str
    """The gold answer in normalised form."""
    note: str = ""
    """A note, such as "2 boxes where one is asked for"."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers that an aggregate sums separately, such as an intersection and a union."""


Judge = Callable[[str, Example], Verdict]
"""A pure function of an answer, "" for none, and the example that it answers.

Any answer has a verdict; a gold answer that cannot be read is a UserError that names the example.
"""


def judge_response(
    judge: Judge, response: str, example: Example, *, prefilled_think: bool = False
) -> Verdict:
    """The verdict on a whole response: extracts its answer with `extract_answer` and judges it; notes an unusual layout."""
    extracted = extract_answer(response, prefilled_think=prefilled_think)
    verdict = judge(extracted.candidate or "", example)
    if not extracted.flags:
        return verdict
    return replace(verdict, note=", ".join(filter(None, (verdict.note, *extracted.flags))))
