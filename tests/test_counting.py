"""Counts: what states one number, and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.count import gold_count, parse_count
from gpg_vl.errors import UserError
from gpg_vl.rewards.builtin import counting
from gpg_vl.types import Completion, Example


def match_count(candidate, gold):
    return parse_count(candidate) is not None and parse_count(candidate) == parse_count(gold)


def completion(text):
    return Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")


def example(answer):
    return Example(id="7", prompt="How many?", answer=answer)


CASES = [
    ("4", 4),
    (" 4 \n", 4),
    ("4.", 4),
    ("4.0", 4),
    ("4.00", 4),
    ("0", 0),
    ("007", 7),
    ("four", 4),
    ("Twenty", 20),
    ("zero", 0),
    ("1,234", 1234),
    ("There are 4 items.", 4),
    ("There are four (4) items", 4),
    ("**4**", 4),
    ("答案是4。", 4),  # a script without blanks between words
    ("答案是 4 。", 4),
    ("- 4", 4),
    ("x = 4", 4),
    ("4 - 4", None),
    ("4 * 4", None),
    ("4 or 5", None),
    ("3 red and 1 blue", None),
    ("4, 5, 6", None),
    ("4 5", None),
    ("4 4", None),
    ("-4", None),
    ("−4", None),
    ("4.5", None),
    (".5", None),
    ("1/4", None),
    ("2+2", None),
    ("4²", None),
    ("√4", None),
    ("½", None),
    ("4%", None),
    ("4th", None),
    ("4x", None),
    ("4cm", None),
    ("①", None),
    ("４", None),
    ("٤", None),
    ("twenty one", 21),
    ("twenty-one", 21),
    ("a hundred", None),
    ("10:30", None),
    ("2024-01-04", None),
    ("not 4", None),
    ("it isn't 4", None),
    ("at least 4", None),
    ("more than 4", None),
    ("<4", None),
    ("≥ 4", None),
    ("between 4 and 4", None),
    ("none", 0),
    ("no", None),
    ("a", None),
    ("", None),
    ("items", None),
    ("9" * 19, None),
    ("9" * 18, 10**18 - 1),
]


@pytest.mark.parametrize(("text", "count"), CASES)
def test_case(text, count):
    assert parse_count(text) == count


@given(st.integers(0, 10**15))
def test_every_count_is_read_in_any_spelling(count):
    for text in (f"{count}", f"{count}.0", f"{count:,}", f"There are {count:,} of them."):
        assert parse_count(text) == count
        assert match_count(text, str(count))
        assert not match_count(text, str(count + 1))


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=9, unique=True),
    st.sampled_from([", ", " or ", " and ", "\n", " "]),
)
def test_a_list_states_no_count(counts, separator):
    assert parse_count(separator.join(map(str, counts))) is None


@given(st.text())
def test_any_text_is_read_or_refused(text):
    count = parse_count(text)
    assert count is None or count >= 0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>4</answer>", 1.0),
        ("<think>3 and 1</think><answer> 4 </answer>", 1.0),
        ("<answer>\n4\n</answer>", 1.0),
        ("The answer is 4", 1.0),
        (r"\boxed{4}", 1.0),
        ("4", 1.0),
        ("<answer>5</answer>", 0.0),
        ("<think>4</think><answer>5</answer>", 0.0),
        ("<think>4</think><answer></answer>", 0.0),
        ("<think>4", 0.0),
        ("<answer>4", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward(response, expected):
    assert counting(completion(response), example("4")) == expected


@pytest.mark.parametrize("answer", ["4", " 4 ", "<answer> 4 </answer>", "four", "4.0"])
def test_gold(answer):
    assert gold_count(example(answer)) == 4


@pytest.mark.parametrize("answer", ["", "many", "4.5", "3 or 4", "-4"])
def test_gold_that_is_no_count_is_refused_by_example(answer):
    with pytest.raises(UserError, match="example '7' is not a count"):
        counting(completion("4"), example(answer))


def test_the_explanation():
    told = counting.explain(
        completion("<think>x</think><answer>4 or 5</answer><answer>four"), example("4")
    )
    assert (told.parsed, told.gold, told.note) == (None, "4", "truncated")
    told = counting.explain(completion("<answer>5</answer>"), example("4"))
    assert (told.score, told.parsed, told.note) == (0.0, "5", "")
