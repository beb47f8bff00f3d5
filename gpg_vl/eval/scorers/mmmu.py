"""MMMU: our rule, and its owners' parser, which lmms-eval uses too. Where that draws a random option, there is no answer."""

import re
from collections.abc import Iterator
from dataclasses import replace

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.options import choice_mark, option_texts, picked
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.scorers.vlmevalkit import infer, vlmevalkit_choice
from gpg_vl.eval.task import Doc, Score
from gpg_vl.rewards.geometry import match_geometry
from gpg_vl.rewards.mathematics import match_math

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


def _strict_mark(doc: Doc, candidate: str) -> Mark:
    if doc.example.choices:
        return choice_mark(doc, candidate)
    right = any(
        _plain(candidate) == _plain(gold)
        or match_geometry(candidate, gold)
        or match_math(candidate, gold)
        for gold in doc.columns["golds"]
    )
    return Mark(float(right), candidate)


strict_mmmu = judged(_strict_mark)
"""Options by the rule of the reward `choice`; open answers as the same text, or by value as in `geometry` or `math`."""


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def mmmu(doc: Doc, response: Response) -> Score:
    """The owners' rule for the doc's type of question."""
    return _choice(doc, response.text) if doc.example.choices else _open(doc, response.text)


def mmmu_lmms(doc: Doc, response: Response) -> Score:
    """The owners' rule on what lmms-eval leaves of a response with reasoning."""
    return mmmu(doc, replace(response, text=strip_reasoning(response.text)))


def mmmu_vlmevalkit(doc: Doc, response: Response) -> Score:
    """VLMEvalKit's rule for options; an open answer is read as the option A with the gold's text, as it does."""
    if doc.example.choices:
        return vlmevalkit_choice(doc, response)
    found = infer(response.text, (doc.gold, _OTHER)) == "A"
    return Score(
        score=float(found), answered=bool(response.text.strip()), parsed=doc.gold if found else None
    )


def _choice(doc: Doc, text: str) -> Score:
    """`(X)`, else `X ` after any character, else `X.`, else an option's text in an answer of more than five words; of
    several the last. "Grade A " and "NASA " therefore name option A."""
    for mark in _TRIMMED:
        text = text.strip(mark)
    text = f" {text} "
    options = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", option_texts(doc), strict=False))
    for form in ("({})", "{} ", "{}."):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            # Of several, the one that stands last; without parentheses only free-standing letters have a place.
            place = "({})" if form == "({})" else " {} "
            return picked(doc, max(found, key=lambda letter: text.rfind(place.format(letter))))
    if len(text.split()) > _WORDS:
        lowered = text.lower()
        found = [letter for letter, option in options.items() if option.lower() in lowered]
        if found:
            return picked(
                doc, max(found, key=lambda letter: lowered.rfind(options[letter].lower()))
            )
    return Score(score=0.0, answered=False, parsed=None)


def _open(doc: Doc, text: str) -> Score:
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
    return Score(
        score=float(right), answered=bool(text.strip()), parsed=pieces[-1] if pieces else None
    )


def _key_pieces(text: str) -> Iterator[str]:
    """The shortest piece behind an indicator on each line; the whole text if no line has one.

    The owners mean to split sentences at capitals, but lower the text first, so that only lines are split.
    """
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    none = True
    for number, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        pieces = [
            line.rpartition(indicator)[2].strip() for indicator in indicators if indicator in line
        ]
        if pieces and min(pieces, key=len) not in {":", ",", ".", "!", "?", ";", "'"}:
            none = False
            yield min(pieces, key=len)
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
