"""Quantities: reads the number or expression that an answer states, with its unit.

Units, degree signs and roots are written in many ways (`5cm`, `5 \\text{ cm}`, `5厘米`, `145°`, `145^\\circ`, `2√{15}米`).
They are brought to one spelling here; whether two expressions are equal is decided in `math.equality`. A gold answer may
hold Greek letters (`90°-α`), and it may name cases, `60°或120°`: then all of them, in any order, are the answer.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from gpg_vl.answers.extract import gold_text, last_boxed
from gpg_vl.answers.math.equality import (
    equal,
    first_of_approximations,
    has_relation,
    is_readable,
    normalize,
    right_side,
)
from gpg_vl.answers.text.numerals import (
    CJK,
    has_hidden_characters,
    is_changed,
    is_qualified,
    with_digits,
    word_spans,
)
from gpg_vl.answers.text.sentences import without_label
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

MAX_CANDIDATE = 500
_UNITS = """
deg: ° ^\\circ ^{\\circ} \\circ \\degree ^o ^{o} degrees degree deg 度
rad: rad radians radian
%: % \\% percent
mm: mm 毫米 millimeters millimeter millimetres millimetre
cm: cm 厘米 centimeters centimeter centimetres centimetre
dm: dm 分米
m: m 米 meters meter metres metre
km: km 千米 公里 kilometers kilometer kilometres kilometre
nmi: 海里 nautical_miles nautical_mile sea_miles sea_mile n_mile nmi
inch: inches inch in
foot: feet foot ft
yard: yards yard yd
mile: miles mile mi
h: 小时 时 hours hour hrs h
min: 分钟 minutes minute min
s: 秒 seconds second s
day: 天 日 days day
kg: 千克 公斤 kilograms kilogram kg
g: 克 grams gram g
lb: pounds pound lbs lb
l: 升 liters liter litres litre L
yuan: 元 yuan
mm^2: 平方毫米
cm^2: 平方厘米 square_centimeters square_centimetres sq_cm
m^2: 平方米 square_meters square_metres sq_m
km^2: 平方千米 平方公里 square_kilometers square_kilometres
cm^3: 立方厘米 cubic_centimeters cubic_centimetres
m^3: 立方米 cubic_meters cubic_metres
"""
UNITS = {
    name: tuple(spelling.replace("_", " ") for spelling in spellings.split())
    for name, spellings in (line.split(": ") for line in _UNITS.strip().splitlines())
} | {"": ("units", "unit", "单位", "square units", "cubic units")}
"""The spellings of each unit; "units" counts as no unit.

A length may carry a square or a cube: `cm²`, `cm2`, `cm^2`, `cm^{2}`, `cm^2^`. Any other word behind a number is a unit of
its own.
"""

_CANONICAL = {spelling: unit for unit, spellings in UNITS.items() for spelling in spellings}
_SPELLINGS = "|".join(re.escape(spelling) for spelling in sorted(_CANONICAL, key=len, reverse=True))
_POWER = r"(?:²|³|\^\{([23])\}|\^([23])\^?|(?<=[a-z])([23]))"
# A unit follows a digit, a brace, a root or a letter of another script, with blanks or as a text command.
_UNIT = re.compile(
    rf"\s*(?:\\(?:text|mathrm|mbox|rm)\s*\{{[\s~]*(?P<text>{_SPELLINGS})\s*\}}|(?<![A-Za-z\\])(?P<bare>{_SPELLINGS}))"
    rf"(?P<power>{_POWER})?\s*$"
)
_SPAN = re.compile(r"\\\((.+?)\\\)|\\\[(.+?)\\\]|\$\$?([^$]+)\$\$?", re.DOTALL)
_WORDS = re.compile(r"(?<!\\)\b(?!sqrt\b|pi\b|frac\b)[A-Za-z]{2,}")
# What may be the number of a sentence: a run of digits, roots, fractions and operations between them; and its unit.
_MATH_RUN = re.compile(
    r"(?P<run>(?:\\[dt]?frac|\\sqrt|\\pi|\\circ|\\cdot|\\times|[0-9√π.,+\-−*/^{}()°²³%]|(?<=[0-9})°])\s(?=[√\\+\-−*/]))+)"
    rf"(?P<unit>\s*(?:{_SPELLINGS})(?:{_POWER})?(?![A-Za-z]))?"
)
_OTHER_UNIT = re.compile(
    r"\s*(?:\\(?:text|mathrm|mbox|rm)\s*\{[\s~]*([A-Za-z][A-Za-z ]*)|([A-Za-z]{2,}))"
)
_NO_UNIT = """
as and in at on by for is are was so because since which that from to of when if with the an or than then hence thus therefore
here away long wide tall high each where but not it
"""
_NO_UNITS = frozenset(_NO_UNIT.split())
"""Words after a number that are not units."""
_CASES = re.compile("或")
_JOINED = re.compile(r"或|和|[、，,;]|\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b")
_CHINESE = re.compile(f"[{CJK}]")
_DEGREES = re.compile(r"(?<=[0-9}α-ω])\s*+(?:°|\^\s*+\{?+\s*+\\circ\s*+\}?+)")
_RELATION = re.compile(r"[<>≤≥≠≈~∼]|\\(?:leq?|geq?|neq?|approx|sim)(?![A-Za-z])")


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


def judge(answer: str, example: Example) -> Verdict:
    """1.0 if the answer is the gold quantity, or all cases of it; a unit may be left out, and another one is wrong."""
    gold = gold_quantities(example)
    found_quantities = _read_like(answer, gold) if answer else None
    return Verdict(
        score=float(_same(found_quantities, gold)),
        parsed=format_quantities(found_quantities),
        gold=str(format_quantities(gold)),
    )


def gold_quantities(example: Example) -> Quantities:
    """The gold quantity, or all of its cases. Raises UserError that names the example if it cannot be read."""
    gold = _gold_cases(example.answer)
    if gold is None:
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} cannot be read as a quantity. A number or "
            f"expression with or without a unit, such as 145°, 5cm or 2√{{3}}, is allowed. Correct the row, or use the "
            f"reward 'math' for other expressions."
        )
    return gold


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _gold_cases(answer: str) -> Quantities | None:
    gold = parse_cases(gold_text(answer))
    return gold if gold and all(is_readable(quantity.expression) for quantity in gold) else None


def matches(answer: str, gold: str) -> bool:
    """True if both texts state the same quantity. Total; what cannot be read is not equal."""
    right = parse_cases(gold_text(gold))
    return right is not None and _same(_read_like(answer, right), right)


def format_quantities(quantities: Quantities | None) -> str | None:
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


def _same(found_quantities: Quantities | None, gold: Quantities) -> bool:
    """True if every gold quantity is stated, and nothing else."""
    if found_quantities is None or len(found_quantities) != len(gold):
        return False
    return all(any(_agree(one, right) for one in found_quantities) for right in gold) and all(
        any(_agree(one, right) for right in gold) for one in found_quantities
    )


def _agree(found_quantities: Quantity, gold: Quantity) -> bool:
    if found_quantities.unit and gold.unit and found_quantities.unit != gold.unit:
        return False
    return equal(found_quantities.expression, gold.expression)


def parse_quantity(text: str) -> Quantity | None:
    """The one quantity that a text states; None if it states none or several, or hides something. Total."""
    if len(text) > MAX_CANDIDATE or has_hidden_characters(text):
        return None
    text = without_label((last_boxed(text) or text).strip().strip("*`").strip(" .。,"))
    text = first_of_approximations(with_digits(text))
    spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(text)]
    if len(spans) == 1:
        outside = _SPAN.sub(" ", text)
        if any(character.isnumeric() for character in outside) or is_qualified(
            outside, word_spans(outside)
        ):
            return None
        unit = _UNIT.search(text[text.rindex("$") + 1 :] if "$" in text else "")
        text = spans[0] + (unit[0] if unit and not outside[: -len(unit[0])].strip() else "")
        text = first_of_approximations(text)
    elif spans:
        return None
    return _quantity(text) or _of_sentence(text)


def _quantity(text: str) -> Quantity | None:
    """A text that is nothing but an expression and a unit."""
    text, unit = _split_unit(text.strip(" .。,"))
    if (plain := _DEGREES.sub("", text)) != text:
        text, unit = plain, unit or "deg"
    expression = normalize(text)
    if expression and "=" in expression:
        expression = None if is_qualified(text, word_spans(text)) else right_side(expression)
    if (
        not expression
        or _WORDS.search(expression)
        or "," in expression
        or has_relation(expression)
        or not (expression.isascii() or _CHINESE.search(expression) is None)
    ):
        return None
    return (
        Quantity(expression, unit)
        if any(c.isdigit() for c in expression) or r"\pi" in expression
        else None
    )


def _of_sentence(text: str) -> Quantity | None:
    """The only expression in a sentence, with the unit behind it. The 2 of ∠2 is a name."""
    if is_qualified(text, word_spans(text)) or _RELATION.search(text):
        return None
    runs = [
        found
        for found in _MATH_RUN.finditer(text)
        if any(c.isdecimal() or c == "π" for c in found["run"])
        and not text[: found.start()].endswith(("∠", "angle "))
    ]
    if len(runs) != 1:
        return None

    # letters right next to the expression make it part of a name
    (found,) = runs
    before, behind = text[: found.start()][-1:], text[found.end() :]
    letters = (before.isascii() and before.isalpha()) or (
        found["unit"] is None and behind[:1].isascii() and behind[:1].isalpha()
    )
    if letters or is_changed(text, *found.span("run")):  # "x145", "145B", "minus 145"
        return None

    # an unknown word after the expression counts as its unit
    quantity = _quantity(found["run"].strip(" .,") + (found["unit"] or ""))
    other = None if found["unit"] else _OTHER_UNIT.match(text, found.end())
    word = (other[1] or other[2]).strip().casefold() if other else ""
    return (
        quantity._replace(unit=quantity.unit or word)
        if quantity and word not in _NO_UNITS
        else quantity
    )


def _split_unit(text: str) -> tuple[str, str]:
    found = _UNIT.search(text)
    if found is None or found.start() == 0:
        return text, ""
    unit = _CANONICAL[found["text"] or found["bare"]]
    if unit and (power := found["power"]):
        unit += "^3" if "3" in power or "³" in power else "^2"
    return text[: found.start()], unit
