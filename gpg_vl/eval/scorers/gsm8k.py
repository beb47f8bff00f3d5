"""Grade-school mathematics: the owner's `####`, the last number, and lmms-eval's phrase; compared as numbers."""

import re
from decimal import Decimal, InvalidOperation

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.lmms import strip_reasoning
from gpg_vl.eval.task import Doc, Score

_MARKED = re.compile(r"#### (-?[0-9.,]++)")
_NUMBER = re.compile(r"-?[0-9.,]++")
_PHRASE = re.compile(r"The final answer is ((?:-?[$0-9.,]{2,})|(?:-?[0-9]++))")


def official(doc: Doc, response: Response) -> Score:
    """The last number behind `#### `, as the solutions of the data set are written."""
    return _scored(doc, marked(response.text))


def marked(text: str) -> list[str]:
    """The numbers that stand behind `#### `."""
    return _MARKED.findall(text)


def flexible(doc: Doc, response: Response) -> Score:
    """The last number of the text, whatever it belongs to."""
    return _scored(
        doc, [number for number in _NUMBER.findall(response.text) if number != "." and number]
    )


def lmms(doc: Doc, response: Response) -> Score:
    """What stands behind "The final answer is", first occurrence."""
    return _scored(doc, _PHRASE.findall(strip_reasoning(response.text))[:1])


def number_of(text: str) -> Decimal | None:
    """The number without `$`, commas and a final point; None if it is none."""
    try:
        value = Decimal(text.replace("$", "").replace(",", "").removesuffix(".")[:100])
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _scored(doc: Doc, found: list[str]) -> Score:
    value = number_of(found[-1]) if found else None
    if value is None:
        return Score(score=0.0, answered=False, parsed=found[-1] if found else None)
    return Score(score=float(value == number_of(doc.gold)), answered=True, parsed=found[-1])
