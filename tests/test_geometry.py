"""Quantities: every form of the published gold answers, and the situations in which the published reward was wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.answers import quantity
from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.quantity import Quantity, gold_quantities, parse_quantity
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import geometry
from gpg_vl.types import Completion, Example

match_geometry = quantity.matches


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer):
    return Example(id="7", prompt="How large?", answer=answer)


GOLD = [  # the forms of the 754 gold answers of GEOQA
    ("140°", r"140", "deg"),
    ("<answer> 145° </answer>", "145", "deg"),
    ("145", "145", ""),
    ("2.5", "2.5", ""),
    ("5cm", "5", "cm"),
    ("12mm", "12", "mm"),
    ("7m", "7", "m"),
    ("20米", "20", "m"),
    ("5厘米", "5", "cm"),
    ("8平方米", "8", "m^2"),
    ("40海里", "40", "nmi"),
    ("3小时", "3", "h"),
    ("4秒", "4", "s"),
    ("12cm²", "12", "cm^2"),
    ("12cm^2", "12", "cm^2"),
    ("12cm^{2}", "12", "cm^2"),
    ("12cm^2^", "12", "cm^2"),
    ("√{3}", r"\sqrt{3}", ""),
    ("8√{3}", r"8\sqrt{3}", ""),
    ("2√{15}米", r"2\sqrt{15}", "m"),
    (r"\frac{√{3}}{2}", r"\frac{\sqrt{3}}{2}", ""),
    ("2√{2}-2", r"2\sqrt{2}-2", ""),
    ("(10+10√{3})海里", r"(10+10\sqrt{3})", "nmi"),
    (r"\frac{6}{5}", r"\frac{6}{5}", ""),
    ("π", r"\pi", ""),
    ("65π", r"65\pi", ""),
    ("65πcm²", r"65\pi", "cm^2"),
    ("4:9", "4:9", ""),
    ("90°-α", r"90-\alpha", "deg"),
    ("180°-2α", r"180-2\alpha", "deg"),
    (r"90^\circ+\frac{α}{2}", r"90+\frac{\alpha}{2}", "deg"),
]


@pytest.mark.parametrize(("gold", "expression", "unit"), GOLD)
def test_every_form_of_gold_is_read(gold, expression, unit):
    (got,) = gold_quantities(example(gold))
    assert (got.expression.replace(" ", ""), got.unit) == (expression, unit)
    assert match_geometry(gold_text(gold), gold)
    assert (
        geometry(completion(f"<think></think><answer>{got.expression}</answer>"), example(gold))
        == 1.0
    )


SAME = [
    ("145", "145°"),
    ("145°", "145"),
    ("145.0", "145°"),
    ("145 degrees", "145°"),
    (r"145^\circ", "145°"),
    (r"$145^{\circ}$", "145°"),
    (r"\(145^\circ\)", "145°"),
    (r"\boxed{145^\circ}", "145°"),
    ("145度", "145°"),
    ("145 °.", "145°"),
    ("**145°**", "145°"),
    ("∠BOC = 145°", "145°"),
    ("∠1 = 145°", "145°"),
    ("x = 145", "145°"),
    ("The measure of angle CED is 145 degrees.", "145°"),
    ("5", "5cm"),
    ("5 cm", "5cm"),
    ("5 units", "5cm"),
    ("5 centimeters", "5cm"),
    (r"5\text{ cm}", "5cm"),
    (r"5\,\mathrm{cm}", "5cm"),
    ("5厘米", "5cm"),
    ("$5$ cm", "5cm"),
    ("AB = 5", "5cm"),
    ("20 meters", "20米"),
    ("1,200", "1200米"),
    ("5 nautical miles", "5海里"),
    ("30s", "30秒"),
    ("12 square centimeters", "12cm^2^"),
    ("12 cm2", "12cm²"),
    ("8 m²", "8平方米"),
    (r"2\sqrt{3}", "2√{3}"),
    ("2√3", "2√{3}"),
    ("2 * sqrt(3)", "2√{3}"),
    (r"\sqrt{12}", "2√{3}"),
    (r"\frac{6}{\sqrt{3}}", "2√{3}"),
    ("√3/2", r"\frac{√{3}}{2}"),
    ("1.732051", "√{3}"),
    (r"65\pi", "65π"),
    ("65 pi", "65π"),
    (r"\frac{3}{2}\pi", "1.5π"),
    (r"-2+2\sqrt{2}", "2√{2}-2"),
    (r"2(\sqrt{2}-1)", "2√{2}-2"),
    ("6/5", r"\frac{6}{5}"),
    ("1.2", r"\frac{6}{5}"),
    (r"1\frac{1}{5}", r"\frac{6}{5}"),
    (r"\frac{4}{9}", "4:9"),
    ("30 + 115 = 145", "145°"),
    ("90-α", "90°-α"),
    ("-α + 90°", "90°-α"),
    (r"$90^\circ - \alpha$", "90°-α"),
    (r"\boxed{90^{\circ}-\alpha}", "90°-α"),
    ("∠A = 90° − α", "90°-α"),
    ("2(90°-α)", "180°-2α"),
    ("60°或120°", "60°或120°"),
    ("60° or 120°", "60°或120°"),
    ("120°或60°", "60°或120°"),
    ("60, 120", "60°或120°"),
    ("60° and 120°", "60°或120°"),
    (r"$60^\circ$ or $120^\circ$", "60°或120°"),
    (r"$60^\circ \text{ or } 120^\circ$", "60°或120°"),
    (r"\boxed{60^\circ, 120^\circ}", "60°或120°"),
    ("The angle is 60° or 120°.", "60°或120°"),
    ("2√3或4cm", "2√{3}cm或4cm"),
]


@pytest.mark.parametrize(("candidate", "gold"), SAME)
def test_the_same_quantity(candidate, gold):
    assert match_geometry(candidate, gold)
    assert (
        geometry(completion(f"<think>40</think>\n<answer>\n{candidate}\n</answer>"), example(gold))
        == 1.0
    )


DIFFERENT = [
    ("", "145°"),
    ("a", "145°"),
    ("40", "145°"),
    ("-145", "145°"),
    ("1450", "145°"),
    ("14", "145°"),
    ("145.5", "145°"),
    ("145/2", "145°"),
    ("145!", "145°"),
    # another unit
    ("5 m", "5cm"),
    ("5 cm", "5cm²"),
    ("145 cm", "145°"),
    ("145%", "145°"),
    ("145 radians", "145°"),
    # the coefficient, or a rounded value, of an irrational number
    ("8", "8√{3}"),
    ("2", "2√{3}"),
    ("3", "√{3}"),
    ("65", "65π"),
    ("1.732", "√{3}"),
    ("204.2", "65π"),
    # several, denied, bounded
    ("40 or 145", "145°"),
    ("145, 40", "145°"),
    ("145 40", "145°"),
    ("145°\n40°", "145°"),
    ("145°, 35°", "145°"),
    ("∠1 = 30°, ∠2 = 145°", "145°"),
    ("40 = 145", "145°"),
    ("not 145", "145°"),
    ("it isn't 145°", "145°"),
    ("x < 145", "145°"),
    ("x ≥ 145", "145°"),
    ("≈145", "145°"),
    ("at most 145", "145°"),
    ("between 140 and 150", "145°"),
    # a part of an expression with letters, or another letter
    ("90°", "90°-α"),
    ("α", "90°-α"),
    ("90°+α", "90°-α"),
    ("90°-2α", "90°-α"),
    ("90°-β", "90°-α"),
    ("90°-a", "90°-α"),
    ("180°-α", "180°-2α"),
    ("90°-α", "90°"),
    ("90° − α", "90°"),
    ("The angle is 90° − α", "90°"),
    (r"The angle is $90^\circ - \alpha$", "90°"),
    ("90°-α or 90°+α", "90°-α"),
    # one of two cases, or more than two
    ("60°", "60°或120°"),
    ("120°", "60°或120°"),
    ("60° or 60°", "60°或120°"),
    ("60° or 100°", "60°或120°"),
    ("60°, 100° or 120°", "60°或120°"),
    ("60°120°", "60°或120°"),
    ("not 60° or 120°", "60°或120°"),
    ("60 cm or 120 cm", "60°或120°"),
    ("60°或120°", "60°"),
    # what only looks like it
    ("１４５", "145°"),
    ("١٤٥", "145°"),
    ("14\u200b5", "145°"),
    ("145\u0301", "145°"),
    ("\u202e541", "145°"),
    ("Option 145B", "145°"),
    ("triangle 3 with angle 145", "145°"),
    ("10^{10^{10}}", "10"),
]


@pytest.mark.parametrize(("candidate", "gold"), DIFFERENT)
def test_another_quantity(candidate, gold):
    assert not match_geometry(candidate, gold)
    assert (
        geometry(completion(f"<think>{gold}</think><answer>{candidate}</answer>"), example(gold))
        == 0.0
    )


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>so 145</think><answer>145</answer>", 1.0),
        (
            "<think>first 40, then 145</think><answer>40</answer>",
            0.0,
        ),  # the published reward reads the reasoning
        (
            "<think>reason</think><answer>145</answer>",
            1.0,
        ),  # ... and misses digits that touch the tag
        ("<answer> 145 </answer>", 1.0),
        ("<think>145</think>", 0.0),
        ("<think>145", 0.0),
        ("<answer>145", 0.0),
        (r"So \boxed{145^\circ}", 1.0),
        ("The answer is 145°.", 1.0),
        ("145", 1.0),
    ],
)
def test_the_documented_cases(response, expected):
    assert geometry(completion(response), example("<answer> 145° </answer>")) == expected


@pytest.mark.parametrize("answer", ["", "unknown", "30 or 40", "30°或", "30°或x", "²", "x", "α"])
def test_gold_that_is_no_quantity_is_refused_by_example(answer):
    with pytest.raises(UserError, match="of example '7' cannot be read as a quantity"):
        geometry(completion("<answer>30</answer>"), example(answer))


@settings(deadline=None)
@given(
    st.integers(-999, 9999),
    st.sampled_from(["", "°", "cm", " cm", "米", " degrees", "cm²", r"\text{ m}"]),
)
def test_every_number_is_itself_and_not_its_neighbour(number, unit):
    gold = f"{number}{unit}"
    assert match_geometry(gold, gold)
    assert match_geometry(f"{number}", gold)
    assert match_geometry(f"The answer is {number}{unit}.", gold)
    assert not match_geometry(f"{number + 1}{unit}", gold)
    assert not match_geometry(f"{number}{unit} or {number + 1}{unit}", gold)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(2, 60), st.integers(1, 60))
def test_roots_agree_with_their_squares(a, b, c):
    assert match_geometry(rf"{a}\sqrt{{{b}}}", f"√{{{a * a * b}}}")
    assert match_geometry(f"{a}√{b} + {c}", rf"{c}+{a}\sqrt{{{b}}}")
    assert not match_geometry(f"{a}√{{{b}}}", f"{a}√{{{b + 1}}}")


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,°√π{}()\\frac^2cm 米=-+/<\u200b a", max_size=40))
def test_any_text_is_read_or_refused(text):
    got = parse_quantity(text)
    assert got is None or got.expression
    assert match_geometry(text, "145°") in (True, False)


def test_the_explanation():
    told = geometry.explain(completion("<answer>5 m</answer>"), example("5cm"))
    assert (told.score, told.parsed, told.gold) == (0.0, "5 m", "5 cm")
    assert (
        geometry.explain(completion("<answer>40 or 145</answer>"), example("145°")).parsed is None
    )
    assert str(Quantity("5")) == "5"
    told = geometry.explain(completion("<answer>40 or 145</answer>"), example("145°或40°"))
    assert (told.parsed, told.gold) == ("40 or 145", "145 deg or 40 deg")
