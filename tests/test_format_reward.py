"""The layout reward, beside the legacy pattern that it replaces."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.rewards.format import format, has_layout
from gpg_vl.types import Completion, Example

LEGACY = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
EXAMPLE = Example(id="7", prompt="Which?", answer="B")

RIGHT = [
    "<think>x</think><answer>B</answer>",
    "<think>\n\n</think>\n<answer>B</answer>",
    "<think></think><answer>B</answer>",
    " \n<think>x</think>\n\n <answer>\n(1,2),(3,4)\n</answer>\n",
    "<think>a < b > c</think><answer><b>B</b></answer>",
    "<think>so it is </answered></think><answer>B</answer>",
]
WRONG = {
    "": False,
    "B": False,
    "<answer>B</answer>": False,
    "<think>x</think>": False,
    "<think>x</think>B": False,
    "<think>x</think>so<answer>B</answer>": False,
    "<think>x<answer>B</answer></think>": False,
    "<answer>B</answer><think>x</think>": False,
    "<think>x</think><answer>B": False,
    "<think>x</think><answer>B</answer> it is": False,
    "So: <think>x</think><answer>B</answer>": False,
    "<THINK>x</THINK><answer>B</answer>": False,
    "<think>x</think></answer>B<answer>": False,
    "</think>x<think><answer>B</answer>": False,
    # what the legacy pattern rewards as well
    "<think>x</think><answer></answer>": True,
    "<think>x</think><answer> \n</answer>": True,
    "<think>x</think><answer>A</answer><answer>B</answer>": True,
    "<think>x</think>hm<think>y</think><answer>B</answer>": True,
    "<think>x</think><think>y</think><answer>B</answer>": True,
    "<think>x<think>y</think></think><answer>B</answer>": True,
    "<think><think>x</think><answer>B</answer>": True,
    "<think>x</think><answer><answer>B</answer></answer>": True,
    "<think>x</think><answer>A</answer> or <answer>B</answer>": True,
    "<think>x<answer>A</answer></think><answer>B</answer>": True,
    "<think>x</think><answer>B<think>y</think></answer>": True,
}


def score(text, prefill=""):
    return format(
        Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop", prefill=prefill),
        EXAMPLE,
    )


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert score(text) == 1.0


@pytest.mark.parametrize("text", WRONG)
def test_wrong_even_where_the_legacy_pattern_is_content(text):
    assert score(text) == 0.0
    assert bool(LEGACY.fullmatch(text)) == WRONG[text]


def test_a_prefilled_think_is_part_of_the_response():
    assert score("x</think><answer>B</answer>") == 0.0
    assert score("x</think><answer>B</answer>", prefill="<think>") == 1.0
    assert score("x</think><answer>B</answer>", prefill="Let me see.\n<think>") == 0.0
    assert score("<think>x</think><answer>B</answer>", prefill="<think>") == 0.0


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " ", "\n", ""]),
    max_size=9,
).map("".join)


@given(pieces | st.text())
def test_whatever_is_right_is_right_for_the_legacy_pattern_too_and_has_each_tag_once(text):
    if has_layout(text):
        assert LEGACY.fullmatch(text.strip())
        assert [text.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")] == [
            1,
            1,
            1,
            1,
        ]


untagged = st.text().filter(lambda text: not any(tag in text for tag in ("think>", "answer>")))


@given(untagged, untagged.filter(str.strip), st.sampled_from(["", "\n", " \n\t"]))
def test_any_reasoning_and_any_answer_will_do(reasoning, answer, blank):
    assert has_layout(f"{blank}<think>{reasoning}</think>{blank}<answer>{answer}</answer>{blank}")


def test_work_is_proportional_to_the_length():
    for piece in ("<think>", "</think>", "<answer>", "</answer>", "<think></think>", " "):
        assert score(piece * (10**6 // len(piece))) == 0.0
    assert score("<think>" + " x" * 10**6 + "</think><answer>B</answer>") == 1.0
