"""Multiple choice: what is credited, what is not, and how a gold answer is read."""

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpg_vl.answers.choice import gold_index, match_choice
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import choice
from gpg_vl.types import Completion, Example

SIDES = ("left", "right")
COUNTS = ("3", "2", "1", "0")
SIX = ("4", "5", "6", "7", "8", "9")
THINGS = ("table", "chair")


def completion(text, prefill=""):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop", prefill=prefill)


def example(answer, choices, identity="7"):
    return Example(id=identity, prompt="Which?", answer=answer, choices=choices)


LETTERED = ("(A) ball", "(B) cube")
COPPER = ("cu", "Cu")

CASES = [
    # options that carry their letters
    ("ball", LETTERED, 0),
    ("cube", LETTERED, 1),
    ("(B) cube", LETTERED, 1),
    ("(B)", LETTERED, 1),
    ("The cube.", LETTERED, 1),
    ("ball", ("A. ball", "B. cube"), 0),
    ("5cm", ("A.3cm", "B.5cm"), 1),
    ("cube", ("a) ball", "b) cube"), 1),
    ("b) cube", ("a) ball", "b) cube"), 1),
    ("cube", ("[A] ball", "[B] cube"), 1),
    ("方块", ("A、球", "B、方块"), 1),
    ("B、方块", ("A、球", "B、方块"), 1),
    ("cube", ("（A）ball", "（B）cube"), 1),
    ("ball", ("(B) ball", "(A) cube"), None),
    ("Smith", ("A. Smith", "Jones"), None),
    ("ball", ("(A) ball",), None),
    ("(A)", ("(A)", "(B)"), 0),
    # texts that differ in case alone are told apart where an answer is verbatim one of them
    ("Cu", COPPER, 1),
    ("cu", COPPER, 0),
    ("CU", COPPER, None),
    # a whole letter
    ("B", SIDES, 1),
    ("(B)", SIDES, 1),
    ("B.", SIDES, 1),
    ("B)", SIDES, 1),
    (" B\n", SIDES, 1),
    ("b", SIDES, 1),
    ("(b)", SIDES, 1),
    ("(a)", SIDES, 0),
    ("A", SIDES, 0),
    ("a", SIDES, None),
    (" a ", SIDES, None),
    ("a", ("a", "the"), None),
    ("a.", SIDES, None),
    ("a)", SIDES, 0),
    ("C", SIDES, None),
    ("(C)", SIDES, None),
    ("E", SIX, 4),
    ("(F)", SIX, 5),
    ("G", SIX, None),
    ("AB", SIDES, None),
    # a letter with the text after it, or in a sentence
    ("(B) right", SIDES, 1),
    ("B. right", SIDES, 1),
    ("B: right", SIDES, 1),
    ("B) right", SIDES, 1),
    ("B right", SIDES, 1),
    ("(A) left", SIDES, 0),
    ("A. left", SIDES, 0),
    ("A left", SIDES, 0),
    ("Option B", SIDES, 1),
    ("** (B) **", SIDES, 1),
    ("The answer is (B)", SIDES, 1),
    ("The answer is (B).", SIDES, 1),
    (r"\text{B}", SIDES, 1),
    ("B, so B", SIDES, 1),
    ("答案是B。", SIDES, 1),
    ("（B）", SIDES, 1),
    ("A或B", SIDES, None),
    ("__B__", SIDES, 1),
    ("A\nbecause it is near", SIDES, 0),
    # two letters: neither the first nor the last
    ("A or B", SIDES, None),
    ("A, B", SIDES, None),
    ("A/B", SIDES, None),
    ("A and B", SIDES, None),
    ("AB or B", SIDES, 1),
    ("(A) or (B)", SIDES, None),
    ("A B", SIDES, None),
    ("not A but B", SIDES, 1),
    ("Neither A nor B", SIDES, None),
    ("A is correct, B is wrong", SIDES, None),
    ("A-B", SIDES, None),
    ("(A)(B)", SIDES, None),
    ("A left, B right", SIDES, None),
    ("A: left\nB: right", SIDES, None),
    ("C or B", SIDES, 1),
    # denied
    ("not (A)", SIDES, None),
    ("The answer is not (A)", SIDES, None),
    ("It is not option A.", SIDES, None),
    ("not: (A)", SIDES, None),
    ("not, (A)", SIDES, None),
    ("It isn't (A).", SIDES, None),
    ("It isn’t B", SIDES, None),
    ("cannot be (B)", SIDES, None),
    ("Anything without B", SIDES, None),
    ("(A) is not it", SIDES, None),
    ("(A) isn't right", SIDES, None),
    ("(B) is wrong", SIDES, None),
    ("not (A), it is left", SIDES, None),
    ("not A but right", SIDES, None),
    ("(A) left is not it", SIDES, None),
    ("It is not the left, (B)", SIDES, 1),
    ("not left", SIDES, None),
    ("definitely not on the left", SIDES, None),
    ("it did not turn left", SIDES, None),
    ("left is wrong", SIDES, None),
    ("It is not true", ("true", "false"), None),
    ("No, (B)", SIDES, 1),
    ("No. B", SIDES, 1),
    ("I cannot see the table, so (B)", SIDES, 1),
    ("It does not move but turns right", SIDES, 1),
    ("B, not visible", SIDES, 1),
    ("(B) because A4 is not on it", SIDES, 1),
    ("knot (A)", SIDES, 0),
    ("neither A", SIDES, None),
    ("It isn't A", SIDES, None),
    ("(A) is incorrect", SIDES, None),
    ("Anything but A", SIDES, None),
    ("anything but the left", SIDES, None),
    ("I'd rule out A.", SIDES, None),
    ("We can rule out both (A)", SIDES, None),
    ("A can be ruled out", SIDES, None),
    ("(A) is excluded", SIDES, None),
    ("the opposite of left", SIDES, None),
    ("rather than A", SIDES, None),
    ("Instead of the option (A)", SIDES, None),
    ("other than left", SIDES, None),
    ("What is other than red is on the left", SIDES, 0),
    ("opposite of it is the left", SIDES, 0),
    ("ruled out: right. So (A)", SIDES, 0),
    ("I rule out a tie: (A)", SIDES, 0),
    ("opposite of it", ("opposite of it", "it"), 0),
    # a letter or a text that is not what it looks like
    ("A\u0338", SIDES, None),
    ("A\u0301", SIDES, None),
    ("A\u20e0", SIDES, None),
    ("A\u20dd", SIDES, None),
    ("A\ufe0f", SIDES, None),
    ("A\u200d", SIDES, None),
    ("A\u200b", SIDES, None),
    ("\u200bA", SIDES, None),
    ("\ufeffA", SIDES, None),
    ("\u202eA", SIDES, None),
    ("(A\u0338)", SIDES, None),
    ("(A)\u0338", SIDES, None),
    ("A.\u0338", SIDES, None),
    ("A \u0338", SIDES, None),
    ("\u2060(A)", SIDES, None),
    ("A\u0489", SIDES, None),
    ("A\u094d", SIDES, None),
    ("The answer is A\u0338.", SIDES, None),
    ("A\u0338 B", SIDES, None),
    ("\u202eit is tfel or left", SIDES, None),
    ("le\u0338ft", SIDES, None),
    ("(B) cafe\u0301", SIDES, 1),
    ("cafe\u0301 (B)", SIDES, 1),
    ("\u2714\ufe0f (B)", SIDES, 1),
    ("the answer is cafe\u0301", ("cafe\u0301", "bar"), 0),
    ("हिन्दी", ("हिन्दी", "தமிழ்"), 0),
    ("(B) தமிழ்", ("हिन्दी", "தமிழ்"), 1),
    ("it is שָׁלוֹם", ("שָׁלוֹם", "x"), 0),
    ("it is می\u200cخواهم", ("می\u200cخواهم", "x"), 0),
    ("it is x\u200by", ("x\u200by", "z"), 0),
    # the "no" of an option is no denial
    ("no", ("yes", "no"), 1),
    ("the answer is no", ("yes", "no"), 1),
    ("No, it is not", ("yes", "no"), 1),
    ("(B) No", ("yes", "no"), 1),
    ("No (B)", ("yes", "no"), 1),
    ("(A) it did not turn", ("it did not turn", "left"), 0),
    ("it did not turn (A)", ("it did not turn", "left"), 0),
    ("I think it did not turn", ("it did not turn", "left"), 0),
    ("it isn't moving (A)", ("it isn't moving", "left"), 0),
    ("none of the above (B)", ("left", "none of the above"), 1),
    ("not visible", ("visible", "not visible"), 1),
    ("No.", ("yes", "no"), 1),
    ("It is none of the above.", ("left", "right", "none of the above"), 2),
    # letters that are words or parts of words
    ("A chair is closer", ("table", "stool"), None),
    ("A chair is closer", THINGS, 1),
    ("A TV is closer", ("tv", "pc"), 0),
    ("A TV is closer", ("pc", "tv"), 1),
    ("A **small** thing", SIDES, None),
    ("a b", SIDES, None),
    ("(B) A chair is closer", ("x", "y"), 1),
    ("Because it is near", SIDES, None),
    ("A4 paper", SIDES, None),
    ("I cannot tell", SIDES, None),
    ("I cannot tell", tuple("123456789"), None),
    ("I'm sure it is B", tuple("123456789"), 1),
    ("B-52", SIDES, None),
    ("B's", SIDES, None),
    ("The chair is closer than a table", THINGS, 1),
    # the verbatim text
    ("left", SIDES, 0),
    ("Left", SIDES, 0),
    ("left.", SIDES, 0),
    ("\nleft\n", SIDES, 0),
    ("RIGHT!", SIDES, 1),
    ("Vitamin C", ("Vitamin A", "Vitamin B", "Vitamin D", "Vitamin C"), 3),
    ("B is closer", ("B is closer", "A is closer"), 0),
    ("red", ("red", "dark red"), 0),
    ("dark red", ("red", "dark red"), 1),
    ("3", ("3", "3", "2"), None),
    ("Straße", ("STRASSE", "Weg"), 0),
    ("√3", ("3", "√3"), 1),
    ("?", ("?", "!"), 0),
    ("12%", ("12", "12%"), 1),
    ("C", ("A", "C"), 1),
    ("B", ("B", "A"), 1),
    ("(B)", ("B", "A"), 1),
    # the text in whole words
    ("it is left", SIDES, 0),
    ("the chair on the right", SIDES, 1),
    ("**left**", SIDES, 0),
    ("'left'", SIDES, 0),
    ("leftover", SIDES, None),
    ("lef", SIDES, None),
    ("left or right", SIDES, None),
    ("not left but right", SIDES, 1),
    ("It is left, not right", SIDES, 0),
    ("top-left", SIDES, None),
    ("light-blue", ("light blue", "green"), 0),
    ("a light blue one", ("light blue", "green"), 0),
    ("it is dark red", ("red", "dark red"), 1),
    ("desert-rose", ("rose", "tulip"), None),
    ("rose, tulip, daisy", ("rose", "tulip", "daisy"), None),
    ("right's", SIDES, None),
    # numbers
    ("There are 3.", COUNTS, 0),
    ("three", COUNTS, 0),
    ("There are Two organs", COUNTS, 1),
    ("zero", COUNTS, 3),
    ("11", COUNTS, None),
    ("10", COUNTS, None),
    ("there are 10", ("10", "1", "0"), 0),
    ("13 of them", COUNTS, None),
    ("3.0", COUNTS, 0),
    ("it is 3.00", COUNTS, 0),
    ("it is 3.5", COUNTS, None),
    ("it is 0.5", ("5", "0"), None),
    ("it is .5", ("5", "0"), None),
    ("it is .5", ("5", "0.5"), 1),
    ("it is 1,234", ("1234", "234"), 0),
    ("it is 1234", ("1,234", "234"), 0),
    ("it is 1 234", ("234", "5"), None),
    ("it is -5", ("5", "6"), None),
    ("it is -5", ("5", "-5"), 1),
    ("it is 5", ("-5", "6"), None),
    ("5-6", ("5", "8"), None),
    ("3-5", ("3", "5"), None),
    ("737-200", ("737", "200"), None),
    ("about 12%", ("12", "13"), None),
    ("about 12 %", ("12%", "13%"), 0),
    ("1/2", ("1", "3"), None),
    ("10:30", ("10", "31"), None),
    ("twenty one", ("20", "1"), None),
    ("twenty-one", ("1", "3"), None),
    ("1.2.3", ("1", "9"), None),
    ("1,2,3 or 4", ("1", "2", "3", "4"), None),
    ("3, 2, 1, 0", COUNTS, None),
    ("3 2 1 0", COUNTS, None),
    ("3210", COUNTS, None),
    ("5cm", ("5", "6"), None),
    ("5 cm", ("5", "6"), 0),
    ("11米", ("1", "11"), 1),
    ("145°", ("145", "35"), 0),
    ("145", ("145°", "35°"), 0),
    ("it is √3", ("3", "4"), None),
    (r"\frac{1}{2}", ("1", "4"), None),
    ("it is 5²", ("5", "4"), None),
    ("2π", ("2", "4"), None),
    ("it is 5", ("<5", "8"), None),
    ("3.0", ("30", "0"), None),
    ("007", ("7", "70"), 0),
    # bounded, or one of several
    ("3 or 4", ("3", "5"), None),
    ("4 or 3", ("3", "5"), None),
    ("three or four", ("3", "5"), None),
    ("3 to 4", ("3", "5"), None),
    ("3 and 4", ("3", "5"), None),
    ("3, 4", ("3", "5"), None),
    ("more than 3", ("3", "5"), None),
    ("at least 3", ("3", "5"), None),
    ("at most three", ("3", "5"), None),
    ("over 3", ("3", "5"), None),
    ("up to 3", ("3", "5"), None),
    ("between 3 and 9", ("3", "5"), None),
    ("There are 3 or more", ("3", "5"), None),
    ("3+", ("3", "5"), None),
    ("three (3)", ("3", "5"), 0),
    ("The number is equal to 3", ("3", "5"), 0),
    ("It adds up to 3", ("3", "5"), 0),
    ("there are exactly 3 of them", ("3", "5"), 0),
    ("2 cats and 1 dog, so 3", ("3", "5"), 0),
    ("3 and a half", ("3", "5"), 0),
    ("more than 3", ("more than 3", "3"), 0),
    ("It is more than 3.", ("more than 3", "5"), 0),
    # nothing to read
    ("", SIDES, None),
    (" ", SIDES, None),
    (".", SIDES, None),
    ("I cannot tell.", SIDES, None),
    ("\u200b", SIDES, None),
    ("()", SIDES, None),
    ("B", (), None),
    ("left", ("", "left"), 1),
    ("", ("", "left"), None),
]


@pytest.mark.parametrize(("candidate", "choices", "expected"), CASES)
def test_case(candidate, choices, expected):
    assert match_choice(candidate, choices) == expected


words = st.sampled_from(
    [
        "ball",
        "cube",
        "ring",
        "star",
        "lamp",
        "red box",
        "blue box",
        "tall vase",
        "Sofa",
        "Desk lamp oil",
    ]
)
options = (
    st.lists(words, min_size=2, max_size=8, unique=True)
    .filter(
        lambda chosen: (
            not any(a != b and set(a.split()) <= set(b.split()) for a in chosen for b in chosen)
        )
    )
    .map(tuple)
)
letter_forms = st.sampled_from(
    [
        "{}",
        "({})",
        "{}.",
        "{})",
        " ({}) ",
        "The answer is {}.",
        "Option {}",
        "({}) {{text}}",
        "{}. {{text}}",
        "{}: {{text}}",
        "**{}**",
        "\n{}\n",
    ]
)
text_forms = st.sampled_from(
    ["{}", "{}.", "\n{}\n", "It is the {}", "the {}, I think", "**{}**", "'{}'", "a {}!", "A {}."]
)
recase = st.sampled_from([str, str.lower, str.upper, str.title])


@given(options, st.data())
def test_the_letter_and_the_text_of_every_option_are_recognised(choices, data):
    index = data.draw(st.integers(0, len(choices) - 1))
    by_letter = (
        data.draw(letter_forms).format(string.ascii_uppercase[index]).format(text=choices[index])
    )
    by_text = data.draw(text_forms).format(data.draw(recase)(choices[index]))
    assert match_choice(by_letter, choices) == index
    assert match_choice(by_text, choices) == index


refusals = st.sampled_from(
    [
        "not {}",
        "The answer is not {}.",
        "It isn't {}",
        "not the {}, I think",
        "it cannot be {}",
        "never {}",
        "neither: {}",
        "anything but not ... {}",
        "no {}",
        "{} is not it",
        "{} isn’t right",
        "{} is wrong",
        "{} can be ruled out",
        "anything but {}",
        "I rule out {}",
        "the opposite of {}",
        "instead of the {}",
    ]
)


@given(
    options,
    refusals,
    st.sampled_from(["{letter}", "({letter})", "{text}", "({letter}) {text}"]),
    st.data(),
)
def test_an_option_that_is_denied_is_not_named(choices, refusal, form, data):
    index = data.draw(st.integers(0, len(choices) - 1))
    named = form.format(letter=string.ascii_uppercase[index], text=choices[index])
    assert match_choice(refusal.format(named), choices) is None
    # what an earlier sentence denied does not take the answer away
    before = data.draw(
        st.sampled_from(
            ["It is not clear. ", "I cannot see it, but ", "Not sure, ", "No, ", "No. "]
        )
    )
    assert match_choice(before + named, choices) == index


lists = st.sampled_from(
    [
        "{letter}",
        "({letter})",
        "{letter}.",
        "{text}",
        "({letter}) {text}",
        "{letter}. {text}",
        "{letter} {text}",
        "{letter}: {text}",
        "{letter}) {text}",
        "{letter}-{text}",
        "{text} ({letter})",
    ]
)
separators = st.sampled_from(
    [" ", ", ", "; ", " or ", " and ", "\n", "/", " / ", ",", ", or ", " vs ", " | ", "-"]
)


@given(
    options,
    lists,
    separators,
    st.sampled_from(["", "The answer is ", "Either ", "both "]),
    st.permutations(range(8)),
)
def test_a_list_of_all_options_is_no_answer(choices, form, separator, before, order):
    entries = [
        form.format(letter=string.ascii_uppercase[i], text=choices[i])
        for i in order
        if i < len(choices)
    ]
    assert match_choice(before + separator.join(entries), choices) is None


@given(st.integers(0, 60), st.permutations(range(6)))
def test_a_list_of_numbers_is_no_answer(start, order):
    choices = tuple(str(start + i) for i in order)
    for separator in (", ", " ", ",", "; ", " or ", "/", "-", "\n"):
        assert match_choice(separator.join(choices), choices) is None, separator


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_number_is_not_another_number(said, option):
    assume(said != option)
    for form in ("{}", "There are {} of them.", "{}.0", "{} cm", "exactly {}"):
        assert match_choice(form.format(said), (str(option), "none of these")) is None


hostile = st.text() | st.lists(
    st.sampled_from(
        [
            "A",
            "B",
            "a",
            "left",
            "right",
            " ",
            "-",
            ".",
            ",",
            "3",
            "(",
            ")",
            "'",
            "I",
            "\n",
            "\u0301",
            "²",
            "İ",
            "٣",
            "한",
            "or",
            "%",
            "√",
        ]
    ),
    max_size=20,
).map("".join)


@given(hostile, st.lists(hostile, max_size=30).map(tuple))
def test_any_text_has_a_result_in_range(candidate, choices):
    index = match_choice(candidate, choices)
    assert index is None or 0 <= index < len(choices)


SIZE = 300_000
LONG = {  # of a size at which quadratic work takes hours; only a letter or the text of an option may be so long
    "articles": ("A thing " * (SIZE // 8), None),
    "letters": ("A, " * (SIZE // 3), None),
    "digits": ("1" * SIZE, None),
    "points": ("1." * (SIZE // 2), None),
    "thousands": ("1" + ",111" * (SIZE // 4) + "x", None),
    "hyphens": ("1-" * (SIZE // 2), None),
    "numbers": ("two " * (SIZE // 4), None),
    "marks": ("\u0301" * SIZE, None),
    "denials": ("not " * (SIZE // 4), None),
    "numbers of an option": ("2 " * (SIZE // 2), None),
    "refused": ("rule out " * (SIZE // 9), None),
    "closings": ("A" + ")" * SIZE + " A", None),
    "unseen": ("\u200b" * SIZE, None),
    "denied": ("A is, not " * (SIZE // 10), None),
    "clauses": ("not so, " * (SIZE // 8) + "B", None),
    "quotes": ("A " + "*" * SIZE, None),
    "blanks": ("A" + " " * SIZE + ".", None),
    "text": ("the left " * (SIZE // 9), None),
    "nearly": ("the left of " * (SIZE // 12), None),
    "punctuation": ("B" + "." * SIZE, 1),
}


@pytest.mark.parametrize("name", LONG)
def test_work_is_proportional_to_the_length(name):
    candidate, expected = LONG[name]
    choices = ("the left of it", "right") if name == "nearly" else ("2", "the left", "right")
    assert match_choice(candidate, choices) == expected


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        ("(B)", SIDES, 1),
        ("B", SIDES, 1),
        (" (b) ", SIDES, 1),
        ("B.", SIDES, 1),
        ("left", SIDES, 0),
        ("Left.", SIDES, 0),
        ("(F)", SIX, 5),
        ("4", SIX, 0),
        ("a", ("a", "the"), 0),
        ("(B)", ("B", "A"), 1),
        ("A", ("A", "B"), 0),
        ("a", SIDES, 0),
        ("(B) right", SIDES, 1),
        ("b. Right", SIDES, 1),
        ("<answer>A</answer>", SIDES, 0),
        ("<answer> right </answer>", SIDES, 1),
        ("A", LETTERED, 0),
        ("cube", LETTERED, 1),
        ("(B) cube", LETTERED, 1),
        ("Cu", COPPER, 1),
        ("A", ("Ball", "ball", "cube"), 0),
    ],
)
def test_gold_is_a_letter_or_the_text_of_an_option(answer, choices, index):
    assert gold_index(example(answer, choices)) == index


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        ("(C)", SIDES, r"'\(C\)' of example '7' names no option of \(A\) left, \(B\) right"),
        ("up", SIDES, "names no option"),
        ("", SIDES, "names no option"),
        ("it is left", SIDES, "names no option"),
        ("(A) right", SIDES, "names no option"),
        ("(A) cube", LETTERED, "names no option"),
        ("CU", COPPER, "names 2 options"),
        ("B", ("B", "A"), "names 2 options"),
        ("3", ("3", "3"), "names 2 options"),
        ("left", None, "'7' has no choices"),
        ("left", (), "'7' has no choices"),
    ],
)
def test_impossible_gold_names_the_example(answer, choices, message):
    with pytest.raises(UserError, match=message):
        gold_index(example(answer, choices))
    with pytest.raises(ValueError, match="'7'"):
        choice(completion("B"), example(answer, choices))


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<think>x</think><answer>(B)</answer>", 1.0),
        ("<think>x</think><answer>chair</answer>", 1.0),
        ("The answer is (B)", 1.0),
        ("<think>x</think><answer>(A)</answer>", 0.0),
        ("(B) <answer>", 0.0),
        ("<think>(B)</think><answer></answer>", 0.0),
        ("<think>it is (B)</think>", 0.0),
        ("<think>it is (B)", 0.0),
        ("", 0.0),
        ("<answer>A or B</answer>", 0.0),
        ("<answer>A</answer><answer>B</answer>", 1.0),
        ("The chair is closer than a table", 1.0),
        ("The answer is not (B)", 0.0),
        ("<answer>not a chair</answer>", 0.0),
    ],
)
def test_the_reward(response, score):
    assert choice(completion(response), example("(B)", THINGS)) == score


def test_the_reward_reads_the_prefilled_part_too():
    assert choice(completion("I see (B)", prefill="<think>"), example("(B)", THINGS)) == 0.0
    assert choice(completion("I see</think>(B)", prefill="<think>"), example("(B)", THINGS)) == 1.0


@given(st.text(), st.sampled_from(["", "A", "table", "it is unclear", "<answer></answer>"]))
def test_text_inside_the_reasoning_never_scores(reasoning, rest):
    for inside in (
        reasoning,
        f"{reasoning}<answer>(B)</answer>",
        rf"\boxed{{B}}{reasoning}",
        "The answer is (B)",
    ):
        response = f"<think>{inside.replace('</think>', '')}</think>{rest}"
        assert choice(completion(response), example("(B)", THINGS)) == 0.0
