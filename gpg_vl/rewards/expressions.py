"""Whether two mathematical expressions mean the same: by their letters, by their value, else by math-verify, with bounds.

math-verify reads LaTeX and compares with a computer algebra system. What it is given here is bounded in length, nesting
and in what it may compute, because `9^{9^9}` would keep it busy for ever; and its answer is only asked for where the
text and the value have not decided already. Nothing is executed: the text goes to a grammar of LaTeX, never to Python.
"""

import logging
import re
import threading
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from gpg_vl.rewards.arithmetic import Value, digits_in, evaluate

MAX_LENGTH = 400
MAX_DEPTH = 20
TIME_LIMIT = 4
"""Whole seconds for one step of math-verify, where a signal can enforce it: in the main thread. Then: not equal."""
AGREE, DIFFER = 1e-12, 2e-6
"""Relative distances below and above which two values are decided by themselves. math-verify rounds decimals to 1e-6."""
FEW_DIGITS = 9

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "²": "^{2}", "³": "^{3}", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ", "∠": r"\angle ",
    "，": ",", "（": "(", "）": ")", "。": ".", "：": ":", "；": ";", "∶": ":", "△": r"\triangle ", "％": "%", "\xa0": " ",
}  # fmt: skip
_TABLE = str.maketrans(_SYMBOLS)
_ROOT = re.compile(r"√\s*+(?:([0-9]++(?:\.[0-9]++)?+|[A-Za-z])|(?=[{(]))")
_ROOT_OF_PARENTHESES = re.compile(r"\\sqrt\s*+\(([^()]*+)\)")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:!> ]|~|\\(?:left|right|displaystyle|quad|qquad|limits|big|Big|bigg|Bigg)(?![A-Za-z])"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_DIGIT_FRACTION = re.compile(r"\\frac\s*+([0-9])\s*+([0-9])(?![0-9])")
_MIXED = re.compile(r"(?<![0-9./])([0-9]{1,9}+) +([0-9]{1,9}+)/([0-9]{1,9}+)(?![0-9./])")
_BARE_POWER = re.compile(r"\^\s*+(-?[0-9]{2,}+)")
_CARET_AS_POWER = re.compile(r"\*\*")
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}+(?:,[0-9]{3})++(?![0-9])")
_BRACED_COMMA = re.compile(r"\{,\}")
_PUNCTUATION = " \t\r\n.,;:"

_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_COMMANDS = r"""
frac sqrt pi times cdot div pm mp infty cup cap in le leq ge geq lt gt ne neq emptyset varnothing text mathrm mathbf
textbf mbox operatorname sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lg alpha beta gamma
delta epsilon theta lambda mu phi varphi rho sigma tau omega begin end angle triangle circ degree overline mid land
lor wedge vee setminus mathbb ldots dots binom { } % $ _ | \
"""
_KNOWN_COMMANDS = frozenset(_COMMANDS.split())
"""What a candidate may hold beside what its gold holds: nothing that sums, integrates, differentiates or takes limits."""
_LONG_NUMBER = re.compile(r"[0-9]{31}")
_POWER = re.compile(r"(?P<base>[A-Za-z])?\s*+\^\s*+\{?+\s*+-?+(?P<exponent>[0-9]++)?")
_BRACE_OR_POWER = re.compile(r"\^\s*+\{?+|[{}]")
_TWO_NUMBERS = re.compile(r"[0-9.]\s++[0-9.]")
_BINOMIAL = re.compile(r"[0-9]{4,}")


def normalize(text: str) -> str | None:
    """The text in one spelling of LaTeX, or None if it holds characters that could hide something, or is too long.

    Roots and signs of Unicode become commands, spacing commands disappear, thousands separators go where the text is one
    number, and `2^10` is read as people mean it. Digits of other scripts, invisible characters and accents are refused.
    """
    if len(text) > MAX_LENGTH:
        return None
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1]}}}" if found[1] else r"\sqrt", text).translate(_TABLE)
    text = _SPACING.sub(" ", text.replace(r"\$", "").replace(r"\%", "%").replace("$", ""))
    text = _DIGIT_FRACTION.sub(r"\\frac{\1}{\2}", _FRACTION.sub(r"\\frac", _BRACED_COMMA.sub(",", text)))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _ROOT_OF_PARENTHESES.sub(r"\\sqrt{\1}", text)
    text = _BARE_POWER.sub(r"^{\1}", _CARET_AS_POWER.sub("^", text))
    text = text.strip(_PUNCTUATION)
    if not any(mark in text for mark in "([{"):
        text = (
            _GROUPED.sub(lambda found: found[0].replace(",", ""), text)
            if _GROUPED.fullmatch(text.strip("-+% "))
            else text
        )
    if not text.isascii() and not all(_is_plain(character) for character in text):
        return None
    return text if depth_of(text) <= MAX_DEPTH else None


def _is_plain(character: str) -> bool:
    """Letters are plain in any script; invisible characters, accents and digits that are not ASCII are not."""
    return character.isascii() or unicodedata.category(character) in {"Lu", "Ll", "Lo", "Lt"}


def depth_of(text: str) -> int:
    """How deep braces, brackets and parentheses are nested at most."""
    deepest = depth = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def equal(candidate: str, gold: str) -> bool:
    """True if two normalised expressions mean the same. Not symmetric where math-verify is not: the gold form leads."""
    if not candidate or not gold:
        return False
    if _squeezed(candidate) == _squeezed(gold):
        return True
    mine, right = evaluate(candidate), evaluate(gold)
    if mine is not None and right is not None:
        decided = _decided(mine, right, digits_in(candidate) + digits_in(gold))
        if decided is not None:
            return decided
    return is_bounded(candidate, gold) and _verified(candidate, gold)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _decided(mine: Value, right: Value, digits: int) -> bool | None:
    """Whether two values are equal, or None if they are so near that it depends on what rounding is allowed."""
    if mine.exact is not None and mine.exact == right.exact:
        return True
    distance = abs(mine.number - right.number)
    scale = abs(right.number)
    if distance > DIFFER * scale:
        return False
    if (mine.exact is None or right.exact is None) and digits <= FEW_DIGITS and distance <= AGREE * scale:
        return True
    return None


def is_bounded(candidate: str, gold: str) -> bool:
    """True if a candidate can be handed to a computer algebra system: nothing in it takes long, or is not in the gold."""
    if len(candidate) > MAX_LENGTH or depth_of(candidate) > MAX_DEPTH or not candidate.isascii():
        return False
    known = _KNOWN_COMMANDS | set(_COMMAND.findall(gold))
    if any(command not in known for command in _COMMAND.findall(candidate)):
        return False
    if (
        _LONG_NUMBER.search(candidate)
        or _TWO_NUMBERS.search(candidate)
        or (r"\binom" in candidate and _BINOMIAL.search(candidate))
    ):
        return False
    if candidate.count("!") > gold.count("!") or candidate.count("=") > max(1, gold.count("=")):
        return False
    powers, right = _powers(candidate), _powers(gold)
    return powers.height <= max(1, right.height) and powers.product <= max(10_000, right.product)


class _Powers(NamedTuple):
    """How much a text could blow up."""

    product: int
    """All exponents over something else than a letter, multiplied: what a chain of powers comes to at most."""
    height: int
    """How many exponents tower above each other."""


def _powers(text: str) -> _Powers:
    product, height, depth = 1, 0, 0
    open_exponents: list[int] = []  # for each exponent that is open, how deep its braces are
    for power in _POWER.finditer(text):
        exponent = int((power["exponent"] or "1")[:9])
        if power["base"] is None or exponent > 999:
            product *= max(1, exponent)
    for token in _BRACE_OR_POWER.finditer(text):
        if token[0][0] == "^":
            height = max(height, len(open_exponents) + 1)
            if token[0][-1] == "{":
                open_exponents.append(depth)
        depth += (token[0][-1] == "{") - (token[0] == "}")
        while open_exponents and depth <= open_exponents[-1]:
            open_exponents.pop()
    return _Powers(product, height)


@lru_cache(maxsize=4096)
def _verified(candidate: str, gold: str) -> bool:
    """What math-verify says to the two, gold first."""
    verify, _ = _math_verify()
    right, mine = _parsed(gold), _parsed(candidate)
    return bool(right) and bool(mine) and bool(verify(right, mine, timeout_seconds=_time_limit()))


def readable(text: str) -> bool:
    """True if a normalised expression has a value, or math-verify can read it."""
    return bool(text) and (evaluate(text) is not None or (is_bounded(text, text) and bool(_parsed(text))))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    """What math-verify reads in an expression: one object of sympy, or nothing."""
    _, parse = _math_verify()
    found = parse(f"${text}$", parsing_timeout=_time_limit())
    return [item for item in found if not isinstance(item, str)]


def _time_limit() -> int | None:
    return TIME_LIMIT if threading.current_thread() is threading.main_thread() else None


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Any, Any]:
    """(verify, parse), imported when first needed: sympy takes half a second.

    Units are left to us: math-verify also drops words such as "more", "c" and "t" behind a number.
    """
    from math_verify import verify
    from math_verify.parser import LatexExtractionConfig, NormalizationConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once that there is no time limit
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        )
    )

    def parse_one(text: str, *, parsing_timeout: int | None) -> Any:
        return parse(text, extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=parsing_timeout)

    return verify, parse_one


def exact_value(text: str) -> Fraction | None:
    """The value of a normalised expression that is a fraction, else None."""
    value = evaluate(text)
    return None if value is None else value.exact
