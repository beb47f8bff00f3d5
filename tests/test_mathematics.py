"""Mathematics: what is the same, what is not, and that neither costs much to find out."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify.errors import TimeoutException

from gpg_vl.answers.expression import find_expression, gold_expression, matches
from gpg_vl.answers.math import algebra
from gpg_vl.answers.math.cpu_limit import within_cpu_seconds
from gpg_vl.answers.math.equality import equal, is_readable, normalize, right_side
from gpg_vl.answers.text.sentences import is_sentence, without_unit
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import math
from gpg_vl.rewards.gold_proof import check_gold
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.types import Completion, Example, Group


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer):
    return Example(id="7", prompt="?", answer=answer)


SAME = [
    # behind the mark of GSM8K
    ("#### 5", "5"),
    ("2 + 3 = 5\n#### 5", "5"),
    ("There are 2 and 3.\n#### $1,200", "1200"),
    # numbers
    ("5", "5"),
    ("5.", "5"),
    ("5.0", "5"),
    (".5", "0.5"),
    ("1/2", r"\frac{1}{2}"),
    ("0.5", r"\frac12"),
    (r"\dfrac{1}{2}", r"\tfrac{1}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    ("1 1/2", "1.5"),
    ("1,000,000", "1000000"),
    ("-1,234.5", "-1234.5"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    ("10^6", "1000000"),
    ("2^10", "1024"),
    ("1.5e3", "1500"),
    ("2e-3", "0.002"),
    ("0.333333", r"\frac{1}{3}"),
    ("1.414214", r"\sqrt{2}"),
    ("50%", r"\frac12"),
    (r"15\%", "15%"),
    ("15", r"15\%"),
    ("0.15", r"15\%"),
    # roots, pi, functions
    ("2*sqrt(3)", r"2\sqrt{3}"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    (r"\frac{6}{\sqrt{3}}", "2√3"),
    (r"\sqrt[3]{2}", "2^{1/3}"),
    (r"\frac{3\pi}{2}", "1.5π"),
    (r"\log_2 8", "3"),
    # letters
    ("(x+1)^2", "x^2+2x+1"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{a+b}{2}", r"\frac{b+a}{2}"),
    ("-q+p^2", "p^2-q"),
    # named, boxed, in a sentence, with a unit
    ("x = 5", "5"),
    ("5", "x=5"),
    ("y = x^2", "x^2"),
    ("f(x) = x+1", "x+1"),
    ("2 + 3 = 5", "5"),
    ("(x+1)^2 = x^2+2x+1", "x^2+2x+1"),
    (r"\boxed{5}", "5"),
    ("$5$", "5"),
    (r"\(5\)", "5"),
    ("**5**", "5"),
    ("The answer is $5$.", "5"),
    ("I think it is 5.", "5"),
    (r"\$18.90", "18.90"),
    (r"11\text{ cm}", "11"),
    (r"11 \text{ square units}", "11"),
    ("11 cm", "11"),
    ("4 mg", "4"),
    ("It is 4 mg.", "4"),
    ("The angle is 90 degrees", "90"),
    ("5 m/s", "5"),
    ("0.7 m/s", "0.7 ms^{-1}"),
    (r"5\text{ ms}^{-1}", "5"),
    ("7e37", "7.0e37 erg/s"),
    ("2516", "2516_8"),
    ("2516_{8}", "2516_8"),
    (r"90^\circ", "90"),
    # sets, tuples, intervals, equations, matrices
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    ("1,2,3", "3,2,1"),
    ("-6 and 6", r"\{6,-6\}"),
    (r"\pm 3", r"\{3,-3\}"),
    ("x=1 or x=2", "1,2"),
    ("x_1 = 1, x_2 = 2", r"\{1,2\}"),
    ("$1$ and $2$", "1,2"),
    ("1\n2", "1,2"),
    ("(1, 2)", "(1,2)"),
    (r"\left(1,2\right)", "(1,2)"),
    ("[1,2)", "[1, 2)"),
    (r"(-\infty, 3] \cup (4, 5)", r"(-\infty,3]\cup(4,5)"),
    (r"x \in [1,2]", "[1,2]"),
    ("x<5", "5>x"),
    (r"x \geq 2", r"2 \leq x"),
    ("y=2x+1", "2x+1"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # words
    ("Yes", r"\text{yes}"),
    ("Tuesday", r"\text{Tuesday}"),
    (r"\text{(C)}", "C"),
    ("no solution", r"\text{no solution}"),
]


@pytest.mark.parametrize(("candidate", "gold"), SAME)
def test_the_same(candidate, gold):
    assert matches(candidate, gold)
    assert math(completion(f"<think>0</think><answer>{candidate}</answer>"), example(gold)) == 1.0


DIFFERENT = [
    ("", "5"),
    ("?", "5"),
    ("x", "5"),
    ("-5", "5"),
    ("51", "5"),
    ("12", "21"),
    ("0", "10^{-9}"),  # rounding to six places would make them equal
    ("0.3333", r"\frac13"),
    ("1.41", r"\sqrt{2}"),
    ("2", r"2\sqrt{3}"),
    ("10%", "1"),
    ("5!", "5"),
    (r"\frac{1}{0}", "0"),
    # a list is not its member, and order counts where it does
    ("3,4", "3"),
    ("3", "3,4"),
    ("1,2,3", "3"),
    ("5 or 6", "5"),
    ("5 and 6", "5"),
    ("5;6", "5"),
    ("5 to 6", "5"),
    ("5\n6", "5"),
    ("$5$ or $6$", "5"),
    (r"5 \text{ or } 6", "5"),
    (r"\text{5 or 6}", "5"),
    (r"5\text{ or 6}", "5"),
    (r"\boxed{5}, \boxed{6}", "5"),
    ("(2,1)", "(1,2)"),
    ("(1,2]", "[1,2)"),
    ("[1,2]", "(1,2)"),
    ("1,2", "1,2,3"),
    ("x=5, y=6", "5"),
    ("x=5 or x=6", "5"),
    ("A, B, C", "B"),
    # a chain of equations that does not hold
    ("4 = 5", "5"),
    ("5 = 6", "6"),
    ("1 = 2 = 5", "5"),
    (r"\pi = 5", "5"),
    # numbers side by side: math-verify reads `1 2` as 1 + 2, `3(2)` as 3 + 2
    ("1 2", "12"),
    ("1 2", "3"),
    ("3(2)", "5"),
    ("12 13", "25"),
    (r"\frac{27}{4} 3", r"\frac{27}{4}"),
    ("answer: 5 6", "5"),
    # a mark of GSM8K, and what stands before it or is no answer behind it
    ("72 #### 5", "72"),
    ("#### 5 or 6", "5"),
    ("#### not 5", "5"),
    # denied, bounded, compared
    ("not 5", "5"),
    (r"\text{not }5", "5"),
    (r"5\text{ not}", "5"),
    (r"5\text{ or more}", "5"),
    ("at least 5", "5"),
    (r"5 \ne 6", "5"),
    ("x > 5", "5"),
    (r"\approx 5", "5"),
    # letters
    ("x", "X"),
    ("2x", "2y"),
    ("x^2", "x^3"),
    ("5x", "5"),
    ("3", "3 xy"),
    ("3 xy", "3"),
    ("we get 3 xy", "3"),
    ("I think it is 5x", "5"),
    ("2 ab", "2"),
    ("2", "2 ab"),
    ("4mg", "4"),
    ("5 cm or 6 cm", "5"),
    ("24 cm and 3 mm", "24"),
    ("not xy", "xy"),
    ("xy or 3", "3"),
    ("2516_9", "2516_8"),
    ("2516_{16}", "2516_8"),
    ("sey", "yes"),
    ("yes or no", "yes"),
    ("no", "yes"),
    # what only looks like it
    ("５", "5"),
    ("5\u0301", "5"),
    ("\u200b5\u200b", "5"),
    ("\u202e54", "45"),
    ("х", "x"),  # Cyrillic
]


@pytest.mark.parametrize(("candidate", "gold"), DIFFERENT)
def test_different(candidate, gold):
    assert not matches(candidate, gold)
    assert (
        math(completion(f"<think>{gold}</think><answer>{candidate}</answer>"), example(gold)) == 0.0
    )


# --- answers as benchmarks write them: the gold answer, and three that are wrong

ANSWERS = [
    # polynomials and other expressions with products of letters
    (r"x^2 + 2xy + y^2", (r"x^2 + y^2", r"x^2 + xy + y^2", "2xy")),
    ("2xy + 1", ("2x + 1", "1", "2yz + 1")),
    ("xy + 3", ("3", "x + 3", "xy")),
    ("a^2 + ab + b^2", ("a^2 + b^2", "a^2 - ab + b^2", "ab")),
    ("3 xy", ("3", "3 xz", "3 x")),
    ("2 ab", ("2", "2 a", "ab")),
    ("3 xyz", ("3", "3 xy", "xyz")),
    ("abc + 2", ("2", "abc", "ab + 2")),
    (r"\frac{1}{2} mv^2", ("mv^2", r"\frac{1}{2}", r"\frac{1}{2} mv")),
    (r"y_0 e^{-at}", (r"y_0 e^{at}", "y_0", r"e^{-at}")),
    (r"kT \ln 2", ("kT", r"\ln 2", r"kT \ln 3")),
    (r"\frac{GMm}{r^2} + mgh", (r"\frac{GMm}{r^2}", "mgh", r"\frac{GMm}{r} + mgh")),
    (r"nRT \ln \frac{V_2}{V_1}", ("nRT", r"\ln \frac{V_2}{V_1}", r"nRT \ln \frac{V_1}{V_2}")),
    (r"x^3 - 7x + 6", (r"x^3 - 7x", r"x^3 + 7x + 6", "6")),
    (r"-3x^4 + 2x - 1", (r"3x^4 + 2x - 1", "-1", r"-3x^4")),
    (r"(x - 3)(x^2 + 3x + 9)", (r"x^3 + 27", "x - 3", r"x^2 + 3x + 9")),
    (r"\frac{x+2}{7}", (r"\frac{x+2}{8}", "x+2", r"\frac{x}{7}")),
    (r"\frac{n(n+1)}{2}", (r"\frac{n(n-1)}{2}", "n(n+1)", r"\frac{n+1}{2}")),
    (r"4 \sin^2 \theta", (r"4 \sin \theta", "4", r"4 \cos^2 \theta")),
    (r"\sin x + \cos x", (r"\sin x", r"\sin x - \cos x", r"\cos x")),
    (r"e^{2x}", (r"e^{x}", "2x", "e^2")),
    (r"2^{n} - 1", (r"2^{n}", r"2^{n-1}", "1")),
    # numbers
    ("72", ("71", "7", "72x")),
    ("-18", ("18", "-8", "-1")),
    ("1,080", ("1", "080", "1,081")),
    ("0.125", ("0.12", "125", "0.25")),
    (".0667", (".667", "0.07", "667")),
    (r"\frac{14}{3}", ("14", "3", r"\frac{3}{14}")),
    (r"-\frac{35}{9}", (r"\frac{35}{9}", "-35", r"-\frac{9}{35}")),
    (r"5\frac{1}{3}", (r"\frac{5}{3}", "5", r"5\frac{2}{3}")),
    ("3 1/2", ("3", "1/2", "31/2")),
    ("7/2", ("7", "2/7", "3")),
    (r"4.5e33", ("4.5", "33", "4.5e32")),
    (r"7.35 \times 10^{22}", ("7.35", r"7.35 \times 10^{21}", "22")),
    (r"2 \cdot 10^{-4}", ("2", r"2 \cdot 10^{4}", "-4")),
    ("120!", ("120", "119!", "12!")),
    (r"\binom{10}{3}", (r"\binom{10}{4}", "10", "3")),
    ("2516_8", ("25168", "8", "2516_9")),
    ("11111100_2", ("11111101", "1111110_2", "11111100_3")),
    # roots, pi, logarithms
    (r"3\sqrt{13}", ("3", "13", r"\sqrt{13}")),
    (r"\sqrt{51}", ("51", "7", r"\sqrt{15}")),
    (r"\frac{\sqrt{3}}{3}", (r"\sqrt{3}", "3", r"\frac{\sqrt{3}}{2}")),
    (r"1 \pm \sqrt{19}", ("1", r"1 + \sqrt{19}", r"\sqrt{19}")),
    (r"12\pi", ("12", r"\pi", r"6\pi")),
    (r"\frac{9 \pi}{4}", (r"\frac{9}{4}", r"9\pi", r"\frac{4 \pi}{9}")),
    (r"\pi - 2", (r"\pi", "2", r"\pi + 2")),
    (r"\ln 2", (r"\ln 3", "2", r"\log_2 3")),
    (r"\log_2 12", (r"\log_2 6", "12", r"\log_3 12")),
    (r"6 - 5i", ("6", "6 + 5i", "-5i")),
    (r"e^{i\pi/4}", (r"e^{i\pi/2}", r"\pi/4", "1")),
    # tuples, intervals, sets, several values
    ("(3, \\frac{\\pi}{2})", (r"(\frac{\pi}{2}, 3)", "3", r"\frac{\pi}{2}")),
    (r"\left( -\frac{1}{2}, 4, 0 \right)", ("(4, 0)", r"(\frac{1}{2}, 4, 0)", "4")),
    (r"[-2,7]", ("(-2,7)", "[-2,7)", "-2,7,8")),
    (r"(-\infty, -8) \cup (-8, \infty)", (r"(-\infty, -8)", r"(-\infty, \infty)", "-8")),
    (r"(0,9) \cup (9,36)", ("(0,36)", "(0,9)", r"(0,9] \cup (9,36)")),
    (r"\{1, 4, 9\}", (r"\{1, 4\}", "1", r"\{1, 4, 8\}")),
    ("1,-2", ("1", "-2", "1,2")),
    (r"-1, \frac{1}{2}, 3", ("-1, 3", "3", r"-1, \frac{1}{3}, 3")),
    (r"x = 3 \text{ or } x = -5", ("3", "-5", r"x = 3 \text{ or } x = 5")),
    # equations and inequalities
    (r"y = 2x + 3", ("y = 2x - 3", "3", "y = 3x + 2")),
    (r"x^2 + y^2 = 25", (r"x^2 + y^2 = 5", "25", r"x^2 - y^2 = 25")),
    (r"f(x) = x^2 - 3x", (r"f(x) = x^2 + 3x", "x", r"x^2")),
    (r"x \ge 4", ("x > 4", r"x \le 4", "4")),
    (r"2 < x < 5", ("2 < x", "x < 5", "2")),
    # matrices
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}",
            "1",
            r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}",
        ),
    ),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
        (r"\begin{pmatrix} 1/3 \\ 2/3 \end{pmatrix}", "2/3", "-1/3"),
    ),
    # with a unit, a percent sign, degrees, money
    ("7.0e37 erg/s", ("7.0", "37", "7.0e36 erg/s")),
    ("0.7 ms^{-1}", ("0.07", "7", "0.8 ms^{-1}")),
    ("11 cm", ("12 cm", "1", "cm")),
    ("4 mg", ("5 mg", "mg", "14")),
    (r"15\text{ cm}^2", (r"16\text{ cm}^2", "5", "1")),
    (r"25 \text{ minutes}", (r"24 \text{ minutes}", "5", "minutes")),
    (r"9.8 \mathrm{~m/s}^2", ("9", r"8.9 \mathrm{~m/s}^2", "m")),
    (r"36^{\circ}", (r"63^{\circ}", "3", r"\circ")),
    ("108 degrees", ("180 degrees", "18", "degrees")),
    (r"20\%", (r"2\%", r"25\%", r"0.02")),
    (r"\$32,\!348", ("32", "348", r"\$32,349")),
    (r"\$12.50", ("12", "50", r"\$1.25")),
    # words
    ("even", ("odd", "5", "seven")),
    (r"\text{Evelyn}", (r"\text{Evan}", r"\text{Eve}", "E")),
    (r"\text{(E)}", (r"\text{(D)}", "e^2", "5")),
    (r"\text{ellipse}", (r"\text{circle}", "ellipses", "line")),
    ("Navin", ("Ivan", "N", "Nav")),
]


@pytest.mark.parametrize(("gold", "wrong"), ANSWERS)
def test_an_answer_is_itself_and_none_of_the_wrong_ones(gold, wrong):
    """In whatever the gold stands: bare, between dollars, in a box, or in the box of a whole solution."""
    for written in (
        gold,
        f"${gold}$",
        rf"\boxed{{{gold}}}",
        rf"By symmetry we find $\boxed{{{gold}}}$.",
    ):
        for response in (
            f"<answer>{gold}</answer>",
            f"<answer>${gold}$</answer>",
            rf"So it is $\boxed{{{gold}}}$.",
        ):
            assert math(completion(response), example(written)) == 1.0, (written, response)
    for candidate in wrong:
        for response in (
            f"<answer>{candidate}</answer>",
            rf"\boxed{{{candidate}}}",
            f"<answer>I get {candidate}</answer>",
        ):
            assert math(completion(response), example(gold)) == 0.0, response


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2xy + 1", False),
        ("3 xy", False),
        ("kT ln 2", False),
        ("abc + xyz", False),
        ("axy + 1", False),
        ("mgh + nRT", False),
        ("x sinx + 2 cosx", False),
        ("theta + 1", False),
        (r"\theta + \alpha", False),
        ("y_0 e^{-start}", False),
        (r"5 \text{ of them}", False),
        ("1 or 2 and 3", False),
        ("apples", False),  # one word is no sentence
        ("5 apples", True),
        ("5 pies", True),
        ("7 men", True),
        ("6 DVDs", True),
        ("it is 5", True),
        ("using 5", True),
        ("tanks + 1", True),
        ("the + 1", True),
    ],
)
def test_letters_are_variables_unless_they_spell_words(text, sentence):
    assert is_sentence(text) is sentence


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("11 cm", "11"),
        ("7.0e37 erg/s", "7.0e37"),
        (r"2 \times 10^{3} kg", r"2 \times 10^{3}"),
        (r"\frac{1}{2} kg m/s^2", r"\frac{1}{2}"),
        ("0.7 ms^{-1}", "0.7"),
        ("4mg", "4mg"),
        ("5 m", "5 m"),  # one letter is a variable
        ("5 x/y", "5 x/y"),
        ("9.8 m s^{-2}", "9.8"),
        ("2 gh", "2 gh"),
        ("2 mgh", "2 mgh"),
        ("2 m g h", "2 m g h"),
        ("x + 3 mg", "x + 3 mg"),
        ("3 xy", "3 xy"),
        ("5", "5"),
    ],
)
def test_a_unit_stands_behind_a_number_and_a_blank(text, number):
    assert without_unit(text) == number


def test_the_number_of_a_sentence_is_no_factor():
    assert (
        find_expression("She has 7 DVDs.")
        == find_expression("It is 7 cm")
        == find_expression("the 7th one")
        == "7"
    )
    assert (
        find_expression("the area is 7xy")
        is find_expression("the area is 7 xy")
        is find_expression("we get 7 x")
        is None
    )


def test_gold_may_be_a_whole_solution():
    gold = r"We add $2$ and $3$ and find $\boxed{5}$."
    assert gold_expression(example(gold)) == "5"
    assert math(completion("<answer>5</answer>"), example(gold)) == 1.0
    assert math(completion("<answer>3</answer>"), example(gold)) == 0.0
    assert gold_expression(example("We go on. " * 1000 + gold)) == "5"


@pytest.mark.parametrize("answer", ["", "?", "3 or so, perhaps 4", r"\frac{1", "x" * 3000])
def test_gold_that_is_no_mathematics_is_refused_by_example(answer):
    with pytest.raises(UserError, match="of example '7' cannot be read as mathematics"):
        gold_expression(example(answer))


@settings(deadline=None)
@given(st.fractions(max_denominator=99).filter(lambda f: abs(f) < 10**4))
def test_fractions_in_any_spelling(value):
    gold = f"{value.numerator}/{value.denominator}"
    for text in (
        gold,
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
        rf"\boxed{{{gold}}}",
        f"x = {gold}",
    ):
        assert matches(text, gold)
        assert matches(gold, text)
    assert not matches(f"{value.numerator + 1}/{value.denominator}", gold)
    assert not matches(f"{gold}, {value.numerator + 1}", gold)


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=5, unique=True), st.randoms())
def test_sets_have_no_order_and_tuples_have(values, random):
    shuffled = values[:]
    random.shuffle(shuffled)
    one, other = (", ".join(map(str, order)) for order in (values, shuffled))
    assert matches(other, one)
    assert matches(rf"\{{{other}\}}", one)
    assert matches(f"({other})", f"({one})") == (values == shuffled)
    assert not matches(str(values[0]), one)
    assert not matches(one, str(values[0]))


@settings(deadline=None)
@given(st.text(alphabet=r"0123456789xyz.,+-*/^_=(){}[]|<>!%$\fracsqtpin ", max_size=40))
def test_any_text_is_compared(text):
    assert matches(text, r"\frac{1}{2}") in (True, False)
    assert matches(text, "x^2+1") in (True, False)


# --- normal form


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("√3", r"\sqrt{3}"),
        ("√{3}", r"\sqrt{3}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("√12.5", r"\sqrt{12.5}"),
        ("2π", r"2\pi"),
        ("5²", "5^{2}"),
        ("½", r"\frac{1}{2}"),
        ("−3", "-3"),
        ("1,234,567", "1234567"),
        ("12,34", "12,34"),
        ("(1,234)", "(1,234)"),
        ("1,234,56", "1,234,56"),
        ("2**3", "2^3"),
        (r"\frac12", r"\frac{1}{2}"),
        ("１２", None),
        ("1\u200b2", None),
        ("x\u0301", None),
        ("{" * 25 + "1" + "}" * 25, None),
        ("1" * 500, None),
    ],
)
def test_the_normal_form(text, normal):
    got = normalize(text)
    assert (got if got is None else got.replace(" ", "")) == normal


@settings(deadline=None)
@given(st.text(max_size=60))
def test_normalising_again_changes_nothing(text):
    once = normalize(text)
    if once is not None:
        assert normalize(once) == once


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("5", "5"),
        ("x = 5", "5"),
        ("AB = CD = 5", "5"),
        ("2+3 = 5", "5"),
        ("x = 1, x = 2", "1, 2"),
        ("x_1 = 1, x_2 = 2", "1, 2"),
        ("4 = 5", None),
        ("x = 1, y = 2", None),
        ("1 = 1 = 1 = 1 = 1 = 1", None),
    ],
)
def test_the_right_side(text, right):
    assert right_side(text) == right


# --- bounds


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^9}",
        "9^9^9",
        "(9^{99})^{99}",
        "x^{9^{9}}",
        "99!",
        r"\int_0^1 x dx",
        r"\sum_{i=1}^{99} i",
        r"\prod x",
        r"\lim_{x \to 0} x",
        r"\binom{99999}{333}",
        "1" * 31,
        "1=1=1",
        "x" * 500,
        r"\input{x}",
        "$x$",
        "x\\",
        r"\sin\sin\sin\sin x",
    ],
)
def test_what_could_take_for_ever_is_not_handed_on(text):
    assert not algebra.is_bounded(text, "3")
    assert algebra.is_bounded("x^2+1", "3")


def test_the_gold_answer_sets_the_bounds():
    assert algebra.is_bounded(r"\int_0^1 x dx", r"\int_0^1 t dt")
    assert algebra.is_bounded("5!", "4!")
    assert algebra.is_bounded("2^{3^{4}}", "2^{3^{5}}")


def test_ordinary_comparisons_do_not_reach_math_verify(monkeypatch):
    """The work is counted: 20 different comparisons of the ordinary kinds, none of them by computer algebra."""
    asked = []
    monkeypatch.setattr(
        "gpg_vl.answers.math.equality.is_same", lambda *texts: asked.append(texts) or False
    )
    monkeypatch.setattr(
        "gpg_vl.answers.math.equality.parse_expression", lambda text: asked.append(text) or []
    )
    for candidate, gold, expected in (
        ("5", "5", True),
        ("6", "5", False),
        ("1/2", r"\frac{1}{2}", True),
        ("1/3", r"\frac{1}{2}", False),
        (r"\sqrt{12}", "2√3", True),
        (r"\sqrt{13}", "2√3", False),
        (r"3\pi", "3π", True),
        (r"4\pi", "3π", False),
        ("1, 2", "2, 1", True),
        ("1, 3", "2, 1", False),
        ("(1,2)", "(1, 2)", True),
        ("(1,3)", "(1,2)", False),
        ("[1,2)", "[1, 2)", True),
        (r"\{1,2\}", "2, 1", True),
        ("3", "1, 2", False),
        ("1, 2", "3", False),
        ("x^2+1", "x^2+1", True),
        ("x^2+2", "x^2+1", False),
        ("5", "x+1", False),
        ("12%", "12", True),
    ):
        assert matches(candidate, gold) is expected
        assert is_readable(gold if "π" not in gold and "√" not in gold else normalize(gold))
    assert asked == []


def test_different_expressions_are_told_apart_without_simplifying(monkeypatch):
    """What math-verify would spend seconds on to prove it different."""

    def verify(*_, **__):
        raise AssertionError("simplified")

    _, parse = algebra._math_verify()
    monkeypatch.setattr(algebra, "_math_verify", lambda: (verify, parse))
    for candidate in (
        r"(\sin(1000 x))^{99}",
        r"|(99+\frac{2+x}{y})^{99}|",
        r"(\cos(x+y)+\sqrt[3]{x})^{2}",
        r"\log_7 (x^2+1)",
        r"\{\sin x, \cos x\}",
    ):
        for gold in (r"\sqrt{3}+\sqrt{5}", r"\sin x", r"\{1,2\}"):
            assert not algebra.is_same.__wrapped__(candidate, gold)


def test_a_limit_is_of_the_time_that_the_comparison_itself_works(monkeypatch):
    """A busy machine, on which it waits for its turn, does not make a right answer wrong."""

    def waits(*_, **__):
        time.sleep(0.6)
        return True

    def works(*_, **__):
        end = time.process_time() + 5
        while time.process_time() < end:
            pass
        return True

    _, parse = algebra._math_verify()
    monkeypatch.setattr(algebra, "TIME_LIMIT", 0.2)
    for verify, expected in ((waits, True), (works, False), (waits, True)):
        monkeypatch.setattr(algebra, "_math_verify", lambda verify=verify: (verify, parse))
        assert algebra.is_same.__wrapped__("x+1", "1+x") is expected


def test_each_further_comparison_is_limited_too():
    """math-verify goes on after the exception, with the next of several pairs."""
    ended = []

    def two():
        for _ in range(2):
            try:
                while True:
                    pass
            except TimeoutException:
                ended.append(True)
        return "both were ended"

    before = signal.getsignal(signal.SIGPROF)
    assert within_cpu_seconds(0.1, two, otherwise="") == "both were ended"
    assert ended == [True, True]
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    assert signal.getsignal(signal.SIGPROF) == before


def test_numbers_side_by_side_are_never_added():
    """math-verify takes `3(7)` and `(3)(7)` for mixed numbers, and adds."""
    for text, value in (
        ("3(7)", 21),
        ("2(4)", 8),
        (r"\frac{1}{2}(3)", sympy.Rational(3, 2)),
        (r"2^{2}3", 12),
    ):
        assert algebra.is_bounded(text, "3")
        assert algebra.parse_expression(text)[0].doit() == value
    for text in ("(3)(7)", "(3)7", "{3}(7)", "{3}7", "3{7}", "3[7]", "2(3)(4)", "x+(3)(7)"):
        assert not algebra.is_bounded(text, "3")
        assert not matches(text, "10")
    assert matches("(3)(7)", "21")
    assert matches("(x+1)(x+2)", "x^2+3x+2")


def test_it_works_in_a_thread_where_no_signal_can_be_set():
    results = []
    thread = threading.Thread(target=lambda: results.append(matches("(x+2)(x+5)", "x^2+7x+10")))
    thread.start()
    thread.join()
    assert results == [True]


def test_math_verify_is_imported_only_when_it_is_needed():
    code = (
        "import sys\n"
        "from gpg_vl.answers.expression import matches\n"
        "from gpg_vl.answers.quantity import matches as match_geometry\n"
        "assert matches('1/2', '0.5') and match_geometry('2√3', '√12') and not matches('3', '4')\n"
        "assert not {'sympy', 'math_verify', 'torch'} & set(sys.modules)\n"
        "assert matches('x+1', '1+x') and 'math_verify' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_first_expression_leads_where_the_two_forms_differ():
    assert equal("x=5", "x=5")
    assert not equal("y=5", "x=5")


def test_the_explanation():
    told = math.explain(completion(r"<answer>$\dfrac12$</answer>"), example("0.5"))
    assert (told.score, told.parsed, told.gold) == (1.0, r"\frac{1}{2}", "0.5")
    assert math.explain(completion("<answer>5 or 6 apples</answer>"), example("5")).parsed is None


def test_hostile_answers_do_not_cost_a_group_in_the_workers():
    """In training the two rewards that may compute run in worker processes: every group comes back scored."""
    bombs = (
        "9^{9^{9}}",
        r"(\sin(1000 x))^{99}",
        r"\frac{1}{" * 5000 + "1" + "}" * 5000,
        "1" * 100_000,
        r"\int x dx",
    )
    texts = ("<answer>5</answer>", *(f"<answer>{bomb}</answer>" for bomb in bombs))
    group = Group(example=example("5"), prompt=None, completions=tuple(map(completion, texts)))
    with RewardPool({"math": 1.0, "geometry": 1.0}, time_limit=30.0) as pool:
        scored = pool.score([group] * 3)
        problems = check_gold({"math": 1.0}, [example("5"), example("?")], pool=pool)
    assert scored.failures == []
    assert [g.rewards for g in scored.groups] == [(2.0, 0.0, 0.0, 0.0, 0.0, 0.0)] * 3
    (problem,) = problems
    assert "example '7' cannot be read as mathematics" in problem.scored_text
    assert "Traceback" not in problem.scored_text


def test_rewards_that_compute_are_kept_out_of_this_process():
    for name in ("math", "geometry"):
        with pytest.raises(ValueError, match=f"'{name}' is not known to be fast"):
            check_gold({name: 1.0}, [example("5")])
