"""Answers in the forms that models write, kind by kind, and two properties of all judges.

A right answer gets full marks in every form, and what only looks like it gets none. The forms are those that were once
misread.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.text.numerals import with_digits
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import (
    strict_anls,
    strict_choice,
    strict_class,
    strict_count,
    strict_expression,
    strict_quantity,
    strict_relaxed,
)
from gpg_vl.eval.task import Doc
from gpg_vl.rewards import rewards
from gpg_vl.types import Completion, Example

VITAMINS = ("Vitamin B", "Vitamin D", "Vitamin E")
ANIMALS = ("dog", "brown dog")
SHIPS = ("ferry", "tug", "barge")
PLANES = ("A320", "737-800", "MD-80")


def score(reward, response, gold, choices=None, **meta):
    completion = Completion(token_ids=(), logprobs=(), text=response, finish_reason="stop")
    example = Example(id="7", prompt="?", answer=gold, choices=choices, meta=meta)
    return rewards.get(reward)(completion, example)


# --- where the answer stands --------------------------------------------------------------------------------------------

LAYOUTS = [
    "**Answer**: {}",
    "Answer:\n{}",
    "Answer:\n\n{}\n\nThat is all.",
    "### Final Answer\n{}",
    "**Final Answer:** {}",
    "The answer is\n\\[ {} \\]",
    "The answer should be {}.",
    "The answer to this question is {}.",
    "Answer - {}",
    "The correct option is {}",
    "Correct choice: {}",
    "答案是{}。",
    "**答案**：{}",
    "因此正确答案为 {}",
    "故选：{}",
    "<ANSWER>{}</ANSWER>",
    "<final_answer>{}</final_answer>",
    "<|begin_of_box|>{}<|end_of_box|>",
    '{{"answer": "{}"}}',
    '```json\n{{"answer": "{}"}}\n```',
    "[[{}]]",
    "`{}`",
    "\\boxed{{{}}}",
    "First \\boxed{{9}}. On second thoughts, final answer: {}",
    "Answer: 9. No wait. \\boxed{{{}}}",
    "◁think▷9◁/think▷{}",
    "<think>\\boxed{{9}}</think>The answer is **{}** ✅",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_by_every_kind(layout):
    for reward, right, wrong, gold, choices in (
        ("counting", "6", "7", "6", None),
        ("math", "6", "7", "6", None),
        ("geometry", "6", "7", "6cm", None),
        ("vqa_relaxed", "60", "70", "60", None),
        ("vqa", "red", "blue", "red", None),
        ("choice", "B", "C", "(B)", SHIPS),
        ("classification", "tug", "ferry", "tug", SHIPS),
    ):
        assert score(reward, layout.format(right), gold, choices) == 1.0, (reward, layout)
        assert score(reward, layout.format(wrong), gold, choices) == 0.0, (reward, layout)


@pytest.mark.parametrize(
    "response",
    [
        "Answer: B or answer: C",
        "<answer>B</answer> or <answer>C</answer>",
        "\\boxed{B} or \\boxed{C}",
        "<answer>C</answer> B",
        "I do not think the answer is B",
        "If the answer is B, then C is closed.",
        "<think>The answer is B",
        "\\boxed{B}\\boxed{}",
    ],
)
def test_what_is_no_commitment_earns_nothing(response):
    assert score("choice", response, "(B)", SHIPS) == 0.0


@given(st.text("AB5.*_#`{}[]<>/\\\n answeristhk:答案是故选$\"'", max_size=60))
def test_what_was_extracted_without_a_marker_is_extracted_again_as_it_is(text):
    first = extract_answer(text)
    if first.candidate is not None and first.step == "text":
        again = extract_answer(first.candidate)
        assert again.candidate is None or len(again.candidate) <= len(first.candidate)


# --- kind by kind -------------------------------------------------------------------------------------------------------

RIGHT = [
    ("choice", "The answer is B. Note that A is a distractor.", "(B)", SHIPS),
    ("choice", "<answer>option b</answer>", "(B)", SHIPS),
    ("choice", "It must be Vitamin D.", "(B)", VITAMINS),
    ("choice", r"\boxed{\text{Vitamin E}}", "(C)", VITAMINS),
    ("choice", "A brown dog is running.", "(B)", ANIMALS),
    ("choice", "It is not a ferry, it is a barge.", "(C)", SHIPS),
    ("choice", "The tug is larger than the ferry.", "(B)", SHIPS),
    ("choice", "There are no boats.", "(C)", ("2", "1", "0")),
    ("choice", "船在桥的左边。", "(A)", ("左边", "右边")),
    ("counting", "<answer>thirty-two</answer>", "32", None),
    ("counting", "There are no boats here.", "0", None),
    ("counting", "There are 3 boats, and the one in front is red.", "3", None),
    ("counting", "图中有三只船", "3", None),
    ("counting", "2 + 1 = 3", "3", None),
    ("classification", "<answer>Airbus A320</answer>", "A320", PLANES),
    ("classification", "This is a tug.", "tug", SHIPS),
    ("classification", "The ship is: tug", "tug", SHIPS),
    ("counting", "There aren't any boats.", "0", None),
    ("math", "12 cm²", "12", None),
    ("geometry", "<answer>3√5 ≈ 6.71</answer>", "3√{5}", None),
    ("geometry", "<answer>BC = 3√5 (about 6.7)</answer>", "3√{5}", None),
    ("geometry", "桥长7米", "7米", None),
    ("geometry", "(D) 35°", "35°", None),
    ("geometry", r"$7\mathrm{~cm}$", "7cm", None),
    ("geometry", "<answer>35^o</answer>", "35°", None),
    ("math", r"<answer>$\frac{3}{4} \approx 0.75$</answer>", r"\frac{3}{4}", None),
    ("math", r"<answer>$\frac{3}{4}$ or $0.75$</answer>", "0.75", None),
    ("math", "20,\\!160", "20160", None),
    ("math", "20\u202f160", "20160", None),
    ("math", "20160", "20,\\!160", None),
    ("math", r"\cos^2(x)", r"\cos^2 x", None),
    ("math", "3 \\le x < 7", "[3,7)", None),
    ("math", "x < 3 or x > 7", r"(-\infty,3)\cup(7,\infty)", None),
    ("math", "7 N", "7", None),
    ("math", "€7", "7", None),
    ("math", "2×10⁶", "2000000", None),
    ("math", "边长为7厘米。", "7", None),
    ("math", r"\varnothing", r"\emptyset", None),
    ("vqa", "<answer>“blue”</answer>", "blue", None),
    ("vqa", r"\boxed{\text{blue}}", "blue", None),
    ("vqa", "Yes, it is parked.", "yes", None),
    ("vqa_relaxed", r"\boxed{35\%}", "35%", None),
    ("vqa_relaxed", "35 percent", "35%", None),
    ("vqa_relaxed", "−3.5", "-3.5", None),
    ("vqa_relaxed", r"\boxed{2{,}750}", "2750", None),
    ("vqa_relaxed", "seven", "7", None),
    ("vqa_anls", 'The answer is "Net Sum".', "Net Sum", None),
]
WRONG = [
    ("choice", "It must be Vitamin C.", "(C)", VITAMINS),
    ("choice", "A brown dog is running.", "(A)", ANIMALS),
    ("choice", "B. ferry\nC. barge", "(B)", SHIPS),
    ("choice", "around 1 or so", "(B)", ("2", "1", "0")),
    ("counting", "3 dozen", "3", None),
    ("counting", "negative 3", "3", None),
    ("counting", "3!", "3", None),
    ("counting", "3 is wrong", "3", None),
    ("counting", "No idea.", "0", None),
    ("geometry", "7 inches", "7cm", None),
    ("geometry", "7 monkeys", "7cm", None),
    ("geometry", r"7\text{ ft}", "7cm", None),
    ("geometry", "2√3 ≈ 9.46", "2√{3}", None),
    ("math", "minus 7", "7", None),
    ("math", "7 million", "7", None),
    ("math", "the square root of 7", "7", None),
    ("math", "7 is wrong", "7", None),
    ("math", "(20, 160)", "20,\\!160", None),
    ("math", "x=1 or x=2", "(1,2)", None),
    ("math", r"(\frac{2}{3})^{150}", r"(\frac{2}{3})^{151}", None),
    ("math", "2^{-80}", "2^{-81}", None),
    ("math", r"\frac{1}{1500!}", r"\frac{1}{1501!}", None),
    ("vqa_relaxed", "1997", "1999", None),
    ("vqa_relaxed", "95 to 105", "100", None),
]


@pytest.mark.parametrize(("reward", "response", "gold", "choices"), RIGHT)
def test_right(reward, response, gold, choices):
    assert score(reward, response, gold, choices) == 1.0


@pytest.mark.parametrize(("reward", "response", "gold", "choices"), WRONG)
def test_wrong(reward, response, gold, choices):
    assert score(reward, response, gold, choices) == 0.0


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("forty-two", "42"),
        ("three hundred and seven", "307"),
        ("6 million", "6000000"),
        ("4.5 billion", "4500000000"),
        ("five six", "five six"),
        ("seven or eight", "7 or 8"),
    ],
)
def test_numbers_in_words(text, digits):
    assert with_digits(text) == digits


# --- properties ---------------------------------------------------------------------------------------------------------

KINDS = {
    "choice": (strict_choice, [("(A)", SHIPS), ("(B)", SHIPS), ("(C)", SHIPS)]),
    "classification": (strict_class, [(name, SHIPS) for name in SHIPS]),
    "counting": (strict_count, [(str(n), None) for n in (0, 3, 4, 34)]),
    "geometry": (strict_quantity, [(g, None) for g in ("3cm", "2m", "4", "3√{4}", "34°")]),
    "math": (
        strict_expression,
        [(g, None) for g in ("3", "-3", "34", "(3,4)", "x+3", "2^{-80}", r"\{3,4\}")],
    ),
    "vqa_relaxed": (strict_relaxed, [("3", None), ("1999", None), ("tug", None)]),
    "vqa_anls": (strict_anls, [("tug", None), ("a tug boat", None)]),
}
WORDS = r"A|B|(C)|3|4|-|√|^{-80}|2| or | and | not |the |tug|ferry|cm| m|°|three |dozen |minus |(|)|x+|, |. "
PIECES = st.sampled_from(
    [*WORDS.split("|"), "answer is ", "<answer>", "</answer>", r"\boxed{", "}", "\n"]
)
RESPONSES = st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("reward", KINDS)
@settings(deadline=None)  # the first comparison imports sympy
@given(response=RESPONSES)
def test_a_reward_and_its_strict_scorer_never_disagree(reward, response):
    scorer, golds = KINDS[reward]
    for gold, choices in golds:
        example = Example(id="7", prompt="?", answer=gold, choices=choices)
        doc = Doc(doc_id=7, example=example)
        assert scorer(doc, Response(text=response)).score == score(reward, response, gold, choices)


@pytest.mark.parametrize("reward", [name for name in KINDS if not name.startswith("vqa")])
@settings(deadline=None)  # the first comparison imports sympy
@given(response=RESPONSES)
def test_no_response_is_right_under_two_golds_that_differ(reward, response):
    _, golds = KINDS[reward]
    credited = [one for one in golds if score(reward, response, *one) > 0]
    for gold, choices in credited:
        for other, _ in credited:
            same = score(reward, f"<answer>{gold}</answer>", other, choices)
            assert same or score(reward, f"<answer>{other}</answer>", gold, choices)
