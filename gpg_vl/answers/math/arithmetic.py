"""The value of a closed arithmetic expression in LaTeX: numbers, + - * /, fractions, roots, powers, pi. Nothing else.

It exists to decide the ordinary comparison at once and with bounds: most answers are a number or a short expression, and
a computer algebra system takes milliseconds for each, or for ever on `9^{9^9}`. Whatever it does not know, such as a
mixed number, a function or a percent sign, makes the value None, and the caller turns to math-verify.

With letters allowed, each stands for a fixed fraction of its own. Two expressions whose values then differ are different;
whether two with equal values are the same is for the caller to find out.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

MAX_LENGTH = 200
MAX_DEPTH = 12
MAX_DIGITS = 18
MAX_POWER = 64

_TOKEN = re.compile(
    r"\s*+(\\[A-Za-z]++|[0-9]++(?>(?:\.[0-9]++)?)|\.[0-9]++|[-+*/^(){}\[\]]|[A-DF-Za-df-hj-z])"
)
_STARTS_FACTOR = frozenset({"\\sqrt", "\\pi", "("})


class Value(NamedTuple):
    """A real number, also as a fraction where it is one and was computed without rounding."""

    number: float
    exact: Fraction | None


class _NotArithmetic(Exception):
    """The text is not an expression that this module knows."""


@lru_cache(maxsize=4096)
def evaluate(latex: str, *, letters: bool = False) -> Value | None:
    """The value of an expression, or None. Total; time is bounded by `MAX_LENGTH`. Letters other than e, E, i if asked."""
    if len(latex) > MAX_LENGTH:
        return None
    tokens, at = [], 0
    while found := _TOKEN.match(latex, at):
        tokens.append(found[1])
        at = found.end()
    if not tokens or latex[at:].strip():
        return None
    parser = _Parser(tokens, letters)
    try:
        value = parser.sum(0)
    except (_NotArithmetic, OverflowError, ZeroDivisionError):
        return None
    return value if parser.next is None and math.isfinite(value.number) else None


def digits_in(latex: str) -> int:
    """How many digits a text holds: few of them cannot spell two values that nearly agree."""
    return sum(character.isdigit() for character in latex)


class _Parser:
    """Recursive descent over the tokens, one method per rule, each given how deep it is nested."""

    def __init__(self, tokens: list[str], letters: bool) -> None:
        self._tokens = tokens
        self._letters = letters
        self._at = 0

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self, *wanted: str) -> str | None:
        """The next token if it is one of `wanted`."""
        token = self.next
        if token is None or token not in wanted:
            return None
        self._at += 1
        return token

    def need(self, wanted: str) -> None:
        if self.take(wanted) is None:
            raise _NotArithmetic

    def sum(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise _NotArithmetic
        sign = self.take("+", "-")
        total = self.product(depth)
        if sign == "-":
            total = _minus(total)
        while sign := self.take("+", "-"):
            term = self.product(depth)
            total = _plus(total, _minus(term) if sign == "-" else term)
        return total

    def product(self, depth: int) -> Value:
        result, divided = self.power(depth), False
        while True:
            if self.take("*", "\\times", "\\cdot"):
                result, divided = _times(result, self.power(depth)), False
            elif self.take("/", "\\div"):
                result, divided = _over(result, self.power(depth)), True
            elif self.next in _STARTS_FACTOR or (
                self.next is not None and self.next.isalpha()
            ):  # 2\sqrt{3}, 2\pi, 2x
                if divided:  # 1/2\pi may mean either
                    raise _NotArithmetic
                result = _times(result, self.power(depth))
            else:
                return result

    def power(self, depth: int) -> Value:
        base = self.atom(depth)
        if not self.take("^"):
            return base
        exponent = self.argument(depth)
        if self.next == "^":
            raise _NotArithmetic
        return _to_the(base, exponent)

    def atom(self, depth: int) -> Value:
        if self.next == "(":
            return self.group("(", ")", depth)
        if self.next == "{":
            return self.group("{", "}", depth)
        if self.take("\\pi"):
            return Value(math.pi, None)
        if self.take("\\frac"):
            above, below = self.argument(depth), self.argument(depth)
            return _over(above, below)
        if self.take("\\sqrt"):
            index = self.group("[", "]", depth) if self.next == "[" else Value(2.0, Fraction(2))
            return _root(self.argument(depth), index)
        if self._letters and self.next is not None and self.next.isalpha():
            letter = ord(self.next) - ord("A")
            self._at += 1
            return _value(Fraction(31 * letter + 7, 37))
        return self.number()

    def argument(self, depth: int) -> Value:
        """A group in braces, or a single digit: `\\frac12`, `\\sqrt3`."""
        return self.group("{", "}", depth) if self.next == "{" else self.number(digits=1)

    def group(self, opening: str, closing: str, depth: int) -> Value:
        self.need(opening)
        value = self.sum(depth + 1)
        self.need(closing)
        return value

    def number(self, digits: int = MAX_DIGITS) -> Value:
        """A numeral. Two of them in a row, as in a mixed number, are not a product."""
        token = self.next
        if token is None or not (token[0].isdigit() or token[0] == ".") or len(token) > digits:
            raise _NotArithmetic
        self._at += 1
        if self.next == "\\frac" or (self.next is not None and self.next[0] in ".0123456789"):
            raise _NotArithmetic
        return _value(Fraction(token))


def _value(exact: Fraction) -> Value:
    return Value(float(exact), exact)


def _minus(one: Value) -> Value:
    return Value(-one.number, None if one.exact is None else -one.exact)


def _plus(one: Value, other: Value) -> Value:
    exact = None if one.exact is None or other.exact is None else one.exact + other.exact
    return Value(one.number + other.number if exact is None else float(exact), exact)


def _times(one: Value, other: Value) -> Value:
    exact = None if one.exact is None or other.exact is None else one.exact * other.exact
    return Value(one.number * other.number if exact is None else float(exact), exact)


def _over(one: Value, other: Value) -> Value:
    exact = None if one.exact is None or other.exact is None else one.exact / other.exact
    return Value(one.number / other.number if exact is None else float(exact), exact)


def _to_the(base: Value, exponent: Value) -> Value:
    power = exponent.exact
    if power is None or abs(power) > MAX_POWER:
        raise _NotArithmetic
    if power.denominator != 1:
        if base.number < 0 or power.denominator > MAX_POWER:
            raise _NotArithmetic
        return Value(math.pow(base.number, float(power)), None)
    if base.exact is None:
        return Value(math.pow(base.number, int(power)), None)
    if base.exact.numerator.bit_length() + base.exact.denominator.bit_length() > 256:
        raise _NotArithmetic
    return _value(base.exact ** int(power))


def _root(value: Value, index: Value) -> Value:
    if index.exact not in (2, 3, 4, 5, 6) or value.number < 0:
        raise _NotArithmetic
    if index.exact == 2 and value.exact is not None:
        above, below = math.isqrt(value.exact.numerator), math.isqrt(value.exact.denominator)
        root = Fraction(above, below)
        if root * root == value.exact:
            return _value(root)
    return Value(math.pow(value.number, 1 / float(index.exact)), None)
