"""The verdict: what an answer was read as, and what it is worth. One record for rewards, strict scorers and people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpg_vl.answers.extract import extract_answer
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge makes of one answer.

    Example: `Verdict(score=1.0, parsed="4", gold="4")`
    """

    score: float
    """What the answer is worth, in the range of the reward: from 0 to 1 for all judges of this package."""
    parsed: str | None
    """What the answer was read as, in one spelling; None: unanswered, or it could not be read."""
    gold: str
    """What the gold answer was read as."""
    note: str = ""
    """What else is worth knowing, such as "2 boxes where one is asked for"."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers that an aggregate adds up by themselves, such as an intersection and a union."""


Judge = Callable[[str, Example], Verdict]
"""A pure function of an answer, "" for none, and the example that it answers.

Any answer has a verdict; a gold answer that cannot be read is a UserError that names the example.
"""


def judge_response(
    judge: Judge, response: str, example: Example, *, prefilled_think: bool = False
) -> Verdict:
    """The verdict on a whole response: its answer is found by `extract_answer` and judged; odd layouts are noted."""
    extracted = extract_answer(response, prefilled_think=prefilled_think)
    verdict = judge(extracted.candidate or "", example)
    if not extracted.flags:
        return verdict
    return replace(verdict, note=", ".join(filter(None, (verdict.note, *extracted.flags))))
