"""MMMU: our rule, its owners' parser, and lmms-eval's altered one. Where these draw a random option, there is no answer."""

import re
from collections.abc import Iterator, Sequence

from gpg_vl.answers import choice, expression, quantity
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.options import judge_letter, option_texts
from gpg_vl.eval.scorers.strict import either
from gpg_vl.eval.scorers.vlmevalkit import infer, vlmevalkit_choice
from gpg_vl.eval.task import Doc, make_verdict
from gpg_vl.types import Example

_TRIMMED = (",", ".", "!", "?", ";", ":", "'")
_OTHER = "Other Answers"
_LONGEST = 10_000  # characters, the last, that numbers are looked for in
_WORDS = 5  # an option's text is looked for in longer answers only
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def judge_open(answer: str, example: Example) -> Verdict:
    """1.0 if any of the accepted answers is met."""
    right = any(is_open_answer(answer, gold) for gold in example.meta["golds"])
    return Verdict(
        score=float(right), parsed=answer or None, gold=" | ".join(example.meta["golds"])
    )


def is_open_answer(answer: str, gold: str) -> bool:
    """True if an answer is the gold text but for case, or equal to it as in the rewards `geometry` or `math`."""
    return bool(answer) and (
        _plain(answer) == _plain(gold)
        or quantity.matches(answer, gold)
        or expression.matches(answer, gold)
    )


strict_mmmu = either(choice.judge, judge_open)
"""Options by the rule of the reward `choice`; open answers as the same text, or by value as in `geometry` or `math`."""


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def mmmu(doc: Doc, response: Response) -> Verdict:
    """The owners' rule for the doc's type of question; options as `(X)` or as ` X ` with a blank on both sides."""
    forms = ("({})", " {} ")
    return _choice(doc, response.text, forms) if doc.example.choices else _open(doc, response.text)


def mmmu_lmms(doc: Doc, response: Response) -> Verdict:
    """lmms-eval's: the reasoning is stripped first, and options are also read as `X ` behind any character and as `X.`."""
    text = strip_reasoning(response.text)
    forms = ("({})", "{} ", "{}.")
    return _choice(doc, text, forms) if doc.example.choices else _open(doc, text)


def mmmu_vlmevalkit(doc: Doc, response: Response) -> Verdict:
    """VLMEvalKit's rule for options; an open answer is read as the option A with the gold's text, as it does."""
    if doc.example.choices:
        return vlmevalkit_choice(doc, response)
    found = infer(response.text, (doc.gold, _OTHER)) == "A"
    return make_verdict(doc, float(found), doc.gold if found else response.text.strip() or None)


def _choice(doc: Doc, text: str, forms: Sequence[str]) -> Verdict:
    """A letter in the first of the forms that occurs, else an option's text in an answer of more than five words; of several
    the last. In lmms-eval "NASA " therefore names option A."""
    for mark in _TRIMMED:
        text = text.strip(mark)
    text = f" {text} "
    options = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", option_texts(doc), strict=False))
    for form in forms:
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            # Of several, the one that is last; without parentheses only free-standing letters have a place.
            place = "({})" if form == "({})" else " {} "
            return judge_letter(
                doc, max(found, key=lambda letter: text.rfind(place.format(letter)))
            )
    if len(text.split()) > _WORDS:
        lowered = text.lower()
        found = [letter for letter, option in options.items() if option.lower() in lowered]
        if found:
            return judge_letter(
                doc, max(found, key=lambda letter: lowered.rfind(options[letter].lower()))
            )
    return make_verdict(doc, 0.0, None)


def _open(doc: Doc, text: str) -> Verdict:
    """A gold text inside of the piece behind a word such as "is" or "answer", or a number of it equal to two places."""
    golds = [
        form for gold in (doc.columns.get("golds") or [doc.gold]) for form in _normal(str(gold))
    ]
    pieces = list(_key_pieces(text[-_LONGEST:]))
    numbers = [
        number for piece in pieces for pattern in _NUMBERS for number in pattern.findall(piece)
    ]
    found = [form for part in (*pieces, *numbers) for form in _normal(part)]
    right = any(
        any(isinstance(gold, str) and gold in form for gold in golds)
        if isinstance(form, str)
        else form in golds
        for form in found
    )
    return make_verdict(doc, float(right), pieces[-1] or None if text.strip() and pieces else None)


def _key_pieces(text: str) -> Iterator[str]:
    """The shortest piece behind an indicator on each line; the whole text if no line has one.

    The owners mean to split sentences at capitals, but lower the text first, so that only lines are split.
    """
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    none = True
    for number, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in line:
                piece = line.rpartition(indicator)[2].strip()
                # An empty piece is kept until the next indicator, which then counts whatever its length.
                shortest = piece if not shortest or len(piece) < len(shortest) else shortest
        if shortest and shortest not in {":", ",", ".", "!", "?", ";", "'"}:
            none = False
            yield shortest
    if none:
        yield text


def _normal(text: str) -> list[str | float]:
    """A number rounded to two places; else lower case, a single character with a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
