"""Answer extraction: every situation that fooled a published extractor has a row here."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.extract import Extracted, extract_answer, gold_text, last_boxed
from gpg_vl.types import Completion


def found(candidate, step, **flags):
    return Extracted(candidate=candidate, step=step, **flags)


REASONING = ("think", "thinking", "analysis", "reasoning")
CLOSED = re.compile("</(think|thinking|analysis|reasoning)>", re.IGNORECASE | re.ASCII)

CASES = {
    # step 1: the reasoning
    "plain": ("<think>hm</think><answer>(B)</answer>", found("(B)", "tag")),
    "answer inside the reasoning": (
        "<think><answer>A</answer></think><answer>B</answer>",
        found("B", "tag"),
    ),
    "answer only inside the reasoning": ("<think><answer>A</answer></think>", found(None, "none")),
    "phrase only inside the reasoning": ("<think>the answer is A</think>\n", found(None, "none")),
    "several reasoning blocks": ("<think>a</think>A<think>b</think>B", found("B", "text")),
    "closing tag only, the prompt had the other": ("so it is A</think>(B)", found("(B)", "text")),
    "unclosed reasoning": ("<think>the answer is (B)", found(None, "none", unclosed_think=True)),
    "unclosed reasoning, boxed": (r"<think>so \boxed{B}", found(None, "none", unclosed_think=True)),
    "unclosed reasoning, answered": (
        "<think>so <answer>B</answer>",
        found("B", "tag", unclosed_think=True),
    ),
    "unclosed reasoning, answer cut off": (
        "<think>so <answer>B",
        found(None, "tag", unclosed_think=True, truncated=True),
    ),
    "reasoning reopened": (
        "<think>a</think>The answer is B <think>or",
        found(None, "none", unclosed_think=True),
    ),
    "answer before the reasoning ends": ("<answer>A</answer></think>", found(None, "none")),
    "closed under another name": ("<thinking>A</think>B", found("B", "text")),
    "opened in two names": ("<analysis><think>A</think>A</analysis>B", found("B", "text")),
    "reopened under another name": (
        "<think>a</think>B <analysis>or",
        found(None, "none", unclosed_think=True),
    ),
    "a name that is none": ("<thoughts>A</thoughts>", found("<thoughts>A</thoughts>", "text")),
    "a name that only looks alike": ("<analy\u017fis>A", found("<analy\u017fis>A", "text")),
    # step 2: the answer block
    "several blocks": (
        "<answer>A</answer> no, <answer>B</answer>",
        found("B", "tag", several=True),
    ),
    "multi-line": ("<answer>\nleft\n</answer>", found("left", "tag")),
    "digits touching the tag": (
        "<think>so 145</think><answer>145</answer>",
        found("145", "tag"),
    ),
    "empty": ("<answer></answer> B", found(None, "tag")),
    "blank": ("The answer is B <answer> \n\t</answer>", found(None, "tag")),
    "empty last block": (
        "<answer>A</answer><answer></answer>",
        found(None, "tag", several=True),
    ),
    "cut off": ("</think><answer>(B)", found(None, "tag", truncated=True)),
    "cut off after the phrase": (
        "The answer is B. <answer>B",
        found(None, "tag", truncated=True),
    ),
    "complete, then cut off": ("<answer>A</answer><answer>B", found("A", "tag", truncated=True)),
    "opening tag inside a block": ("<answer>A<answer>B</answer>", found("A<answer>B", "tag")),
    "closing tag only": ("(B)</answer>", found("(B)</answer>", "text")),
    "the latest of block, box and phrase": (
        r"<answer>A</answer> \boxed{B} The answer is C",
        found("C", "phrase"),
    ),
    "tags in capitals": ("<ANSWER>A</ANSWER>", found("A", "tag")),
    # step 3: the box
    "boxed": (r"so $\boxed{5}$.", found("5", "boxed")),
    "nested braces": (r"\boxed{\frac{\sqrt{3}}{2}}", found(r"\frac{\sqrt{3}}{2}", "boxed")),
    "last box": (r"\boxed{1}, then \boxed{2}", found("2", "boxed")),
    "joined boxes": (r"\boxed{1} and \boxed{2}", found("1 and 2", "boxed")),
    "last balanced box": (r"\boxed{1} and \boxed{2", found("1", "boxed")),
    "box in a box": (r"\boxed{1 \boxed{2} 3}", found("2", "boxed")),
    "escaped braces": (r"\boxed{\{6,-6\}}", found(r"\{6,-6\}", "boxed")),
    "one escaped brace": (r"\boxed{a\}b}", found(r"a\}b", "boxed")),
    "line break before the closing brace": (r"\boxed{a\\}", found(r"a\\", "boxed")),
    "doubled backslash": (r"\\boxed{5}", found("5", "boxed")),
    "stray closing brace": (r"} \boxed{5}", found("5", "boxed")),
    "no braces": (r"so \boxed 5", found("5", "boxed")),
    "no braces, in mathematics": (r"so $\boxed 5$.", found("5", "boxed")),
    "no braces, full stop": (r"so \boxed B.", found("B", "boxed")),
    "blank before the brace": (r"\boxed {5}", found("5", "boxed")),
    "bare and braced": (r"\boxed \boxed{5}", found("5", "boxed")),
    "empty box falls through": (r"\boxed{} The answer is B", found("B", "phrase")),
    "another command": (r"\boxedtext{A} The answer is B", found("B", "phrase")),
    "box before phrase": (r"The answer is A. \boxed{B}", found("B", "boxed")),
    # step 4: the phrase
    "answer is": ("I look. The answer is (B)", found("(B)", "phrase")),
    "answer colon": ("FINAL ANSWER: left", found("left", "phrase")),
    "answer is colon": ("The answer is: b", found("b", "phrase")),
    "markdown": ("**Answer:** B", found("B", "phrase")),
    "last phrase": ("The answer is A. Wait, the answer is B.", found("B.", "phrase")),
    "up to the end of the line": ("The answer is B\nbecause A is far", found("B", "phrase")),
    "carriage return": ("The answer is B\r\nbecause", found("B", "phrase")),
    "on the next line": ("Answer:\n\nB\nbecause", found("B", "phrase")),
    "not the phrase": ("the answer isn't known", found("the answer isn't known", "text")),
    # step 5: the text
    "text": ("  (B) left \n", found("(B) left", "text")),
    "nothing": ("", found(None, "none")),
    "blanks": (" \n\t ", found(None, "none")),
    "nothing after the reasoning": ("<think>B</think>", found(None, "none")),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    text, expected = CASES[name]
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is A</think><answer>B</answer>", found("B", "tag")),
        ("it is A</think>B", found("B", "text")),
        ("it is A", found(None, "none", unclosed_think=True)),
        ("it is A, the answer is A", found(None, "none", unclosed_think=True)),
        ("no tag <answer>B</answer>", found("B", "tag", unclosed_think=True)),
    ],
)
def test_a_prefilled_think_is_an_opening_tag_with_or_without_the_tag_in_the_text(text, expected):
    completion = Completion(
        token_ids=(), logprobs=(), text=text, finish_reason="stop", prefill="<think>"
    )
    assert extract_answer(text, prefilled_think=True) == expected
    assert extract_answer(completion.response) == expected
    assert extract_answer(completion.response, prefilled_think=True) == expected


@pytest.mark.parametrize("name", REASONING)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_reasoning_is_no_answer_under_any_of_its_names(name, case):
    opening, closing = case(f"<{name}>"), case(f"</{name}>")
    nothing = found(None, "none", unclosed_think=True)
    assert extract_answer(f"{opening}The answer is A{closing}") == found(None, "none")
    assert extract_answer(f"{opening}<answer>A</answer>{closing}") == found(None, "none")
    assert extract_answer(f"{opening}A") == extract_answer(rf"{opening}so \boxed{{A}}") == nothing
    assert extract_answer(f"{opening}A{closing}<answer>B</answer>") == found("B", "tag")
    assert (
        extract_answer(f"{opening}A{closing} B")
        == extract_answer(f"it is A{closing} B")
        == found("B", "text")
    )
    assert extract_answer(f"A{closing}B", prefilled_think=True) == found("B", "text")


pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<Analysis>",
        "</REASONING>",
        "<answer>",
        "</answer>",
        r"\boxed",
        "{",
        "}",
        "\\",
        "answer is ",
        "answer:",
        "A",
        " ",
        "\n",
        "<",
        "5",
    ]
)
texts = st.one_of(st.text(), st.lists(pieces | st.text(max_size=3), max_size=30).map("".join))


def is_within(candidate, text):
    """True if the characters of a candidate stand in the text in this order; marks between them were peeled off."""
    rest = iter(text)
    return all(character in rest for character in candidate if not character.isspace())


@given(texts, st.booleans())
def test_any_text_has_a_result_taken_from_the_text(text, prefilled):
    result = extract_answer(text, prefilled_think=prefilled)
    if result.candidate is not None:
        assert result.candidate
        assert result.candidate == result.candidate.strip()
        assert is_within(result.candidate, text) or '"' in text
        assert result.step != "none"


@given(texts, texts)
def test_nothing_inside_the_reasoning_matters(reasoning, rest):
    rest = CLOSED.sub(" ", rest)
    assert extract_answer(f"<think>{reasoning}</think>{rest}") == extract_answer(rest)


@given(texts)
def test_blocks_are_those_of_the_pattern(text):
    """Where no emphasis is to be peeled off."""
    blocks = re.findall("<answer>(.*?)</answer>", CLOSED.split(text)[-1], re.DOTALL)
    if blocks and not set(text) & set("*_`#"):
        assert extract_answer(text).candidate == (blocks[-1].strip() or None)


balanced = st.recursive(
    st.text("ab 1^", max_size=5),
    lambda inner: st.lists(inner.map("{{{}}}".format) | inner).map("".join),
)


@given(balanced)
def test_a_box_holds_its_balanced_content(content):
    assert last_boxed(rf"{{ so \boxed{{{content}}} }}") == content.strip()


MILLION = 10**6
HOSTILE = {  # of a size at which quadratic work takes hours
    "answer tags never closed": ("<answer>" * (MILLION // 8), None),
    "think tags never closed": ("<think>" * (MILLION // 7), None),
    "reasoning never closed": ("<analysis>" * (MILLION // 10), None),
    "reasoning closed": ("</Thinking>" * (MILLION // 11) + "B", "B"),
    "half a tag": ("</thinking" * (MILLION // 10) + "B", "</thinking" * (MILLION // 10) + "B"),
    "boxes never closed": (r"\boxed{" * (MILLION // 7), r"\boxed{" * (MILLION // 7)),
    "braces never closed": (r"\boxed" + "{" * MILLION, r"\boxed" + "{" * MILLION),
    "braces nested 10,000 deep": (
        r"\boxed{" + "{" * 10_000 + "5" + "}" * 10_000 + "}",
        "{" * 10_000 + "5" + "}" * 10_000,
    ),
    "boxes without braces": (r"\boxed x" * (MILLION // 8), "x"),
    "phrases": ("answer is " * (MILLION // 10) + "B", "B"),
    "answer and blanks": ("answer" + " " * MILLION + "B", "answer" + " " * MILLION + "B"),
    "blanks": (" " * MILLION, None),
    "backslashes": ("\\" * MILLION, "\\" * MILLION),
    "combining marks": ("e" + "\u0301" * MILLION, "e" + "\u0301" * MILLION),
    "blocks": ("<answer>A</answer>" * (MILLION // 18) + "<answer>B</answer>", "B"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_work_is_proportional_to_the_length(name):
    text, expected = HOSTILE[name]
    assert extract_answer(text).candidate == expected


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("(B)", "(B)"),
        (" (B)\n", "(B)"),
        ("<answer> 145° </answer>", "145°"),
        ("<think>hm</think><answer>rose</answer>", "rose"),
        ("<answer></answer>", ""),
        ("<answer>A</answer> or <answer>B</answer>", "<answer>A</answer> or <answer>B</answer>"),
        ("<answer>A", "<answer>A"),
        (
            "the answer is 4",
            "the answer is 4",
        ),  # a gold answer is no response: nothing is picked out of it
        (r"\boxed{4}", r"\boxed{4}"),
    ],
)
def test_a_gold_answer_may_stand_in_a_block(answer, text):
    assert gold_text(answer) == text
