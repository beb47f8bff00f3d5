"""MathVista: our rule, and the two harnesses without the language model that they extract answers with."""

import ast
from string import ascii_uppercase

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.scorers.options import choice_mark, gold_index, option_texts, picked
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.scorers.vlmevalkit import infer
from gpg_vl.eval.task import Doc, Score
from gpg_vl.rewards.geometry import match_geometry
from gpg_vl.rewards.mathematics import match_math, stated
from gpg_vl.rewards.vqa import levenshtein

_LONGEST = 500  # characters that edit distances are computed of


def _strict_mark(doc: Doc, candidate: str) -> Mark:
    if doc.example.choices:
        return choice_mark(doc, candidate)
    kind, gold = doc.columns["answer_type"], doc.gold
    if kind in ("integer", "float"):
        expression = stated(candidate)
        value = None if expression is None else _rounded(expression, _places(doc))
        if value is not None:
            return Mark(float(value == _rounded(gold, _places(doc))), expression)
        right = match_geometry(candidate, gold) or match_math(candidate, gold)
        return Mark(float(right), candidate if right else expression)
    if kind == "list":
        members = _listed(candidate)
        return Mark(
            float(members is not None and members == _listed(gold)),
            None if members is None else str(members),
        )
    return Mark(float(_plain(candidate) == _plain(gold)), candidate)


strict = judged(_strict_mark)
"""Options by the rule of the reward `choice`; numbers rounded to the places that the question asks for; lists by value."""


def lmms(doc: Doc, response: Response) -> Score:
    """The whole text as the answer: an option, a number, else nothing; nothing is then the option nearest in spelling.

    That option is chosen by edit distance whatever the distance is, so an empty answer can be right by luck.
    """
    text = strip_reasoning(response.text)
    if doc.example.choices:
        options = option_texts(doc)
        letter = text.removeprefix("(").removesuffix(")").upper()
        if len(letter) == 1 and letter in ascii_uppercase[: len(options)]:
            index = ascii_uppercase.index(letter)
        else:
            said = text if text in options else ""
            index = min(range(len(options)), key=lambda i: levenshtein(said, options[i][:_LONGEST]))
        right = options[index] == options[gold_index(doc)]
        return Score(score=float(right), answered=bool(text), parsed=options[index])
    kind = doc.columns["answer_type"]
    if kind == "integer":
        return _compared(_integer(text), doc.gold)
    if kind == "float":
        return _compared(_float_text(text, _places(doc)), doc.gold)
    return _compared(text or None, doc.gold)


def vlmevalkit(doc: Doc, response: Response) -> Score:
    """Options by VLMEvalKit's rule; numbers only if the whole response is one, without rounding: "12.0" is no integer."""
    if doc.example.choices:
        return picked(doc, infer(response.text, option_texts(doc)))
    kind = doc.columns["answer_type"]
    try:
        if kind == "integer":
            value, gold = int(response.text[:100]), int(doc.gold)
            return Score(score=float(value == gold), answered=True, parsed=str(value))
        if kind == "float":
            number = float(response.text[:100])
            return Score(score=float(number == float(doc.gold)), answered=True, parsed=str(number))
    except ValueError:
        return Score(score=0.0, answered=False, parsed=None)
    return _compared(response.text, doc.gold)


def _compared(value: str | None, gold: str) -> Score:
    return Score(score=float(value == gold), answered=value is not None, parsed=value)


def _integer(text: str) -> str | None:
    try:
        return str(int(float(text[:100])))
    except (ValueError, OverflowError):
        return None


def _float_text(text: str, places: int) -> str | None:
    try:
        return str(round(float(text[:100]), places))
    except (ValueError, OverflowError):
        return None


def _rounded(text: str, places: int) -> float | None:
    try:
        return round(float(text.replace(",", "")[:100]), places)
    except (ValueError, OverflowError):
        return None


def _places(doc: Doc) -> int:
    """The decimal places that the question asks for."""
    precision = doc.columns.get("precision")
    if doc.columns["answer_type"] == "integer" or not isinstance(precision, int | float):
        return 0 if doc.columns["answer_type"] == "integer" else 6
    return int(precision)


def _listed(text: str) -> list[object] | None:
    """A list of numbers or texts, written as Python or JSON writes one."""
    start, end = text.find("["), text.rfind("]")
    if not 0 <= start < end or end - start > 1000:
        return None
    try:
        value = ast.literal_eval(text[start : end + 1])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    flat = isinstance(value, list) and all(isinstance(item, int | float | str) for item in value)
    return (
        [float(item) if isinstance(item, int | float) else item for item in value] if flat else None
    )


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()
