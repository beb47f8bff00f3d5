"""math-verify behind bounds: whether a computer algebra system takes two expressions for the same.

math-verify reads LaTeX and compares with sympy. What it is given here is bounded in length, nesting and in what it may
compute, because `9^{9^9}` would keep it busy for ever. Nothing is executed: the text goes to a grammar of LaTeX, never to
Python.
"""

import logging
import re
from functools import lru_cache
from typing import Any, NamedTuple

from gpg_vl.answers.math.cpu_limit import within_cpu_seconds
from gpg_vl.answers.math.numeric_values import TINY, Undefined, Unknown, agree, numeric_values

MAX_LENGTH = 400
DIFFER = 2e-6
"""Relative distance from which on two values are different. math-verify rounds decimals to 1e-6."""
MORE_FUNCTIONS = 3
"""How many sines and logarithms a candidate may hold beyond those of its gold."""
TIME_LIMIT = 4
"""Seconds of CPU time for one step of math-verify, where a signal can enforce it: in the main thread. Then: not equal."""

_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_COMMANDS = r"""
frac sqrt pi times cdot div pm mp infty cup cap in le leq ge geq lt gt ne neq emptyset varnothing text mathrm mathbf
textbf mbox operatorname sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lg alpha beta gamma
delta epsilon theta lambda mu phi varphi rho sigma tau omega begin end angle triangle circ degree overline mid land
lor wedge vee setminus mathbb ldots dots binom { } % $ _ | \
"""
_KNOWN_COMMANDS = frozenset(_COMMANDS.split())
"""What a candidate may hold besides what its gold holds: nothing that sums, integrates, differentiates or takes limits."""
_PARTLY_READ = re.compile(r"[\r\n$]|\\$|answer", re.IGNORECASE)
"""Where math-verify would take a piece of the text for the whole."""
# A number next to a bracketed one: `(3)(4)`, `{3}4`, `3{4}`, `3[4]`. math-verify adds them, as in a mixed number.
_N = r"\s*+[0-9]++(?>(?:\.[0-9]++)?)\s*+"
_SIDE_BY_SIDE = re.compile(
    rf"\({_N}\)\s*+[0-9({{\[]|(?<![A-Za-z\]}}^_])\{{{_N}\}}\s*+[0-9({{\[]|(?<![A-Za-z_^0-9.}}\]]){_N}(?:\[{_N}\]|\{{{_N}\}})"
)
_NUMBER_TIMES = re.compile(r"(?<![_0-9.])([0-9]++(?>(?:\.[0-9]++)?))\s*+\(")
"""`3(7)` is a product; math-verify adds, as in a mixed number."""
_FUNCTION = re.compile(r"\\(?:a?r?c?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|binom)")
_LONG_NUMBER = re.compile(r"[0-9]{31}")
_POWER = re.compile(r"(?P<base>[A-Za-z])?\s*+\^\s*+\{?+\s*+-?+(?P<exponent>[0-9]++)?")
_BRACE_OR_POWER = re.compile(r"\^\s*+\{?+|[{}]")
_CHAINED_POWERS = re.compile(r"\^\s*+(?:\{[^{}]*+\}|[^{}\s])\s*+\^")
_TWO_NUMBERS = re.compile(r"(?<!_)[0-9.]\s++[0-9.]")
_LONG_BINOMIAL = re.compile(r"[0-9]{4,}")


def is_bounded(candidate: str, gold: str) -> bool:
    """True if a candidate can be handed to a computer algebra system: nothing in it takes long, or is not in the gold."""
    if len(candidate) > MAX_LENGTH or not candidate.isascii() or _PARTLY_READ.search(candidate):
        return False
    known = _KNOWN_COMMANDS | set(_COMMAND.findall(gold))
    if any(command not in known for command in _COMMAND.findall(candidate)):
        return False
    if (
        _LONG_NUMBER.search(candidate)
        or _TWO_NUMBERS.search(candidate)
        or _SIDE_BY_SIDE.search(candidate)
        or (r"\binom" in candidate and _LONG_BINOMIAL.search(candidate))
    ):
        return False
    if len(_FUNCTION.findall(candidate)) > len(_FUNCTION.findall(gold)) + MORE_FUNCTIONS:
        return False
    if candidate.count("!") > gold.count("!") or candidate.count("=") > max(1, gold.count("=")):
        return False
    powers, gold_value = _powers(candidate), _powers(gold)
    return powers.height <= max(1, gold_value.height) and powers.product <= max(
        200, gold_value.product
    )


class _Powers(NamedTuple):
    """How much a text could blow up."""

    product: int
    """All exponents over something else than a letter, multiplied: what a chain of powers comes to at most."""
    height: int
    """How many exponents tower above each other."""


def _powers(text: str) -> _Powers:
    product, height, depth = 1, 2 if _CHAINED_POWERS.search(text) else 0, 0
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
def is_same(candidate: str, gold: str) -> bool:
    """What math-verify says to two texts that `is_bounded` has passed; what it cannot read is not the same."""
    verify, _ = _math_verify()
    gold_value, answer_value = parse_expression(gold), parse_expression(candidate)
    if not gold_value or not answer_value:
        return False
    may_agree = _may_agree(answer_value[0], gold_value[0])
    if may_agree is None:
        may_agree = _is_simple(candidate, gold)
    if not may_agree:
        return False

    def compare() -> bool:
        return bool(verify(gold_value, answer_value, timeout_seconds=None))

    if not within_cpu_seconds(TIME_LIMIT, compare, otherwise=False):
        return False
    return not _tiny_differ(answer_value[0], gold_value[0])


def _tiny_differ(answer_value: Any, gold_value: Any) -> bool:
    """True for two numbers near 0 that differ relatively: math-verify rounds to decimals, and all of them to 0."""
    if not (getattr(answer_value, "is_number", False) and getattr(gold_value, "is_number", False)):
        return False
    one, other = answer_value.evalf(15), gold_value.evalf(15)
    if not (one.is_Float and other.is_Float) or abs(other) > TINY:
        return bool(one.is_Float and other.is_zero and abs(one) < TINY and not one.is_zero)
    return bool(abs(one - other) > DIFFER * abs(other))


def _may_agree(answer_value: Any, gold_value: Any) -> bool | None:
    """False if the two have different values with the letters given values, or only the gold has one; None: unknown."""
    try:
        wanted = numeric_values(gold_value)
        return agree(numeric_values(answer_value), wanted, DIFFER)
    except Unknown:
        return None
    except Undefined:
        return False


def _is_simple(candidate: str, gold: str) -> bool:
    """True for a candidate that may be compared by solving, as inequalities are: little more in it than in the gold."""
    functions = set(_FUNCTION.findall(candidate)) - set(_FUNCTION.findall(gold))
    return (
        not functions
        and len(candidate) <= max(60, 2 * len(gold))
        and _powers(candidate).product <= 64
    )


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> list[Any]:
    """What math-verify reads in an expression: one object of sympy, or nothing."""
    _, parse = _math_verify()
    text = _NUMBER_TIMES.sub(r"\1\\cdot (", text)

    def read() -> list[Any]:
        return list(parse(f"${text}$", parsing_timeout=None))

    found: list[Any] = within_cpu_seconds(TIME_LIMIT, read, otherwise=[])
    return [item for item in found if not isinstance(item, str)]


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Any, Any]:
    """(verify, parse), imported when first needed: sympy takes half a second.

    Units are left to us: math-verify also drops words such as "more", "c" and "t" behind a number.
    """
    from math_verify import verify
    from math_verify.parser import LatexExtractionConfig, NormalizationConfig, parse

    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns once that there is no time limit
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=False,
            malformed_operators=True,
            nits=True,
            boxed="none",
            equations=False,
        )
    )

    def parse_one(text: str, *, parsing_timeout: int | None) -> Any:
        return parse(
            text,
            extraction_config=[config],
            fallback_mode="no_fallback",
            parsing_timeout=parsing_timeout,
        )

    return verify, parse_one
