"""Whether two mathematical expressions mean the same: by their letters, else by their value, else by math-verify.

An expression is first brought to one spelling of LaTeX. Most comparisons are then decided here, at once; `algebra` is asked
where the values are too near, or the text is not arithmetic.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from gpg_vl.answers.math.algebra import DIFFER, MAX_LENGTH, is_bounded, is_same, parse_expression
from gpg_vl.answers.math.arithmetic import Value, digits_in, evaluate

MAX_DEPTH = 20
MAX_LINKS = 4
"""Equals signs in a chain of equations."""
AGREE = 1e-12
"""Relative distance below which two values of few digits are the same; those beyond `DIFFER` are different."""
FEW_DIGITS = 9

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ", "∠": r"\angle ",
    "，": ",", "（": "(", "）": ")", "。": ".", "：": ":", "；": ";", "∶": ":", "△": r"\triangle ", "％": "%", "\xa0": " ",
    "\u2007": " ", "\u2008": " ", "\u2009": " ", "\u200a": " ", "\u202f": " ", "`": " ",
}  # fmt: skip
_TABLE = str.maketrans(_SYMBOLS)
_ROOT = re.compile(r"√\s*+(?:([0-9]++(?>(?:\.[0-9]++)?)|[A-Za-z])|(?=[{(]))")
_ROOT_OF_PARENTHESES = re.compile(r"\\sqrt\s*+\(([^()]*+)\)")
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_FLAT = str.maketrans(_SUPERSCRIPTS, "0123456789-")
_TIGHT = re.compile(r"\\!|(?<=,)\\[,;: ](?=[0-9]{3}(?![0-9]))")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:> ]|~|\\(?:left|right|displaystyle|quad|qquad|limits|big|Big|bigg|Bigg)(?![A-Za-z])"
)
_OTHER_NAMES = (
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\log_\{?e\}?(?![A-Za-z])"), r"\\ln"),
    (re.compile(r"\\text\s*\{\s*(or|and)\s*\}"), r" \1 "),
)
# `\sin^2(x)` and `\sin^2 x`, which math-verify takes for a function with the name "sin^2".
_POWER_OF_FUNCTION = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln)\s*\^\s*(?:\{([0-9]{1,2})\}|([0-9]))\s*"
    r"(\([^()]*+\)|\{[^{}]*+\}|\\?[A-Za-z]+|[0-9]*[A-Za-z0-9])"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_DIGIT_FRACTION = re.compile(r"\\frac\s*+([0-9])\s*+([0-9])(?![0-9])")
_MIXED = re.compile(r"(?<![0-9./])([0-9]{1,9}+) +([0-9]{1,9}+)/([0-9]{1,9}+)(?![0-9./])")
_SCIENTIFIC = re.compile(
    r"(?<![A-Za-z0-9.])([0-9]{1,18}+(?>(?:\.[0-9]{1,18}+)?))[eE]([+-]?[0-9]{1,3}+)(?![A-Za-z0-9.])"
)
_SPELLED = re.compile(r"(?<![\\A-Za-z])(sqrt|pi)(?![A-Za-z])")
_BARE_POWER = re.compile(r"\^\s*+(-?[0-9]{2,}+)")
_CARET_AS_POWER = re.compile(r"\*\*")
_GROUPED = re.compile(r"[0-9]{1,3}+(?:(?>(?:,[0-9]{3})+)|(?>(?: [0-9]{3})+))")
_BRACED_COMMA = re.compile(r"\{,\}")
_BRACKETED = re.compile(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})")
_EQUALS = re.compile(r"(?<![<>!=])=(?!=)")
_LIST = re.compile(r"[,;]|\bor\b|\band\b")
_SUBSCRIPT = re.compile(r"_\{?[A-Za-z0-9]\}?|(?<=[A-Za-z])[0-9]")
# A name may hold letters, words, primes, parentheses around a letter, and digits only as an index: AB, f(x), x_1, ∠1.
_LABEL = r"(?>(?:[A-Za-z\s'{}]|\\[A-Za-z]++|\([A-Za-z]\)|_\{?[A-Za-z0-9]\}?|(?<=[A-Za-z])[0-9]|(?<=angle )\s*+[0-9])*)"
_NAME = re.compile(_LABEL)
_NAMED = re.compile(rf"({_LABEL})=([^=]*)")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|neq?|lt|gt|approx|sim|in|subset|ne)(?![A-Za-z])")
_BASE = re.compile(r"(?<=[0-9])_\s*+(?>(?:\{\s*+)?)([0-9]++)")
_FREE_BLANKS = re.compile(r"(?<![0-9.])\s++|\s++(?![0-9.])")
_LINES = re.compile(r"[ \t]*+[\r\n]\s*+")
_WORD_OR = re.compile(r"\b(?:or|and)\b")
_CURRENCY = re.compile(r"^\s*-?\s*(?:[€£¥]|USD\s|EUR\s)\s*(?=[0-9])|(?<=[0-9])\s*[€£¥]$")
_APPROXIMATED = re.compile(
    r"(.{1,200}?)(?:\\approx(?![A-Za-z])|≈|\\simeq(?![A-Za-z])"
    r"|\(\s*(?:≈|\\approx|~|about|approximately|approx\.?|roughly|or\s+about))([^()≈]{1,60}?)\)?[\s.]*",
    re.DOTALL,
)
ROUGHLY = 0.02
_LESS_OR_EQUAL = frozenset({r"\le", r"\leq", "<="})
_GREATER = r"\gt"
_SIGN = r"<=|>=|<|>|\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z])|\\[lg]t(?![A-Za-z])"
_LESS = r"<=|<|\\leq?(?![A-Za-z])|\\lt(?![A-Za-z])"
_BETWEEN = re.compile(rf"([^<>=]{{1,80}}?)\s*({_LESS})\s*[A-Za-z]\s*({_LESS})\s*([^<>=]{{1,80}})")
_BOUND = re.compile(rf"[A-Za-z]\s*({_SIGN})\s*([^<>=]{{1,80}})")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_UNION = re.compile(r"\bor\b|\\cup(?![A-Za-z])|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|,")
_BEFORE, _BEHIND = " \t\r\n,;:", " \t\r\n.,;:"


def normalize(text: str) -> str | None:
    """The text in one spelling of LaTeX, or None if it holds characters that could hide something, or is too long.

    Roots and signs of Unicode become commands, spacing commands disappear, thousands separators go where the text is one
    number, and `2^10` is read as people mean it. Digits of other scripts, invisible characters and accents are refused.
    """
    if len(text) > MAX_LENGTH:
        return None

    # Unicode signs become LaTeX commands
    text = (
        text if text.isascii() else _RAISED.sub(lambda one: f"^{{{one[0].translate(_FLAT)}}}", text)
    )
    text = _ROOT.sub(
        lambda found: rf"\sqrt{{{found[1]}}}" if found[1] else r"\sqrt", text
    ).translate(_TABLE)

    # spacing and currency commands disappear
    text = _SPACING.sub(
        " ", _TIGHT.sub("", text).replace(r"\$", "").replace(r"\%", "%").replace("$", "")
    )

    # one form of fractions, powers, roots and names
    text = _DIGIT_FRACTION.sub(
        r"\\frac{\1}{\2}", _FRACTION.sub(r"\\frac", _BRACED_COMMA.sub(",", text))
    )
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", _SPELLED.sub(r"\\\1", text))
    text = _ROOT_OF_PARENTHESES.sub(r"\\sqrt{\1}", text)
    text = _BARE_POWER.sub(r"^{\1}", _CARET_AS_POWER.sub("^", text))
    for pattern, name in _OTHER_NAMES:
        text = pattern.sub(name, text)
    text = _POWER_OF_FUNCTION.sub(_move_power, text)

    # punctuation around the text, lines, currencies and thousands separators
    text = text.lstrip(_BEFORE).rstrip(_BEHIND)
    text = _LINES.sub(" " if r"\begin" in text else ", ", text)  # two lines are two statements
    text = _CURRENCY.sub("", text)
    if _GROUPED.fullmatch(text.lstrip("-+ ").rstrip("% ").partition(".")[0]):
        text = text.replace(",", "").replace(" ", "")
    text = _replace_list_words(text)

    if not text.isascii() and not all(_is_plain(character) for character in text):
        return None
    return text if depth_of(text) <= MAX_DEPTH else None


def _move_power(found: re.Match[str]) -> str:
    argument = found[4].strip("(){}")
    return rf"(\{found[1]}({argument}))^{{{found[2] or found[3]}}}"


def _replace_list_words(text: str) -> str:
    """`\\{1, 2\\}` for "1 or 2", whose order says nothing, and `1, 2` for "1 and 2"; equations and inequalities stay."""
    if _WORD_OR.search(text) is None or "=" in text or has_relation(text):
        return text
    parts = [part.strip() for part in _LIST.split(text) if part.strip()]
    alternatives = re.search(r"\bor\b", text) is not None
    return rf"\{{{', '.join(parts)}\}}" if alternatives else ", ".join(parts)


def first_of_approximations(text: str) -> str:
    """The exact side of `2√3 ≈ 3.46` and of "2√3 (about 3.46)", if the other one is within 2 % of it; else the text."""
    found = _APPROXIMATED.fullmatch(text)
    if found is None:
        return text
    exact, rounded = (normalize(part.rpartition("=")[2]) for part in found.groups())
    one, other = (part and evaluate(_percent(part)) for part in (exact, rounded))
    if not one or not other or abs(one.number - other.number) > ROUGHLY * abs(one.number):
        return text
    return found[1].strip(" $")


def _percent(text: str) -> str:
    return rf"\frac{{{text[:-1]}}}{{100}}" if text.endswith("%") else text


def interval(text: str) -> str | None:
    """The interval, or union of intervals, that inequalities of one letter describe, `[1,2)` of `1 \\le x < 2`; without
    `x \\in` if it is one already. None if the text is neither."""
    text = text.strip()
    if member := _MEMBER.match(text):
        return text[member.end() :].strip()
    parts = [part.strip(" ,") for part in _UNION.split(text)]
    pieces = [_interval(part) for part in parts]
    return r"\cup ".join(piece for piece in pieces if piece) if all(pieces) else None


def _interval(text: str) -> str | None:
    if between := _BETWEEN.fullmatch(text):
        low, left, right, high = between.groups()
        return f"{'[' if left in _LESS_OR_EQUAL else '('}{low.strip()},{high.strip()}{']' if right in _LESS_OR_EQUAL else ')'}"
    bound = _BOUND.fullmatch(text)
    if bound is None:
        return None
    sign, value = bound[1], bound[2].strip()
    if sign.startswith((">", r"\g")):
        return f"{'(' if sign in {'>', _GREATER} else '['}{value},\\infty)"
    return f"(-\\infty,{value}{']' if sign in _LESS_OR_EQUAL else ')'}"


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
    """True if two normalised expressions mean the same. Not symmetric where math-verify is not: the gold form leads.

    The base of a numeral, as in `2516_8`, may be left out; another base is wrong.
    """
    if not candidate or not gold:
        return False
    answer_value, gold_value = _BASE.findall(candidate), _BASE.findall(gold)
    if answer_value and gold_value and answer_value != gold_value:
        return False
    if _remove_blanks(candidate) == _remove_blanks(gold):
        return True
    if candidate.endswith("%") or gold.endswith("%"):
        return _equal_percentages(candidate, gold)
    if evaluate(gold) is not None and has_relation(candidate):
        return False
    decided = _compare(candidate, gold)
    return is_bounded(candidate, gold) and is_same(candidate, gold) if decided is None else decided


def _equal_percentages(candidate: str, gold: str) -> bool:
    """Of two texts of which one at least ends in a percent sign: `12%` is `12%`, `12` and `0.12`, as in math-verify."""
    answer_value, gold_value = candidate.removesuffix("%"), gold.removesuffix("%")
    if equal(answer_value, gold_value):
        return True
    if answer_value == candidate:
        return equal(answer_value, rf"\frac{{{gold_value}}}{{100}}")
    return gold_value == gold and equal(rf"\frac{{{answer_value}}}{{100}}", gold_value)


def has_relation(text: str) -> bool:
    """True if a normalised expression compares, other than by `=`, or says that something is in a set."""
    return _RELATION.search(text) is not None


def _remove_blanks(text: str) -> str:
    return _FREE_BLANKS.sub("", text)


def is_readable(text: str) -> bool:
    """True if a normalised expression has a value, or math-verify can read it."""
    if evaluate(text, letters=True) is not None or _parse_list(text) is not None:
        return True
    return is_bounded(text, text) and bool(parse_expression(text))


def right_side(text: str) -> str | None:
    """What a chain of equations ends in: `5` of `x = 5` and of `2+3 = 5`; the text itself without `=`.

    None if a link is broken, as in `4 = 5`, so that a chain is no list of guesses. What is before must be a name, or
    be equal to what it ends in. `x = 1, x = 2` and `x = 1 or x = 2` end in `1, 2`.
    """
    *before, last = _EQUALS.split(text)
    if len(before) > 1:
        pieces = [_NAMED.fullmatch(piece) for piece in _LIST.split(text)]
        if (
            len({piece and _SUBSCRIPT.sub("", piece[1]).strip() for piece in pieces}) == 1
            and len(pieces) > 1
        ):
            values = ", ".join(piece[2].strip() for piece in pieces if piece)
            return rf"\{{{values}\}}" if re.search(r"\bor\b", text) else values
    if len(before) > MAX_LINKS:
        return None
    return last.strip() if all(_link_holds(part.strip(), last.strip()) for part in before) else None


def _link_holds(part: str, last: str) -> bool:
    if evaluate(part) is None and _NAME.fullmatch(part):
        return True
    return equal(part, last)


def _compare(candidate: str, gold: str) -> bool | None:
    """Whether the two are equal, as far as their values tell; None if math-verify has to say."""
    answer_value, gold_value = _parse_list(candidate), _parse_list(gold)
    if answer_value is not None and gold_value is not None:
        return _compare_lists(answer_value, gold_value)
    one, other = evaluate(candidate), evaluate(gold)
    if one is not None and other is not None:
        return _compare_values(one, other, digits_in(candidate) + digits_in(gold))
    one, other = evaluate(candidate, letters=True), evaluate(gold, letters=True)
    if one is not None and other is not None:
        distance = abs(one.number - other.number)
        return False if distance > DIFFER * max(abs(one.number), abs(other.number)) else None
    if (answer_value is not None and other is not None) or (
        one is not None and gold_value is not None
    ):
        return False  # a list and a single value
    return None


def _compare_values(answer_value: Value, gold_value: Value, digits: int) -> bool | None:
    """Whether two values are equal, or None if they are so near that it depends on what rounding is allowed."""
    if answer_value.exact is not None and answer_value.exact == gold_value.exact:
        return True
    distance = abs(answer_value.number - gold_value.number)
    scale = abs(gold_value.number)
    if distance > DIFFER * scale:
        return False
    if (
        (answer_value.exact is None or gold_value.exact is None)
        and digits <= FEW_DIGITS
        and distance <= AGREE * scale
    ):
        return True
    return None


class _Listed(NamedTuple):
    """A text that lists values: `(1,2]`, `\\{1,2\\}`, `1, 2`. Brackets are "" for a bare list."""

    opening: str
    values: tuple[Fraction, ...]
    closing: str


def _parse_list(text: str) -> _Listed | None:
    """A list of at least two fractions, or None."""
    found = _BRACKETED.fullmatch(text)
    opening, inner, closing = found.groups() if found else ("", text, "")
    values = [evaluate(part.strip()) for part in inner.split(",")] if "," in inner else []
    fractions = tuple(
        value.exact for value in values if value is not None and value.exact is not None
    )
    return _Listed(opening, fractions, closing) if len(fractions) == len(values) > 1 else None


def _compare_lists(answer_value: _Listed, gold_value: _Listed) -> bool | None:
    """Whether two lists are equal: in order if the gold is in parentheses or brackets, else as sets. None: not known.

    A set is no tuple, and a tuple no set; a bare list may be either.
    """
    ordered = gold_value.opening in {"(", "["}
    if (
        gold_value.opening
        and answer_value.opening
        and (answer_value.opening, answer_value.closing) != (gold_value.opening, gold_value.closing)
    ) or (answer_value.opening in {"(", "["} and not ordered and gold_value.opening):
        return False
    if ordered:
        one, other = answer_value.values, gold_value.values
    else:
        one, other = tuple(sorted(set(answer_value.values))), tuple(sorted(set(gold_value.values)))
    if one == other:
        return True
    return None if _are_near(one, other) else False


def _are_near(answer_value: Sequence[Fraction], gold_value: Sequence[Fraction]) -> bool:
    """True if as many values agree to what rounding could allow."""
    return len(answer_value) == len(gold_value) and all(
        abs(one - other) <= DIFFER * max(abs(one), abs(other))
        for one, other in zip(answer_value, gold_value, strict=True)
    )
