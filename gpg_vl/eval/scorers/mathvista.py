"""MathVista: our rule, and the rules of two harnesses without the language model that they use to extract answers."""

from collections.abc import Mapping
from typing import Any

from gpg_vl.answers import choice
from gpg_vl.answers.expression import find_expression
from gpg_vl.answers.text.metrics import levenshtein
from gpg_vl.answers.text.python_literal import python_literal
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.mmmu import is_open_answer
from gpg_vl.eval.scorers.options import gold_index, judge_letter, option_texts
from gpg_vl.eval.scorers.strict import either
from gpg_vl.eval.scorers.vlmevalkit import infer
from gpg_vl.eval.task import Doc, make_verdict
from gpg_vl.types import Example

_LONGEST = 500  # characters that edit distances are computed of


def judge_open(answer: str, example: Example) -> Verdict:
    """A decimal number to the places that the question asks for; a list by value; all else as the same text or value."""
    kind, gold = example.meta["answer_type"], example.answer
    parsed: str | None = answer or None
    if kind == "list":
        members = _parse_list(answer)
        right, parsed = (
            members is not None and members == _parse_list(gold),
            str(members or "") or None,
        )
    else:
        places = _places(example.meta)
        value = _round(find_expression(answer) or "", places) if kind == "float" else None
        right = is_open_answer(answer, gold) or (
            value is not None and value == _round(gold, places)
        )
    return Verdict(score=float(right), parsed=parsed, gold=gold)


strict = either(choice.judge, judge_open)
"""Options by the rule of the reward `choice`; whole numbers exactly, others rounded to the places that the question asks for;
lists by value."""


def lmms_no_model(doc: Doc, response: Response) -> Verdict:
    """lmms-eval's rule when its language model cannot be reached: only a response that is the answer itself is extracted.

    The text of an option, or a number; a letter is neither. What is not extracted is "", and of options the one nearest to
    it in spelling is taken, so that an unreadable answer may be right by luck. With its model lmms-eval reads prose; that
    behaviour needs the network and is not offered.
    """
    text = strip_reasoning(response.text)
    if doc.example.choices:
        options = option_texts(doc)
        option_text = text if text in options else ""
        index = min(
            range(len(options)), key=lambda i: levenshtein(option_text, options[i][:_LONGEST])
        )
        right = options[index] == options[gold_index(doc)]
        return make_verdict(
            doc, float(right), options[index], note="" if option_text else "nothing extracted"
        )
    kind = doc.columns["answer_type"]
    try:
        if kind == "integer":
            value = str(int(text[:100]))
        elif kind == "float":
            value = str(round(float(text[:100]), _places(doc.columns)))
        else:
            return make_verdict(doc, 0.0, None)
    except (ValueError, OverflowError):
        return make_verdict(doc, 0.0, None)
    return make_verdict(doc, float(value == doc.gold), value)


def vlmevalkit(doc: Doc, response: Response) -> Verdict:
    """Options by VLMEvalKit's rule; numbers only if the whole response is one, without rounding: "12.0" is no integer."""
    if doc.example.choices:
        return judge_letter(doc, infer(response.text, option_texts(doc)))
    kind = doc.columns["answer_type"]
    try:
        if kind == "integer":
            value, gold = int(response.text[:100]), int(doc.gold)
            return make_verdict(doc, float(value == gold), str(value))
        if kind == "float":
            number = float(response.text[:100])
            return make_verdict(doc, float(number == float(doc.gold)), str(number))
    except ValueError:
        return make_verdict(doc, 0.0, None)
    return make_verdict(doc, float(response.text == doc.gold), response.text or None)


def _round(text: str, places: int) -> float | None:
    try:
        return round(float(text.replace(",", "")[:100]), places)
    except (ValueError, OverflowError):
        return None


def _places(meta: Mapping[str, Any]) -> int:
    """The decimal places that the question asks for."""
    precision = meta.get("precision")
    return int(precision) if isinstance(precision, int | float) else 6


def _parse_list(text: str) -> list[object] | None:
    """A list of numbers or texts, written as Python or JSON writes one."""
    start, end = text.find("["), text.rfind("]")
    if not 0 <= start < end or end - start > 1000:
        return None
    value = python_literal(text[start : end + 1])
    flat = isinstance(value, list) and all(isinstance(item, int | float | str) for item in value)
    return (
        [float(item) if isinstance(item, int | float) else item for item in value] if flat else None
    )
