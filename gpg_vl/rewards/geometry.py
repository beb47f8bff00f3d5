"""Geometry: the number or expression that an answer states, with its unit, and the reward for stating the gold one.

Units, degree signs and roots are written in many ways (`5cm`, `5 \\text{ cm}`, `5厘米`, `145°`, `145^\\circ`, `2√{15}米`).
They are brought to one spelling here; whether two expressions are equal is decided in `expressions`. A gold answer may
hold Greek letters (`90°-α`), and it may name cases, `60°或120°`: then all of them, in any order, are the answer.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.expressions import equal, has_relation, normalize, readable, right_side
from gpg_vl.rewards.numerals import hides, is_qualified, word_spans
from gpg_vl.rewards.parse import extract_answer, gold_text, last_boxed
from gpg_vl.types import Completion, Example

MAX_CANDIDATE = 500
UNITS = {
    "deg": ("°", "^\\circ", "^{\\circ}", "\\circ", "\\degree", "degrees", "degree", "度"),
    "rad": ("rad", "radians", "radian"),
    "%": ("%", "\\%", "percent"),
    "mm": ("mm", "毫米", "millimeters", "millimeter", "millimetres", "millimetre"),
    "cm": ("cm", "厘米", "centimeters", "centimeter", "centimetres", "centimetre"),
    "dm": ("dm", "分米"),
    "m": ("m", "米", "meters", "meter", "metres", "metre"),
    "km": ("km", "千米", "公里", "kilometers", "kilometer", "kilometres", "kilometre"),
    "nmi": ("海里", "nautical miles", "nautical mile", "sea miles", "sea mile", "n mile", "nmi"),
    "h": ("小时", "hours", "hour", "h"),
    "s": ("秒", "seconds", "second", "s"),
    "mm^2": ("平方毫米",),
    "cm^2": ("平方厘米", "square centimeters", "square centimetres", "sq cm"),
    "m^2": ("平方米", "square meters", "square metres", "sq m"),
    "km^2": ("平方千米", "平方公里", "square kilometers", "square kilometres"),
    "cm^3": ("立方厘米", "cubic centimeters", "cubic centimetres"),
    "m^3": ("立方米", "cubic meters", "cubic metres"),
    "": ("units", "unit", "单位", "square units", "cubic units"),
}
"""The spellings of each unit; "units" says as much as no unit.

A length may carry a square or a cube: `cm²`, `cm2`, `cm^2`, `cm^{2}`, `cm^2^`.
"""

_CANONICAL = {spelling: unit for unit, spellings in UNITS.items() for spelling in spellings}
_SPELLINGS = "|".join(re.escape(spelling) for spelling in sorted(_CANONICAL, key=len, reverse=True))
_POWER = r"(?:²|³|\^\{([23])\}|\^([23])\^?|(?<=[a-z])([23]))"
# A unit stands behind a digit, a brace, a root or a letter of another script, with blanks or as a text command.
_UNIT = re.compile(
    rf"\s*(?:\\(?:text|mathrm|mbox|rm)\s*\{{\s*(?P<text>{_SPELLINGS})\s*\}}|(?<![A-Za-z\\])(?P<bare>{_SPELLINGS}))"
    rf"(?P<power>{_POWER})?\s*$"
)
_SPAN = re.compile(r"\\\((.+?)\\\)|\\\[(.+?)\\\]|\$\$?([^$]+)\$\$?", re.DOTALL)
_WORDS = re.compile(r"(?<!\\)\b(?!sqrt\b|pi\b|frac\b)[A-Za-z]{2,}")
# What may be the number of a sentence: a run of digits, roots, fractions and operations between them; and its unit.
_MATH_RUN = re.compile(
    r"(?P<run>(?:\\[dt]?frac|\\sqrt|\\pi|\\circ|\\cdot|\\times|[0-9√π.,+\-−*/^{}()°²³%]|(?<=[0-9})°])\s(?=[√\\+\-−*/]))+)"
    rf"(?P<unit>\s*(?:{_SPELLINGS})(?:{_POWER})?(?![A-Za-z]))?"
)
_CASES = re.compile("或")
_JOINED = re.compile(r"或|和|[、，,;]|\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b")
_GREEK = re.compile(r"[αβγθ]|\\(?:alpha|beta|gamma|theta)(?![A-Za-z])")
_DEGREES = re.compile(r"(?<=[0-9}α-ω])\s*+(?:°|\^\s*+\{?+\s*+\\circ\s*+\}?+)")
_RELATION = re.compile(r"[<>≤≥≠≈~∼]|\\(?:leq?|geq?|neq?|approx|sim)(?![A-Za-z])")

EXAMPLES = (
    Sample(response="<think>so 145</think><answer>145</answer>", answer="<answer> 145° </answer>"),
    Sample(response="<answer>2\\sqrt{15} meters</answer>", answer="2√{15}米"),
    Sample(response="<answer>The angle is 145 degrees.</answer>", answer="145°"),
    Sample(response="<answer>5 m</answer>", answer="5cm"),
    Sample(response="<answer>8</answer>", answer="8√{3}"),
    Sample(response="<think>first 145, then 40</think><answer>40</answer>", answer="145°"),
    Sample(response="<answer>40 or 145</answer>", answer="145°"),
)


class Quantity(NamedTuple):
    """An expression in normal form, and its unit, "" if none is stated.

    Example: `Quantity(r"2\\sqrt{15}", "m")`
    """

    expression: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.expression} {self.unit}".strip()


Quantities: TypeAlias = tuple[Quantity, ...]
"""The one quantity of an answer, or all of its cases."""


def explain(completion: Completion, example: Example) -> Explanation:
    """How `geometry` reads a completion."""
    gold = gold_quantities(example)
    return explanation(completion, lambda text: shown(_read_like(text, gold)), str(shown(gold)))


@explained(explain, EXAMPLES)
def geometry(completion: Completion, example: Example) -> float:
    """1.0 if the answer is the gold quantity, else 0.0.

    Expressions are compared by value: `2√{3}` is `2\\sqrt{3}` and `\\frac{6}{\\sqrt{3}}`. The unit may be left out; another
    unit than that of the gold answer is wrong, and nothing is converted. Of a sentence the only expression in it counts;
    two numbers are no answer, unless the gold is two: of `60°或120°` both have to be stated.
    """
    gold = gold_quantities(example)
    candidate = extract_answer(completion.response).candidate
    return float(candidate is not None and _same(_read_like(candidate, gold), gold))


def gold_quantities(example: Example) -> Quantities:
    """The gold quantity, or all of its cases. Raises UserError that names the example if it cannot be read."""
    gold = parse_cases(gold_text(example.answer))
    if gold is None or not all(readable(quantity.expression) for quantity in gold):
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} cannot be read as a quantity. A number or "
            f"expression with or without a unit, such as 145°, 5cm or 2√{{3}}, is allowed. Correct the row, or use the "
            f"reward 'math' for other expressions."
        )
    return gold


def match_geometry(candidate: str, gold: str) -> bool:
    """True if both texts state the same quantity. Total; what cannot be read is not equal."""
    right = parse_cases(gold_text(gold))
    return right is not None and _same(_read_like(candidate, right), right)


def read_quantities(candidate: str, gold: str) -> Quantities | None:
    """What a candidate states: one quantity, or several if the gold has cases; None if it cannot be read so."""
    return _read_like(candidate, parse_cases(gold_text(gold)) or ())


def shown(quantities: Quantities | None) -> str | None:
    return None if quantities is None else " or ".join(map(str, quantities))


def parse_cases(gold: str) -> Quantities | None:
    """The quantities of a gold answer: one, or the cases that `或` joins."""
    return _all(_CASES.split(gold))


def _read_like(candidate: str, gold: Quantities) -> Quantities | None:
    """A list is read only where the gold is one: else it would be a list of guesses."""
    if len(candidate) > MAX_CANDIDATE:
        return None
    return _all(_JOINED.split(last_boxed(candidate) or candidate) if len(gold) > 1 else [candidate])


def _all(texts: Sequence[str]) -> Quantities | None:
    found = [parse_quantity(text.strip(" $") if len(texts) > 1 else text) for text in texts]
    quantities = tuple(quantity for quantity in found if quantity is not None)
    return quantities if len(quantities) == len(found) else None


def _same(mine: Quantities | None, gold: Quantities) -> bool:
    """True if every gold quantity is stated, and nothing else."""
    if mine is None or len(mine) != len(gold):
        return False
    return all(any(_agree(one, right) for one in mine) for right in gold) and all(
        any(_agree(one, right) for right in gold) for one in mine
    )


def _agree(mine: Quantity, gold: Quantity) -> bool:
    if mine.unit and gold.unit and mine.unit != gold.unit:
        return False
    return equal(mine.expression, gold.expression)


def parse_quantity(text: str) -> Quantity | None:
    """The one quantity that a text states; None if it states none or several, or hides something. Total."""
    if len(text) > MAX_CANDIDATE or hides(text):
        return None
    text = (last_boxed(text) or text).strip().strip("*").strip(" .。,")
    spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(text)]
    if len(spans) == 1:
        outside = _SPAN.sub(" ", text)
        if any(character.isnumeric() for character in outside) or is_qualified(
            outside, word_spans(outside)
        ):
            return None
        unit = _UNIT.search(text[text.rindex("$") + 1 :] if "$" in text else "")
        text = spans[0] + (unit[0] if unit and not outside[: -len(unit[0])].strip() else "")
    elif spans:
        return None
    return _quantity(text) or _of_sentence(text)


def _quantity(text: str) -> Quantity | None:
    """A text that is nothing but an expression and a unit."""
    text, unit = _split_unit(text.strip(" .。,"))
    if _GREEK.search(text) and (plain := _DEGREES.sub("", text)) != text:
        text, unit = plain, unit or "deg"
    expression = normalize(text)
    if expression and "=" in expression:
        expression = None if is_qualified(text, word_spans(text)) else right_side(expression)
    if not expression or _WORDS.search(expression) or "," in expression or has_relation(expression):
        return None
    return (
        Quantity(expression, unit)
        if any(c.isdigit() for c in expression) or r"\pi" in expression
        else None
    )


def _of_sentence(text: str) -> Quantity | None:
    """The only expression in a sentence, with the unit behind it."""
    if is_qualified(text, word_spans(text)) or _RELATION.search(text):
        return None
    runs = [
        found
        for found in _MATH_RUN.finditer(text)
        if any(c.isnumeric() or c == "π" for c in found["run"])
    ]
    if len(runs) != 1:
        return None
    (found,) = runs
    before, behind = text[: found.start()], text[found.end() :]
    if before[-1:].isalpha() or (found["unit"] is None and behind[:1].isalpha()):  # "x145", "145B"
        return None
    return _quantity(found["run"].strip(" .,") + (found["unit"] or ""))


def _split_unit(text: str) -> tuple[str, str]:
    found = _UNIT.search(text)
    if found is None or found.start() == 0:
        return text, ""
    unit = _CANONICAL[found["text"] or found["bare"]]
    if unit and (power := found["power"]):
        unit += "^3" if "3" in power or "³" in power else "^2"
    return text[: found.start()], unit
