"""Short free answers: soft VQA accuracy, relaxed accuracy for charts, and ANLS for documents, as judges.

They are built on the published metrics (`text.metrics`) and differ where a metric can be collected without the right
answer, or refuses a right one; each says how.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.text.latex import strip_latex
from gpg_vl.answers.text.metrics import (
    FLOAT,
    MAX_CANDIDATE,
    RELAXED,
    anls,
    collapse_blanks,
    normalize_textvqa,
    normalize_vqa,
    soft_accuracy,
)
from gpg_vl.answers.text.numerals import with_digits
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

YEARS = range(1800, 2101)
"""A gold answer that is such a whole number is a year, of which no 5 % are forgiven."""

_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:([, ])[0-9]{3}(?:\1[0-9]{3}){0,11})(?:\.[0-9]{1,40})?")
_PERCENT = re.compile(r"\s*(?:%|percent|per\s+cent)$")
_QUOTES = "\"'“”‘’«» \t\r\n"
_QUOTED = re.compile(r"[\"'“‘«]([^\"'“”‘’«»]*)[\"'”’»]\s*[.,;!]?")
_BLANKS = re.compile(r"[\u00a0\u2007-\u200a\u202f]")
_YES_OR_NO = re.compile(r"(yes|no)\s*[,.;:!]\s+(?!.*\b(?:yes|no)\b)", re.IGNORECASE)


def judge_soft(answer: str, example: Example) -> Verdict:
    """Soft VQA accuracy, as a share of the best that any of the accepted answers has."""
    golds = gold_answers(example)
    best = _best_soft_accuracy(golds)
    if best == 0.0:
        raise UserError(
            f"The answers of example {example.id!r} are empty: {golds!r:.80}. Correct the row."
        )
    text = _find_yes_or_no(strip_wrapping(answer), golds)
    score = min(1.0, soft_accuracy(text, golds, normal_form_vqa) / best)
    return _verdict(score, normal_form_vqa(text), golds)


def judge_accuracy(answer: str, example: Example) -> Verdict:
    """VQA accuracy as it is published, where `judge_soft` takes the share of what can be reached."""
    golds = gold_answers(example)
    text = _find_yes_or_no(strip_wrapping(answer), golds)
    return _verdict(soft_accuracy(text, golds, normal_form_vqa), normal_form_vqa(text), golds)


def judge_textvqa(answer: str, example: Example) -> Verdict:
    """The same with the normal form of TextVQA."""
    golds, text = gold_answers(example), strip_wrapping(answer)
    return _verdict(
        soft_accuracy(text, golds, normal_form_textvqa), normal_form_textvqa(text), golds
    )


def judge_relaxed(answer: str, example: Example) -> Verdict:
    """1.0 for a number within 5 % of the gold number, or else the gold text but for case."""
    golds = gold_answers(example)
    text = _find_yes_or_no(strip_wrapping(answer), golds)
    return _verdict(float(any(match_relaxed(text, gold) for gold in golds)), text, golds)


def judge_anls(answer: str, example: Example) -> Verdict:
    """Normalised Levenshtein similarity to the nearest accepted answer; 0 below one half."""
    golds, text = gold_answers(example), strip_wrapping(answer)
    return _verdict(anls(text, golds), collapse_blanks(text), golds)


def _verdict(score: float, parsed: str, golds: Sequence[str]) -> Verdict:
    return Verdict(score=score, parsed=parsed or None, gold=" | ".join(dict.fromkeys(golds)))


def strip_wrapping(answer: str) -> str:
    """An answer without LaTeX and quotes around it; signs and blanks of print as those of a keyboard."""
    text = strip_latex(answer[: MAX_CANDIDATE + 1]).replace("{,}", ",").replace("−", "-")
    text = _BLANKS.sub(" ", text).strip()
    quoted = _QUOTED.fullmatch(text)
    return (quoted[1] if quoted else text).strip(_QUOTES)


def _find_yes_or_no(text: str, golds: Sequence[str]) -> str:
    """The "yes" of "Yes, it is." where yes or no is asked for; else the text."""
    found = _YES_OR_NO.match(text)
    asked = found is not None and all(gold.strip(" .").lower() in {"yes", "no"} for gold in golds)
    return found[1] if found and asked else text


def gold_answers(example: Example) -> tuple[str, ...]:
    """The accepted answers: the column `answers` of the data, as texts or as `{"answer": text}`, else the gold answer.

    Raises UserError that names the example if the column holds something else.
    """
    answers = example.meta.get("answers")
    if answers is None:
        return (gold_text(example.answer),)
    if isinstance(answers, Sequence) and not isinstance(answers, str) and answers:
        texts = [item.get("answer") if isinstance(item, Mapping) else item for item in answers]
        if all(isinstance(text, str) for text in texts):
            return tuple(str(text) for text in texts)
    raise UserError(
        f"Example {example.id!r} has the answers {answers!r:.80}. A list of texts, or of {{answer: text}}, is allowed. "
        f"Correct the column, or leave it out to compare with the gold answer alone."
    )


def normal_form_vqa(text: str) -> str:
    """The normal form; where it leaves nothing ("a", "-"), the text itself but for case, blanks and a final point.

    So the answer to "What letter is it?" may be "A", and no article is as good as another one.
    """
    return normalize_vqa(text) or _plain(text)


def normal_form_textvqa(text: str) -> str:
    """The same with the normal form of TextVQA."""
    return normalize_textvqa(text) or _plain(text)


@lru_cache(maxsize=1024)
def _best_soft_accuracy(golds: tuple[str, ...]) -> float:
    return max(soft_accuracy(gold, golds, normal_form_vqa) for gold in golds)


def match_relaxed(candidate: str, gold: str) -> bool:
    """True if both are numbers at most 5 % of `gold` apart, or the same text but for case, blanks and a final point.

    A year must be met exactly.
    """
    answer_value, gold_value = _amount(candidate), _gold_amount(gold)
    if answer_value is None or gold_value is None:
        plain = _plain(candidate)
        return bool(plain) and plain == _plain(gold)
    if gold_value.value in YEARS and not gold_value.percent and gold.strip().isdigit():
        return answer_value.value == gold_value.value
    readings = (
        {answer_value.value}
        if answer_value.percent == gold_value.percent
        else {answer_value.value, answer_value.true_value}
    )
    golds = (
        {gold_value.value}
        if answer_value.percent == gold_value.percent
        else {gold_value.value, gold_value.true_value}
    )
    return any(abs(one - other) <= RELAXED * abs(other) for one in readings for other in golds)


class _Amount(NamedTuple):
    """A stated number, with and without what its percent sign means."""

    value: Fraction
    percent: bool

    @property
    def true_value(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


def _amount(text: str) -> _Amount | None:
    text = with_digits(_plain(text[:MAX_CANDIDATE]))
    percent = _PERCENT.search(text)
    text = (text[: percent.start()] if percent else text).lstrip("$€£¥").lstrip()
    if len(text) > 100:
        return None
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    return _Amount(Fraction(text), percent is not None) if FLOAT.fullmatch(text) else None


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _gold_amount(gold: str) -> _Amount | None:
    return _amount(gold)


def _plain(text: str) -> str:
    text = " ".join(text.split())
    return (text.removesuffix(".") or text).casefold()
