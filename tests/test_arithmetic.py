"""Closed expressions: values by hand, and against Python and sympy on random ones."""

import math
import re
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.answers.math.arithmetic import MAX_DEPTH, MAX_LENGTH, digits_in, evaluate

EXACT = [
    ("5", Fraction(5)),
    ("-5", Fraction(-5)),
    ("+5", Fraction(5)),
    ("0.25", Fraction(1, 4)),
    (".5", Fraction(1, 2)),
    ("007", Fraction(7)),
    ("1/3", Fraction(1, 3)),
    (r"\frac{1}{3}", Fraction(1, 3)),
    (r"-\frac{1}{3}", Fraction(-1, 3)),
    (r"\frac{-1}{3}", Fraction(-1, 3)),
    (r"\frac{1}{\frac{1}{2}}", Fraction(2)),
    ("2+3*4", Fraction(14)),
    ("(2+3)*4", Fraction(20)),
    ("2-3-4", Fraction(-5)),
    ("24/4/2", Fraction(3)),
    ("2^3", Fraction(8)),
    ("-2^2", Fraction(-4)),
    ("(-2)^2", Fraction(4)),
    ("2^{10}", Fraction(1024)),
    ("2^{-2}", Fraction(1, 4)),
    (r"2 \times 3 \cdot 4", Fraction(24)),
    (r"6 \div 4", Fraction(3, 2)),
    (r"\sqrt{9}", Fraction(3)),
    (r"\sqrt4", Fraction(2)),
    (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
    ("3(4)", Fraction(12)),
    ("2(3+4)(5)", Fraction(70)),
    ("{5}", Fraction(5)),
    ("1" * 18, Fraction("1" * 18)),
]
REAL = [
    (r"\pi", math.pi),
    (r"65\pi", 65 * math.pi),
    (r"2\sqrt{3}", 2 * math.sqrt(3)),
    (r"\frac{\sqrt{3}}{2}", math.sqrt(3) / 2),
    (r"2\sqrt{2}-2", 2 * math.sqrt(2) - 2),
    (r"\sqrt[3]{2}", 2 ** (1 / 3)),
    (r"2^{1/3}", 2 ** (1 / 3)),
    (r"\frac{3\pi}{2}", 1.5 * math.pi),
    (r"\sqrt{3}^2", 3.0),
    (r"(1+\sqrt{5})/2", (1 + math.sqrt(5)) / 2),
]
UNKNOWN = [
    "",
    " ",
    "x",
    "2x",
    r"\frac12",  # written out when it is normalised
    "1 2",
    "12.",
    "1.2.3",
    "1,234",
    r"2\frac{1}{2}",  # a mixed number
    r"1/2\pi",  # half of pi, or one over two pi
    r"1/2(3)",
    "2^",
    "2^3^4",
    "9^{9^9}",
    "2^{100}",
    "10%",
    "5!",
    "1/0",
    r"\frac{1}{0}",
    r"\sqrt{-1}",
    r"\sqrt{0-4}",
    r"\sqrt[7]{2}",
    r"\sqrt[\pi]{2}",
    r"(-8)^{1/3}",
    r"\sin 3",
    r"\frac{1}",
    r"\frac",
    "(1",
    "1)",
    "{1",
    "1 2",
    "1" * 19,
    "１",
    "²",
    "--5",
    "5-",
    "*5",
    "1e5",
    "(" * (MAX_DEPTH + 2) + "1" + ")" * (MAX_DEPTH + 2),
    "1+" * MAX_LENGTH + "1",
]


@pytest.mark.parametrize(("text", "value"), EXACT)
def test_rational_values_are_exact(text, value):
    assert evaluate(text).exact == value
    assert evaluate(text).number == pytest.approx(float(value))


@pytest.mark.parametrize(("text", "value"), REAL)
def test_real_values(text, value):
    got = evaluate(text)
    assert got.exact is None
    assert got.number == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_not_known_has_no_value(text):
    assert evaluate(text) is None


def test_letters_have_values_only_if_asked():
    assert evaluate("x+1") is None
    for one, other, equal in (
        ("2x+1", "1+x*2", True),
        ("x(x+1)", "x^2+x", True),
        ("(x+y)^2", "x^2+2xy+y^2", True),
        ("x", "y", False),
        ("x", "X", False),
        ("xy", "x+y", False),
        ("x^2", "x^3", False),
    ):
        assert (evaluate(one, letters=True).exact == evaluate(other, letters=True).exact) is equal
    for letter in "eEi":  # these are numbers of their own in mathematics
        assert evaluate(letter, letters=True) is None


def test_digits():
    assert digits_in(r"12\sqrt{3}.5") == 4


expressions = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["0.5", "2.25", r"\pi"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}+{p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}-{p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"{p[0]} \cdot {p[1]}"),
        inner.map(lambda x: rf"\sqrt{{{x}}}"),
        inner.map(lambda x: f"({x})^{{2}}"),
        inner.map(lambda x: f"(-{x})"),
    ),
    max_leaves=6,
)


def by_sympy(text):
    """The same grammar by another way: LaTeX turned into Python text for sympy."""
    while r"\frac" in text or r"\sqrt" in text:
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
        text = text.replace("^{2}", "**2")
    text = text.replace("^{2}", "**2").replace(r"\cdot", "*").replace(r"\pi", "pi")
    return sympy.sympify(text, rational=True)


@settings(deadline=None)  # sympy may take its time at first
@given(expressions)
def test_random_expressions_have_the_value_that_sympy_finds(text):
    got = evaluate(text)
    expected = by_sympy(text)
    if got is None:
        # only a root of something negative, a division by zero, or a bound leaves such an expression without a value
        assert (
            r"\sqrt" in text
            or r"\frac" in text
            or text.count("^") > 2
            or text.count("(") > MAX_DEPTH
        )
    else:
        assert got.number == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
        if got.exact is not None:
            assert sympy.Rational(got.exact.numerator, got.exact.denominator) == expected


@given(st.text(alphabet=r"0123456789.+-*/^(){}[]\ fracsqtpixy", max_size=60))
def test_any_text_has_a_value_or_none(text):
    for letters in (False, True):
        value = evaluate(text, letters=letters)
        assert value is None or math.isfinite(value.number)
