"""One table of hostile answers, run against every registered reward: none is fooled, none breaks, none takes long.

Each reward is given by a `Subject`: an example, a right and a wrong answer. The hostile answers are made of these, so that
a new reward needs one more subject and no new table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.rewards import BUILTIN
from gpg_vl.rewards.scoring import call, load
from gpg_vl.types import Completion, Example

BOX = {"coordinates": "rel1000"}
GOLD_BOX = "(100,200),(300,400)"
AROUND = ("glued to a word",)


@dataclass(frozen=True)
class Subject:
    """A reward with a question, its right answer, a wrong one, and all the answers that one might list."""

    answer: str
    right: str
    wrong: str
    choices: tuple[str, ...] | None = None
    meta: dict = field(default_factory=dict)
    partial: bool = False
    """Nearly right is worth something here: a hostile answer must stay below full marks, not at 0."""

    harmless: tuple[str, ...] = ()
    """Hostile answers that are the right answer to this reward, as a box is a box whatever stands around it."""

    reward: str = ""
    """The name of the reward, if its subject in the table has another."""

    listed: tuple[str, ...] = ()

    @property
    def listing(self) -> tuple[str, ...]:
        return self.listed or self.choices or (self.right, self.wrong)

    def example(self) -> Example:
        return Example(id="7", prompt="?", answer=self.answer, choices=self.choices, meta=self.meta)


SUBJECTS = {
    "choice": Subject("(B)", "left", "right", choices=("right", "left", "the left side of it")),
    "choice by letter": Subject(
        "(B)",
        "B",
        "A",
        choices=("right", "left", "the left side of it", "behind it"),
        harmless=("first character", "last character"),
        reward="choice",
        listed=("A", "B", "C", "D"),
    ),
    "classification": Subject(
        "rose", "rose", "tulip", choices=("rose", "desert-rose", "tulip", "daisy")
    ),
    "counting": Subject("14", "14", "3"),
    "geometry": Subject("145°", "145", "40"),
    "math": Subject(r"\frac{27}{4}", r"\frac{27}{4}", "3"),
    "grounding": Subject(GOLD_BOX, GOLD_BOX, "(600,600),(700,700)", meta=BOX, harmless=AROUND),
    "grounding_hit": Subject(GOLD_BOX, GOLD_BOX, "(600,600),(700,700)", meta=BOX, harmless=AROUND),
    "grounding_giou": Subject(
        GOLD_BOX, GOLD_BOX, "(600,600),(700,700)", meta=BOX, harmless=AROUND, partial=True
    ),
    "detection": Subject(
        "[[1,2,30,40]]",
        "[[1,2,30,40]]",
        "[[500,500,600,600]]",
        meta=BOX,
        harmless=AROUND,
        partial=True,
    ),
    "vqa": Subject("red car", "red car", "blue", meta={"answers": ["red car"] * 10}),
    "vqa_relaxed": Subject("14", "14", "30"),
    "vqa_anls": Subject("grand total", "grand total", "net", partial=True),
}
WITHOUT_AN_ANSWER = {
    "format": Subject("B", "<think>x</think><answer>B</answer>", "B"),
    "length": Subject("", "", "", meta={"length_limit": 100, "length_cache": 20}),
    "verbatim": Subject("B", "B", "A"),
}
"""Rewards that look for no answer in the response: of the layout, of the length, and of the whole text."""

FULLWIDTH = str.maketrans(
    "0123456789abcdefghijklmnopqrstuvwxyzB",
    "０１２３４５６７８９ａｂｃｄｅｆｇｈｉｊｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚＢ",
)
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
MATHEMATICAL = str.maketrans("0123456789", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗")
LOOKALIKE = str.maketrans("aceopxlit0145B", "асеорхӏіτОӀ４ƼВ")


def answered(text: str) -> str:
    return f"<think>hm</think><answer>{text}</answer>"


WRONG: dict[str, Callable[[Subject], str]] = {
    # nothing, or nothing that answers
    "empty": lambda s: "",
    "blank": lambda s: " \n\t ",
    "empty block": lambda s: answered(""),
    "blank block": lambda s: answered(" \n "),
    "article": lambda s: answered("a"),
    "capital article": lambda s: "A thing is there",
    "definite article": lambda s: answered("the"),
    "punctuation": lambda s: answered("."),
    "only tags": lambda s: "<think></think><answer></answer>",
    "shy": lambda s: answered("I cannot tell"),
    "wrong": lambda s: answered(s.wrong),
    # the right answer where it does not count
    "in the reasoning": lambda s: f"<think>it is {s.right}</think>",
    "in the reasoning, then wrong": lambda s: f"<think>{s.right}</think><answer>{s.wrong}</answer>",
    "a block in the reasoning": lambda s: (
        f"<think><answer>{s.right}</answer></think><answer></answer>"
    ),
    "a box in the reasoning": lambda s: (
        rf"<think>\boxed{{{s.right}}}</think><answer>{s.wrong}</answer>"
    ),
    "reasoning not closed": lambda s: f"<think>it is {s.right}",
    "in an analysis": lambda s: f"<analysis>The answer is {s.right}</analysis>",
    "an analysis not closed": lambda s: f"<analysis>it is {s.right}",
    "in a thinking block": lambda s: f"<thinking>{s.right}</thinking>",
    "in reasoning": lambda s: rf"<reasoning>\boxed{{{s.right}}}</reasoning>",
    "in upper-case reasoning": lambda s: f"<THINK>the answer is {s.right}</THINK>",
    "closed twice": lambda s: (
        f"<think>x</think><answer>{s.right}</answer></think>{answered(s.wrong)}"
    ),
    "after the block": lambda s: f"{answered(s.wrong)} {s.right}",
    "before the block": lambda s: f"{s.right} {answered(s.wrong)}",
    "beside an empty block": lambda s: f"{s.right} <answer></answer> {s.right}",
    "block not closed": lambda s: f"<think>x</think><answer>{s.right}",
    "block closed wrongly": lambda s: f"<think>x</think><answer>{s.right}<answer>",
    "two blocks, the last wrong": lambda s: f"<answer>{s.right}</answer><answer>{s.wrong}</answer>",
    "two blocks, the last empty": lambda s: f"<answer>{s.right}</answer><answer></answer>",
    # several answers in one
    "or": lambda s: answered(f"{s.right} or {s.wrong}"),
    "or, turned": lambda s: answered(f"{s.wrong} or {s.right}"),
    "comma": lambda s: answered(", ".join(s.listing)),
    "lines": lambda s: answered("\n".join(s.listing)),
    "blanks": lambda s: answered(" ".join(s.listing)),
    "semicolons": lambda s: answered(";".join(reversed(s.listing))),
    "letters": lambda s: answered("A B C D"),
    "options": lambda s: answered("(A) (B) (C) (D)"),
    "denied": lambda s: answered(f"not {s.right} but {s.wrong}"),
    "denied alone": lambda s: answered(f"not {s.right}"),
    "denied in a sentence": lambda s: f"The answer is not {s.right}.",
    "both boxed": lambda s: answered(rf"\boxed{{{s.right}}} \boxed{{{s.wrong}}}"),
    "equals": lambda s: answered(f"{s.wrong} = {s.right}"),
    # a part of the answer, or the answer as a part
    "beginning": lambda s: answered(s.right[: len(s.right) // 2]),
    "first character": lambda s: answered(s.right[0]),
    "last character": lambda s: answered(s.right[-1]),
    "glued to a word": lambda s: answered(f"x{s.right}x"),
    "glued to a digit": lambda s: answered(f"9{s.right}9"),
    "glued by a hyphen": lambda s: answered(f"{s.right}-{s.wrong}"),
    # what looks like the answer
    "full-width": lambda s: answered(s.right.translate(FULLWIDTH)),
    "arabic digits": lambda s: answered(s.right.translate(ARABIC).translate(FULLWIDTH)),
    "mathematical digits": lambda s: answered(s.right.translate(MATHEMATICAL).translate(FULLWIDTH)),
    "look-alikes": lambda s: answered(s.right.translate(LOOKALIKE)),
    "zero width": lambda s: answered("".join(c + "\u200b" for c in s.right)),
    "joiners": lambda s: answered("".join(c + "\u200d" for c in s.right)),
    "soft hyphens": lambda s: answered("".join(c + "\u00ad" for c in s.right)),
    "accents": lambda s: answered("".join(c + "\u0301" for c in s.right)),
    "accent at the end": lambda s: answered(s.right + "\u0338"),
    "enclosed": lambda s: answered("".join(c + "\u20e3" for c in s.right)),
    "turned round": lambda s: answered("\u202e" + s.right[::-1]),
    "struck out": lambda s: answered("".join(c + "\u0338" for c in s.right)),
    "prohibited": lambda s: answered(s.right + "\u20e0"),
    "struck out in a sentence": lambda s: f"The answer is {s.right}\u0338.",
    "behind what is not seen": lambda s: answered("\u200b" + s.right),
    "isolated": lambda s: answered("\u2067" + s.right[::-1] + "\u2069"),
    "full-width tags": lambda s: f"＜answer＞{s.right}＜/answer＞<answer></answer>",
    "upper-case tags": lambda s: f"<ANSWER>{s.right}</ANSWER><answer>{s.wrong}</answer>",
    "null": lambda s: answered("".join(c + "\0" for c in s.right)),
}

N = 1_000_000
FLOODS: dict[str, str] = {  # as many characters as make quadratic work take hours
    "letters": "a" * N,
    "capitals": "A " * (N // 2),
    "digits": "1" * N,
    "blanks": "x" + " " * N + "y",
    "points": "1." * (N // 2),
    "commas": "1," * (N // 2),
    "thousands": "1" + ",111" * (N // 4),
    "parentheses": "(" * N,
    "pairs": "(1,2)," * (N // 6),
    "brackets": "[" * N,
    "lists": "[1,2,3,4]," * (N // 10),
    "objects": "[" + '{"bbox_2d":[1,2,3,4]},' * (N // 22) + "]",
    "nested objects": '{"a":' * (N // 5),
    "half a box": "(1,2" + " " * N + "),(3,4)",
    "gap in a box": "(1,2)" + " " * N + "(3,4)",
    "braces": "{" * (N // 2) + "}" * (N // 2),
    "nested boxes": r"\boxed{" * 10_000 + "1" + "}" * 10_000,
    "nested fractions": r"\frac{1}{" * 10_000 + "1" + "}" * 10_000,
    "nested roots": r"\sqrt{" * 10_000 + "1" + "}" * 10_000,
    "dollars": "$" * N,
    "formulas": "$1$ " * (N // 4),
    "brackets of formulas": r"\(" * (N // 2),
    "powers": "9^" * (N // 2),
    "root signs": "√" * N,
    "equals": "1=" * (N // 2),
    "commands": r"\frac" * (N // 5),
    "factorials": "9" + "!" * N,
    "percent": "%" * N,
    "phrases": "the answer is " * (N // 14),
    "opened blocks": "<answer>" * (N // 8),
    "closed blocks": "<answer>x</answer>" * (N // 18),
    "thoughts": "<think>" * (N // 7),
    "closed thoughts": "</think>" * (N // 8),
    "analyses": "<analysis>" * (N // 10),
    "closed analyses": "</Reasoning>" * (N // 12),
    "fences": "```json" * (N // 7),
    "accents": "e" + "\u0301" * N,
    "invisible": "\u200b" * N,
    "hyphens": "1-" * (N // 2),
    "number words": "two " * (N // 4),
    "denials": "not " * (N // 4),
    "names": "rose " * (N // 5),
    "quotes": "'" * N,
    "backslashes": "\\" * N,
    "surrogate range": "\U0010ffff" * N,
    "underscores": "_" * N,
    "stars": "*" * N,
}
SMALL_BOMBS = [  # short, but for ever to compute
    "9^{9^{9}}",
    "9^{9^{9^{9}}}",
    "9^9^9^9",
    "((9^{99})^{99})^{99}",
    "10^{10^{10}}",
    "9!!!!!!",
    "99999999!",
    r"\binom{99999999}{4999999}",
    r"\sum_{i=1}^{10^{9}} i",
    r"\prod_{i=1}^{10^{9}} i",
    r"\int_0^1 x^{x^x} dx",
    r"\lim_{x \to 0} \frac{\sin x}{x}",
    r"(x+y+z+a+b+c)^{200}",
    "1e999999999",
    "0.1e-999999999",
    "9" * 5000,
    "1/" * 100 + "1",
    "1/0",
    r"\frac{1}{0}",
    r"\sqrt{-1}",
    r"\infty",
    "nan",
    "inf",
    "NaN",
    "-0",
    r"\frac{" * 15 + "1" + "}{2}" * 15,
    r"\sin(" * 15 + "x" + ")" * 15,
    r"\sqrt[999999]{2}",
    "x" * 390,
    "((((((((((((((((((((x",
    "__import__('os').system('true')",
    r"\input{/etc/passwd}",
]


def score(name: str, response: str) -> float:
    subject = {**SUBJECTS, **WITHOUT_AN_ANSWER}[name]
    completion = Completion(token_ids=(), logprobs=(), text=response, finish_reason="stop")
    (value,) = call(
        load(subject.reward or name), completion, subject.example()
    )  # raises if it is out of the declared range
    return value


def test_every_reward_is_in_the_table():
    assert {subject.reward or name for name, subject in SUBJECTS.items()} | set(
        WITHOUT_AN_ANSWER
    ) == set(BUILTIN)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_right_answer_gets_full_marks_and_the_wrong_one_does_not(name):
    subject = SUBJECTS[name]
    assert score(name, answered(subject.right)) == 1.0
    assert score(name, answered(subject.answer)) == 1.0
    assert score(name, answered(subject.wrong)) < (0.5 if subject.partial else 1e-9)


@pytest.mark.parametrize("hostile", WRONG)
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_reward_is_fooled(name, hostile):
    subject = SUBJECTS[name]
    value = score(name, WRONG[hostile](subject))
    if hostile in subject.harmless:
        assert value == 1.0
    else:
        assert value < 1.0 if subject.partial else value == 0.0


@pytest.mark.parametrize("name", BUILTIN)
def test_a_million_characters_cost_no_more_than_reading_them(name):
    for flood in FLOODS.values():
        bare = (
            "answer" in flood or "think" in flood or "analysis" in flood or "box" in flood
        )  # what looks for these meets them untagged too
        for response in (answered(flood), flood) if bare else (answered(flood),):
            value = score(name, response)
            assert name in WITHOUT_AN_ANSWER or value < 1.0


@pytest.mark.parametrize("name", BUILTIN)
def test_what_would_compute_for_ever_is_not_computed(name):
    for bomb in SMALL_BOMBS:
        for response in (
            answered(bomb),
            answered(f"${bomb}$"),
            rf"\boxed{{{bomb}}}",
            f"x = {bomb}",
        ):
            value = score(name, response)
            assert name in WITHOUT_AN_ANSWER or value < 1.0, bomb


PIECES = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "<THINKING>",
            "</analysis>",
            "<answer>",
            "</answer>",
            r"\boxed{",
            "}",
            "{",
            "$",
            r"\(",
            r"\)",
            "(",
            ")",
            "[",
            "]",
        ),
        *(
            "1",
            "4",
            "145",
            "14",
            ".",
            ",",
            "-",
            "/",
            "^",
            "=",
            "%",
            "°",
            "√",
            "π",
            r"\frac",
            r"\sqrt",
            "²",
            "cm",
            "x",
        ),
        *(
            "rose",
            "left",
            "red",
            "not",
            "or",
            "a",
            "A",
            "the",
            " ",
            "\n",
            '"bbox_2d":',
            "'Confidence':",
            "No Objects",
        ),
        *("(1,2),(3,4)", "\u200b", "\u0301", "\u202e", "１", "½", "①", "٤"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=25).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_any_text_has_a_value_in_range_and_always_the_same(text):
    for name in BUILTIN:
        assert score(name, text) == score(name, text)


@settings(deadline=None)
@given(TEXTS)
def test_an_answer_in_the_reasoning_changes_nothing(text):
    hidden = re.sub("</(think|thinking|analysis|reasoning)>", " ", text, flags=re.IGNORECASE)
    for name, subject in SUBJECTS.items():
        assert score(name, f"<think>{hidden}</think><answer>{subject.wrong}</answer>") == score(
            name, answered(subject.wrong)
        )
