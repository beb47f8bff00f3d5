"""Published scoring rules on their documented cases, defects included. Expected values are from the rules' own descriptions.

Cases that fool a published rule stand beside what `strict` makes of them.
"""

import time
from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.text.metrics import soft_accuracy
from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers import gsm8k, mathvista, mmmu, vqa
from gpg_vl.eval.scorers.boxes import lmms_grounding, vlmevalkit_box
from gpg_vl.eval.scorers.classes import official_class
from gpg_vl.eval.scorers.lighteval import EXPRESSION, LATEX, lighteval
from gpg_vl.eval.scorers.lmms import (
    lmms_letter,
    lmms_reasoning,
    option_letter,
    reasoning_answer,
    strip_reasoning,
)
from gpg_vl.eval.scorers.mathverify import parse_math, same_math
from gpg_vl.eval.scorers.r1v import r1v_count, r1v_math
from gpg_vl.eval.scorers.strict import (
    strict,
    strict_anls,
    strict_choice,
    strict_class,
    strict_count,
    strict_expression,
    strict_quantity,
    strict_relaxed,
    strict_vqa,
)
from gpg_vl.eval.scorers.tags import first_block
from gpg_vl.eval.scorers.visual_rft import visual_rft_class
from gpg_vl.eval.scorers.visualthinker import visualthinker
from gpg_vl.eval.scorers.vlmevalkit import infer, vlmevalkit_choice
from gpg_vl.eval.task import Doc
from gpg_vl.types import Example


def make_doc(gold, choices=None, **columns):
    example = Example(id="0", prompt="?", answer=gold, choices=choices, meta=columns)
    return Doc(doc_id=0, example=example)


def result(scorer, doc, text):
    score = scorer(doc, Response(text=text))
    return score.score, score.parsed


def score(scorer, doc, text):
    return scorer(doc, Response(text=text)).score


CHAIR = make_doc("(B)", ("table", "chair"))
TABLE = make_doc("(A)", ("table", "chair"))
COUNT = make_doc("(B)", ("11", "1", "10", "0"))
SIX = make_doc("(F)", ("1", "2", "3", "4", "5", "6"))


def test_what_was_odd_stands_in_the_note():
    scorer = strict(lambda answer, example: Verdict(score=0.0, parsed=None, gold="", note="odd"))
    got = scorer(CHAIR, Response(text="<answer>x</answer><answer>y</answer>"))
    assert (got.score, got.parsed, got.note) == (0, None, "odd, several")


# --- lmms-eval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>x</think> (B)", "(B)"),
        ("<think>x</think>a<think>y</think>b", "ab"),
        ("x</think>y</think> (B) ", "(B)"),  # no start: what stands behind the last end
        ("<think>never closed (B)", "<think>never closed (B)"),
        ("<analysis>x</analysis>B", "B"),
        ("<analysis><think>x</analysis>y</think>B", "<analysis>B"),  # the think pair first
        ("<THINK>x</THINK>B", "<THINK>x</THINK>B"),  # case-sensitive
        ("<think>x</think><answer>B</answer>", "<answer>B</answer>"),
        ("", ""),
    ],
)
def test_lmms_strips_reasoning_its_way(text, left):
    assert strip_reasoning(text) == left


@pytest.mark.parametrize(
    ("text", "parsed", "right"),
    [
        ("(B) chair", "B", 1),
        ("b", "B", 1),
        ("  ( (b).", "B", 1),
        ("B) chair", "B", 1),
        ("<think>A?</think> B", "B", 1),
        ("But which?", "B", 1),  # no word boundary
        ("The answer is (B)", None, 0),
        ("<answer>B</answer>", None, 0),
        ("\\boxed{B}", None, 0),
        ("", None, 0),
    ],
)
def test_lmms_takes_the_first_letter(text, parsed, right):
    assert result(lmms_letter, CHAIR, text) == (right, parsed)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>A</answer> no <answer>B</answer>", "A"),  # the first
        ("<answer>\nB.\n</answer>", "B"),
        ("<answer></answer> \\boxed{B}", ""),
        ("\\boxed{A} \\boxed{\\text{(B)}}", "\\text{(B)}"),
        ("\\boxed{A} \\boxed{B", "A"),  # not closed
        ("so it is 12\nthat is 204.", "204"),
        ("it is 3.5 .\nyes", "3.5"),
        ("the answer is B", ""),
    ],
)
def test_lmms_reasoning_finds_an_answer_in_tags_boxes_or_final_numbers(text, answer):
    assert reasoning_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b", ""),
        ("An apple (B)", "A"),  # starts with the letter: 10
        ("it is (C), not D", "D"),  # ends with it: 9
        ("see 2. B or (C) now", "B"),  # numbered: 8
        ("the answer is C (see (D) too)", "C"),  # both behind the phrase: 7, the smaller position
        ("take (C) or D. now", "C"),  # parentheses 6 before a full stop 5
        ("take C: or D) now", "C"),  # colon 4 before parenthesis 3
        ("take D or C- now", "D"),  # blank 2 before dash 1
        ("grab C,D now", "D"),  # D and a blank: 2
        ("xCx", "C"),  # any occurrence
        ("nothing", ""),
        ("'B.'", "B"),  # trimmed
        (
            "(D) no, my choice is C, yes",
            "C",
        ),  # behind one of the rarer phrases: 7, before parentheses 6
    ],
)
def test_lmms_reasoning_weighs_the_places_of_a_letter(text, letter):
    assert option_letter(text) == letter


def test_lmms_reasoning_needs_a_tag():
    assert score(lmms_reasoning, CHAIR, "<answer>(B) chair</answer>") == 1
    assert score(lmms_reasoning, CHAIR, "(B)") == 0
    assert score(lmms_reasoning, CHAIR, "<answer>A</answer>") == 0
    assert lmms_reasoning(CHAIR, Response(text="(B)")).parsed is None


@pytest.mark.parametrize("letter", ascii_uppercase)
def test_lmms_reasoning_would_compare_mathematics_on_a_mismatch_but_a_letter_is_none(letter):
    """Why the comparison is left out: with a gold that parses to nothing, math_verify says no whatever the answer is."""
    assert parse_math(letter) == []
    for answer in (letter, f"${letter}$", rf"\text{{{letter}}}", letter.lower()):
        assert not same_math(parse_math(letter), parse_math(answer))


# --- VLMEvalKit, VisualThinker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc", "text", "letter"),
    [
        (CHAIR, "B", "B"),
        (CHAIR, "(B)", "B"),
        (CHAIR, "B. chair", "B"),
        (CHAIR, "I think the best answer would be B!", "B"),  # among the last four
        (CHAIR, "B w w w", "B"),  # exactly the fourth from the end
        (CHAIR, "B w w w w", None),  # the fifth
        (
            CHAIR,
            "B of course as I have said before",
            None,
        ),  # eight words, the first of them, and prose too long
        (CHAIR, "A or B", None),
        (CHAIR, "The correct answer is **b** since the other thing is much further away", "B"),
        (CHAIR, "chair", "B"),
        (CHAIR, "Chairs", "B"),  # a substring
        (CHAIR, "table or chair", None),
        (CHAIR, "the chair, because it is near", None),  # more than twice as long as the options
        (CHAIR, "Sorry, I can't help with images of people yet. B", "Z"),
        (CHAIR, "<answer>B</answer>", None),  # `<` is not blanked, so no word is B
        # Where the answer could not be had, neither letters nor refusals are looked for.
        (CHAIR, "Failed to obtain answer via API. B", None),
        (CHAIR, "Failed to obtain answer via API. I can't process this file.", None),
        (CHAIR, "Cannot determine the answer. Failed to obtain answer via API, chair", None),
        (COUNT, "Failed to obtain answer via API", None),
        (CHAIR, "Z", "Z"),
        (CHAIR, "Z or B", "B"),  # a lone letter comes first
        (COUNT, "11", None),  # contains 1 and 11
        (COUNT, "0", "D"),  # 0 is in 10 as an option, but the text holds only 0
        (SIX, "F", "F"),
        (SIX, "answer is f", None),  # A to D only
    ],
)
def test_vlmevalkit_infers_without_a_judge(doc, text, letter):
    assert infer(text, doc.example.choices) == letter
    assert score(vlmevalkit_choice, doc, text) == (letter == doc.gold.strip("()"))


@pytest.mark.parametrize(
    ("doc", "text", "right", "strict"),
    [
        (CHAIR, "(B)", 1, 1),
        (CHAIR, "<think>hm (A)</think><answer>(B)</answer>", 1, 1),
        (CHAIR, "<answer>\nchair\n</answer>", 1, 1),
        (CHAIR, "<answer>Chair</answer>", 0, 1),  # another case
        (TABLE, "The chair is closer than a table", 1, 0),  # the article is option A
        (TABLE, "it is a thing", 1, 0),  # ... also where the text of option A is not in sight
        (CHAIR, "The chair is closer than a table", 0, 1),
        (
            TABLE,
            "<answer>it is\n(A)</answer>",
            0,
            1,
        ),  # no block is seen across lines, and "(A)</answer>" is no word
        (CHAIR, "<answer></answer> (B)", 1, 0),  # an empty block counts as none
        (CHAIR, "no idea", 0, 0),
        (COUNT, "<answer>1</answer>", 1, 1),
        (COUNT, "<answer>11</answer>", 0, 0),
        (CHAIR, "<think>it is (B)", 1, 0),  # the whole output, reasoning included
    ],
)
def test_visualthinker_keeps_its_quirks_and_strict_does_not(doc, text, right, strict):
    assert score(visualthinker, doc, text) == right
    assert score(strict_choice, doc, text) == strict


# --- R1-V -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "published", "strict"),
    [
        ("145°", "<think>so 145</think><answer>145</answer>", 1, 1),
        (
            "145°",
            "<think>first 40, then 145</think><answer>40</answer>",
            1,
            0,
        ),  # read from the reasoning
        (
            "145°",
            "<think>reason</think><answer>145</answer>",
            0,
            1,
        ),  # digits that touch a tag are not seen
        ("145°", "<answer> 145 </answer>", 1, 1),
        ("145°", "<answer> 144 </answer>", 0, 0),
        ("8√{3}", "<answer> 8 </answer>", 1, 0),  # the coefficient
        ("8√{3}", "<answer> $8\\sqrt{3}$ </answer>", 0, 1),
        ("√{3}", "<answer> $\\sqrt{3}$ </answer>", 0, 1),  # the gold parses to nothing
        ("65π", "<answer> 65 </answer>", 1, 0),
        ("2√{15}米", "<answer> $2\\sqrt{15}$ meters </answer>", 0, 1),
        ("5cm", "<answer> 5 </answer>", 1, 1),
        ("5cm", "<answer> 5 m </answer>", 1, 0),  # another unit
        # The output stands in the gold's place, and math_verify compares a relation with a set only if the gold is the relation.
        ("$(1,2)$", "$1 < x < 2$", 1, 0),
        ("$1 < x < 2$", "$(1,2)$", 0, 0),
    ],
)
def test_r1v_reads_the_whole_output_and_strict_the_answer(gold, text, published, strict):
    doc = make_doc(gold)
    assert score(r1v_math, doc, text) == published
    assert score(strict_quantity, doc, text) == strict


def test_strict_wants_every_case_of_a_gold_that_names_cases():
    for gold, right, half in (("60°或120°", "120° or 60°", "60°"), ("90°-α", "90° - α", "90°")):
        for text in (gold, right):
            assert (
                strict_quantity(make_doc(gold), Response(text=f"<answer>{text}</answer>")).score
                == 1
            )
        assert result(strict_quantity, make_doc(gold), f"<answer>{half}</answer>")[0] == 0
    two = Response(text="<answer>60° or 120°</answer>")
    assert strict_quantity(make_doc("60°"), two).parsed is None


@pytest.mark.parametrize(
    ("text", "published", "strict"),
    [
        ("<answer>4</answer>", 1, 1),
        ("<answer>\n4\n</answer>", 1, 1),
        ("<answer>four</answer>", 0, 1),
        ("<answer>4.0</answer>", 0, 1),
        ("4", 0, 1),
        ("<answer>4</answer> <answer>5</answer>", 1, 0),  # the first, the last
        ("<answer>x</answer><answer>4</answer>", 1, 1),
        ("<answer>4 or 5</answer>", 0, 0),
        ("<answer>" + "4" * 30 + "</answer>", 0, 0),
    ],
)
def test_counts(text, published, strict):
    doc = make_doc("4")
    assert score(r1v_count, doc, text) == published
    assert score(strict_count, doc, text) == strict


# --- classification ---------------------------------------------------------------------------------------------------

CARS = ("2012 BMW 1 Series Convertible", "2012 BMW M3 Coupe", "2000 AM General Hummer SUV")
FLOWERS = ("rose", "desert-rose", "tulip", "daisy")


@pytest.mark.parametrize(
    ("classes", "gold", "answer", "published", "strict", "official"),
    [
        (CARS, CARS[0], CARS[0], 1, 1, 1),
        (CARS, CARS[0], "2012 bmw 1-series convertible.", 0, 1, 1),
        (CARS, CARS[0], "", 1, 0, 0),
        (CARS, CARS[0], "BMW", 1, 0, 0),
        (CARS, CARS[0], "2012", 1, 0, 0),
        (CARS, CARS[0], CARS[1], 0, 0, 0),
        (FLOWERS, "rose", "rose, tulip, daisy", 1, 0, 0),
        (FLOWERS, "rose", "desert-rose", 1, 0, 0),
        (FLOWERS, "rose", "a rose", 1, 1, 0),
        (FLOWERS, "tulip", "e", 0, 0, 0),
        (FLOWERS, "rose", "e", 1, 0, 0),
        (("707-320", "737-200"), "737-200", "7", 1, 0, 0),
    ],
)
def test_substrings_are_no_classification(classes, gold, answer, published, strict, official):
    doc, text = make_doc(gold, classes), f"<think>hm</think><answer>{answer}</answer>"
    assert score(visual_rft_class, doc, text) == published
    assert score(strict_class, doc, text) == strict
    assert score(official_class, doc, text) == official


def test_visual_rft_sees_no_class_without_a_tag_on_one_line():
    doc = make_doc("rose", FLOWERS)
    for text in ("rose", "<answer>rose", "<answer>\nrose</answer>"):
        assert result(visual_rft_class, doc, text) == (0, None)
    assert (
        score(visual_rft_class, doc, "<answer>\nx</answer><answer>rose</answer>") == 1
    )  # passed over


def test_an_empty_answer_scores_everything_under_the_published_rule():
    docs = [make_doc(gold, CARS) for gold in CARS]
    assert [score(visual_rft_class, doc, "<answer></answer>") for doc in docs] == [1, 1, 1]
    assert [score(strict_class, doc, "<answer></answer>") for doc in docs] == [0, 0, 0]


# --- text mathematics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "text", "official", "strict"),
    [
        ("$\\boxed{\\frac{1}{2}}$", "$\\boxed{0.5}$", 1, 1),
        ("$\\boxed{\\frac{1}{2}}$", "\\boxed{\\frac{2}{4}}", 1, 1),
        ("$\\boxed{12}$", "first $13$, so $\\boxed{12}$", 1, 1),
        ("$\\boxed{12}$", "<think>$\\boxed{12}$</think> so $\\boxed{13}$", 0, 0),
        (
            "$\\boxed{12}$",
            "<think>$\\boxed{12}$</think> I give up",
            1,
            0,
        ),  # the reasoning counts there
        ("$\\boxed{12}$", "no idea", 0, 0),
        ("$\\boxed{\\{6,-6\\}}$", "$\\boxed{\\{-6, 6\\}}$", 1, 1),
        ("$\\boxed{x^2 + 2xy + y^2}$", "so $\\boxed{x^2 + y^2 + 2xy}$", 1, 1),
        ("$\\boxed{x^2 + 2xy + y^2}$", "so $\\boxed{x^2 + xy + y^2}$", 0, 0),
    ],
)
def test_lighteval_and_strict_on_a_solution(solution, text, official, strict):
    gold = solution[8:-2]  # inside of $\boxed{...}$
    doc = make_doc(gold, solution=solution)
    assert score(lighteval("solution", LATEX), doc, text) == official
    assert score(strict_expression, doc, text) == strict


def test_lighteval_on_an_expression():
    scorer = lighteval("answer", EXPRESSION)
    assert score(scorer, make_doc("204", answer="204"), "so the answer is 204.") == 1
    assert (
        score(scorer, make_doc("204", answer="204"), "$\\boxed{204}$ or maybe 205") == 1
    )  # boxed first
    assert score(scorer, make_doc("204", answer="204"), "$\\boxed{205}$, not 204") == 0
    # A box comes before a "final answer is".
    text = "The final answer is 205. I hope it is correct. \\boxed{204}"
    assert score(scorer, make_doc("204", answer="204"), text) == 1


def test_lighteval_compares_five_decimal_places():
    third = make_doc("0.33333", solution="$\\boxed{0.33333}$")
    assert score(lighteval("solution", LATEX), third, "$\\boxed{0.333331}$") == 1
    assert score(lighteval("solution", LATEX), third, "$\\boxed{0.33336}$") == 0
    assert score(lighteval("solution", LATEX), third, "$\\boxed{0.334}$") == 0


@pytest.mark.parametrize(
    ("text", "official", "flexible", "lmms", "strict"),
    [
        ("So 48+24=72.\n#### 72", 1, 1, 0, 1),
        ("#### 1\n#### 72", 0, 1, 0, 1),  # the first one
        ("#### 72.", 0, 1, 0, 1),  # a final point is not forgiven
        ("The final answer is 7. The final answer is 72", 0, 1, 1, 1),  # the last one
        ("It makes 72 apples, right", 0, 1, 0, 1),
        ("#### $72", 0, 1, 0, 1),  # a currency sign stands between
        ("The answer is 72.", 0, 1, 0, 1),
        ("72 apples, 3 more than 69", 0, 0, 0, 0),  # the last number is 69
        ("The final answer is 72.00", 0, 0, 0, 1),
        ("The final answer is $72", 0, 1, 1, 1),
        # Commas and dollars go first, and a final point is what is the last one then.
        ("The final answer is $72.$", 0, 1, 1, 1),
        ("The final answer is 72.,", 0, 1, 1, 1),
        ("The final answer is 72..", 0, 0, 0, 1),  # one point alone
        ("#### 7,2", 1, 1, 0, 0),
        ("#### 72,", 1, 1, 0, 1),
        ("<think>#### 72</think>#### 71", 1, 0, 0, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_gsm8k(text, official, flexible, lmms, strict):
    doc = make_doc("72")
    got = [
        score(scorer, doc, text)
        for scorer in (gsm8k.official, gsm8k.flexible, gsm8k.lmms, strict_expression)
    ]
    assert got == [official, flexible, lmms, strict]


# --- MMMU, MathVista --------------------------------------------------------------------------------------------------

FOUR = make_doc("B", ("red car", "blue car", "green car", "a bus"), golds=["B"])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("(B)", "B"),
        ("B", "B"),
        ("(A) is wrong, (B) is right", "B"),  # the last
        ("B. blue car", None),  # the owners know no "B."
        ("I pick A because B. is far", "A"),
        ("Grade A says B", "B"),  # two letters with a blank behind: the later
        ("It is surely the blue car", "B"),  # six words
        ("It is surely the blue car here", "B"),  # an option's text, more than five words
        ("the blue car", None),  # too short for a text; the original draws at random
        ("DNA is the answer", None),  # a blank has to stand on both sides
        ("<answer>B</answer>", None),
        ("", None),
    ],
)
def test_mmmu_options(text, parsed):
    assert result(mmmu.mmmu, FOUR, text) == (parsed == "B", parsed)


@pytest.mark.parametrize(
    ("text", "parsed"), [("B. blue car", "B"), ("DNA is the answer", "A"), ("(B)", "B"), ("B", "B")]
)
def test_lmms_eval_reads_more_letters_in_mmmu(text, parsed):
    assert result(mmmu.mmmu_lmms, FOUR, text) == (parsed == "B", parsed)


@pytest.mark.parametrize(
    ("gold", "text", "official", "strict"),
    [
        ("24", "The area is 24.", 1, 1),
        ("24", "<answer>24</answer>", 1, 1),  # numbers are looked for everywhere
        ("24", "<answer>24 cm</answer>", 1, 1),
        ("24", "<think>24?</think><answer>25</answer>", 1, 0),
        ("24", "24.001", 1, 0),  # two places
        ("24", "1,024", 1, 0),  # `024` is a number of its own
        ("1024", "so it is 1,024 in all", 1, 1),
        ("Ohm", "It is Ohm's law", 1, 0),  # inside of the piece
        ("Ohm", "ohm", 1, 1),
        ("5", "x = 5", 1, 1),
        ("5", "is 3\nis 5", 1, 0),  # any line
    ],
)
def test_mmmu_open_answers(gold, text, official, strict):
    doc = make_doc(gold, golds=[gold])
    assert score(mmmu.mmmu, doc, text) == official
    assert score(mmmu.strict_mmmu, doc, text) == strict


@pytest.mark.parametrize(
    ("gold", "text", "official"),
    [
        # Behind "is " the line has nothing. So the next indicator counts, whatever its length: "is" behind "answer ".
        ("is", "The answer is \nfive", 1),
        ("five", "The answer is \nfive", 0),  # the second line has no indicator and is no piece
        ("it is", "So it is\nfive", 1),  # no blank behind "is", so the piece is that behind "so "
        ("five", "So it is\nfive", 0),
        ("five", "It =\nfive", 1),  # "=" counts on the last line alone: no piece, so the whole text
        ("it", "It = five", 0),
        ("two", "is .\ntwo", 1),  # a piece that is a point is none, so the whole text counts
    ],
)
def test_mmmu_takes_the_piece_behind_an_indicator_of_each_line(gold, text, official):
    assert score(mmmu.mmmu, make_doc(gold, golds=[gold]), text) == official


def test_mmmu_reads_an_open_answer_as_vlmevalkit_does():
    doc = make_doc("Ohm", golds=["Ohm"])
    assert score(mmmu.mmmu_vlmevalkit, doc, "ohm") == 1
    assert score(mmmu.mmmu_vlmevalkit, doc, "Kirchhoff") == 0
    assert score(mmmu.mmmu_lmms, FOUR, "<think>(A)</think>(B)") == 1


def vista(answer_type, gold, choices=None, precision=None):
    return make_doc(gold, choices, answer_type=answer_type, precision=precision)


@pytest.mark.parametrize(
    ("doc", "text", "strict", "lmms", "vlmevalkit"),
    [
        (vista("text", "(B)", ("3/11", "8/11", "6/11")), "8/11", 1, 1, 1),
        (vista("text", "(B)", ("3/11", "8/11", "6/11")), "B", 1, 0, 1),  # a letter is not extracted
        (
            vista("text", "(A)", ("3/11", "8/11", "6/11")),
            "",
            0,
            1,
            0,
        ),  # all are as far from nothing: the first, by luck
        (vista("text", "(B)", ("3/11", "8/11", "6/11")), "<answer>8/11</answer>", 1, 0, 1),
        (vista("integer", "14"), "14", 1, 1, 1),
        (vista("integer", "14"), "14.0", 1, 0, 0),
        (vista("integer", "14"), "14.7", 0, 0, 0),
        (vista("integer", "14"), "The number is 14.", 1, 0, 0),
        (vista("integer", "1200"), "<answer>1,200</answer>", 1, 0, 0),
        (vista("integer", "5"), "<answer>5 cm</answer>", 1, 0, 0),
        (vista("float", "1.2", precision=1.0), "1.23", 1, 1, 0),
        (vista("float", "1.2", precision=1.0), "1.2", 1, 1, 1),
        (vista("float", "1.2", precision=1.0), "1.26", 0, 0, 0),
        (vista("list", "[2007, 2008]"), "[2007,2008]", 1, 0, 0),
        (vista("list", "[2007, 2008]"), "<answer>[2007, 2008]</answer>", 1, 0, 0),
        (vista("list", "[2007, 2008]"), "[2007, 2008]", 1, 0, 1),
        (vista("list", "[2007, 2008]"), "[2008, 2007]", 0, 0, 0),
    ],
)
def test_mathvista(doc, text, strict, lmms, vlmevalkit):
    got = [
        score(scorer, doc, text)
        for scorer in (mathvista.strict, mathvista.lmms_no_model, mathvista.vlmevalkit)
    ]
    assert got == [strict, lmms, vlmevalkit]


# --- short answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "official", "strict"),
    [
        ("14", "14.5", 1, 1),
        ("14", "15", 0, 0),  # 7 % off
        ("12%", "12", 0, 1),
        ("12", "12%", 0, 1),
        ("0", "0", 1, 1),
        ("0", "0.01", 0, 0),
        ("Norway", "norway", 1, 1),
        ("Norway", "<answer>Norway</answer>", 0, 1),
        ("1200", "1,200", 0, 1),
        ("14", "", 0, 0),
    ],
)
def test_relaxed_accuracy(gold, text, official, strict):
    doc, scorers = make_doc(gold), vqa.scorers(vqa.relaxed, strict_relaxed)
    assert score(scorers["official"], doc, text) == official
    assert score(scorers["strict"], doc, text) == strict


def test_vqa_accuracy_leaves_each_annotator_out_once():
    doc = make_doc("red", answers=["red"] * 2 + ["dark red"] * 8)
    scorers = vqa.scorers(soft_accuracy, strict_vqa)
    # "red" twice of ten: left out of itself 1/3, twice; else 2/3, eight times.
    assert score(scorers["official"], doc, "Red.") == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert score(scorers["official"], doc, "the dark red") == 1
    assert score(scorers["official"], doc, "<answer>dark red</answer>") == 0
    assert score(scorers["strict"], doc, "<answer>dark red</answer>") == 1
    assert score(scorers["lmms"], doc, "<think>red</think>dark red") == 1


def test_where_annotators_disagree_no_answer_has_full_marks():
    doc = make_doc("a1", answers=[f"a{n}" for n in range(10)])
    scorers = vqa.scorers(soft_accuracy, strict_vqa)
    assert score(scorers["official"], doc, "a3") == pytest.approx(0.3)  # 9 of 10 times one third
    assert score(scorers["strict"], doc, "a3") == pytest.approx(0.3)


def test_anls_is_zero_below_one_half():
    doc, scorers = (
        make_doc("grand total", answers=["grand total", "total"]),
        vqa.scorers(vqa.published_anls, strict_anls),
    )
    assert score(scorers["official"], doc, "Grand  Total") == 1
    assert score(scorers["official"], doc, "totals") == pytest.approx(1 - 1 / 6)
    assert score(scorers["official"], doc, "quite another thing") == 0
    # Blanks lengthen the published denominator only.
    assert score(scorers["official"], doc, "totals    ") == pytest.approx(1 - 1 / 10)
    assert score(scorers["strict"], doc, "totals    ") == pytest.approx(1 - 1 / 6)


# --- boxes: more in test_eval_boxes.py -----------------------------------------------------------------------------------


def boxed_doc(box, width, height):
    columns = {"box": list(box), "coordinates": "rel1000", "width": width, "height": height}
    columns |= {"image_size": [width, height], "input_size": [width, height]}
    example = Example(id="0", prompt="?", answer="", meta=columns)
    return Doc(doc_id=0, example=example)


def test_vlmevalkit_takes_a_box_for_fractions_up_to_one_and_a_half():
    doc = boxed_doc((0, 0, 2000, 1000), 2000, 1000)
    assert (
        score(vlmevalkit_box, doc, "[0, 0.5, 1.2, 1]") == 0.5
    )  # clipped to the lower half of the image
    assert score(vlmevalkit_box, doc, "[0, 0.5, 1.5, 1]") == 0.5
    assert score(vlmevalkit_box, doc, "[0, 0.5, 1.6, 1]") < 1e-5  # thousandths: a speck


def test_lmms_grounding_takes_the_boxes_of_json_and_no_other_numbers():
    doc = boxed_doc((0, 0, 2000, 1000), 2000, 1000)
    # As thousandths, the first four numbers are the whole image and the box its left half; a key "view" holds no box.
    text = '{"view": [0, 0, 1000, 1000], "bbox_2d": [0, 0, 500, 1000]}'
    assert score(lmms_grounding, doc, text) == 0.5
    assert score(lmms_grounding, doc, f"see:\n```json\n{text}\n```") == 0.5
    assert score(lmms_grounding, doc, text.removesuffix("}")) == 1  # no JSON: any four numbers


# --- robustness -------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="</answer>\n ab"), st.booleans())
def test_a_block_is_what_the_pattern_finds(text, one_line):
    import re

    found = re.search(r"<answer>(.*?)</answer>", text, 0 if one_line else re.DOTALL)
    assert first_block(text, one_line=one_line) == (found[1] if found else None)
    trimmed = re.search(r"<answer>\s*(.*?)\s*</answer>", text)
    assert first_block(text, one_line=True, trimmed=True) == (trimmed[1] if trimmed else None)


HOSTILE = (
    "<answer>" * 20_000,
    "<think>" * 20_000,
    "<think></think>" * 10_000,
    "9" * 100_000,
    "[" * 50_000,
    "(1,2),(3," * 20_000,
    "answer is " * 20_000,
    " " * 100_000 + "x",
    "\\boxed{" * 20_000,
    "1 " * 50_000,
    "A " * 50_000,
    "is = " * 20_000,
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_no_text_takes_long(text):
    counted = {
        "type": "2D",
        "golds": ["12"],
        "answer_type": "float",
        "precision": 1.0,
        "answer": "12",
        "solution": "12",
    }
    options, plain = make_doc("(B)", ("table", "chair"), **counted), make_doc("12", **counted)
    start = time.process_time()
    for scorer in (
        lmms_letter,
        lmms_reasoning,
        vlmevalkit_choice,
        visualthinker,
        mmmu.mmmu,
        mathvista.lmms_no_model,
    ):
        scorer(options, Response(text=text))
    for scorer in (
        r1v_math,
        r1v_count,
        visual_rft_class,
        mmmu.mmmu,
        mathvista.strict,
        gsm8k.official,
        gsm8k.flexible,
    ):
        scorer(plain, Response(text=text))
    for scorer in (
        *vqa.scorers(vqa.published_anls, strict_anls).values(),
        lighteval("answer", EXPRESSION),
    ):
        scorer(plain, Response(text=text))
    assert time.process_time() - start < 20
