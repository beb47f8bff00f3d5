"""Words and numerals in running text."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.answers.text.numerals import (
    has_hidden_characters,
    is_denied,
    is_number,
    is_qualified,
    is_standalone,
    word_spans,
    word_values,
)


def words(text):
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a rose", ["a", "rose"]),
        ("1,234 and 1.5 or .5", ["1,234", "and", "1.5", "or", ".5"]),
        ("1,2,3", ["1", "2", "3"]),
        ("desert-rose", ["desert", "rose"]),
        ("x_1", ["x", "1"]),
        ("rose\u0301 e", ["rose\u0301", "e"]),  # an accent is no end of a word
        ("ro\u200bse", ["ro\u200bse"]),
        ("ro\u00adse", ["ro\u00adse"]),
        ("4\u20e3", ["4\u20e3"]),
        ("a\0b", ["a\0b"]),
        ("a\nb\tc", ["a", "b", "c"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Three 3.0 007", ["3", "3", "7"]),
        ("-5 −5 x-5", ["-5", "-5", "x", "5"]),
        ("12% 12 %", ["12%", "12%"]),
        ("1,234.50", ["1234.5"]),
        ("４", ["４"]),
        ("4\u0301", ["4\u0301"]),
    ],
)
def test_values(text, values):
    assert word_values(text, word_spans(text)) == values


@pytest.mark.parametrize(
    ("text", "denied", "qualified"),
    [
        ("a rose", False, False),
        ("not a rose", True, True),
        ("No rose", True, True),
        ("it isn't a rose", True, True),
        ("it isn’t a rose", True, True),
        ("cannot be", True, True),
        ("it can be a rose", False, False),
        ("they won a rose", False, False),
        ("knot", False, False),
        ("at least 4", False, True),
        ("more than 4", False, True),
        ("", False, False),
    ],
)
def test_denials_and_bounds(text, denied, qualified):
    spans = word_spans(text)
    assert is_denied(text, spans) is denied
    assert is_qualified(text, spans) is qualified


def test_numbers():
    assert all(map(is_number, ("4", "1,234", "1.5", ".5", "four", "hundred")))
    assert not any(map(is_number, ("", "4th", "x", "４", "²", "fourth")))


@pytest.mark.parametrize("text", ["e\u0301", "\u200b", "\u202e", "\u00ad", "\0", "\ufeff", "\x9f"])
def test_what_hides_something(text):
    assert has_hidden_characters(f"4{text}")
    assert not has_hidden_characters("4 °√π²米é\n\t")


@given(st.text(alphabet="ab1,. -\u0301\u200b", max_size=30))
def test_words_are_in_order_and_hold_every_letter_and_digit(text):
    spans = word_spans(text)
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    covered = "".join(text[start:end] for start, end in spans)
    assert re.sub(r"[^ab1]", "", covered) == re.sub(r"[^ab1]", "", text)
    for place in range(len(spans)):
        assert is_standalone(text, spans, place, place + 1) in (True, False)
