"""Counting: reads the only whole number that an answer states."""

import re
from functools import lru_cache

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.math.arithmetic import evaluate
from gpg_vl.answers.text.numerals import (
    CJK,
    is_changed,
    is_number,
    is_qualified,
    is_standalone,
    with_digits,
    word_spans,
    word_values,
)
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

MAX_CANDIDATE = 5_000
"""Maximum length of an answer that is read; in a longer one no number can be identified as the answer."""

_WHOLE = re.compile(r"[0-9]{1,18}")
# Signs that make more of a number than a count of things: "2+2", "√4", "4²", "<5", "4!".
_OPERATION = re.compile(
    r"[0-9]\s*+[-−–*]\s*+[0-9]|[0-9]!|[√∛^×÷±+<>≤≥≠≈~π/\\\u00b2\u00b3\u00b9\u2070-\u209f\u00bc-\u00be\u2150-\u218b]"
)
_DOLLARS = re.compile(r"\\text\s*\{([^{}]*)\}|\\[()\[\] ]|\$")
# "There are no cubes", "no cubes are visible", "none".
_NONE = re.compile(
    r"none\b|(?:.*\b(?:is|are|were|was|see|shows?|contains?|has|have|with)\s+)?(?:no|zero)\s+"
    r"(?!one|more|less|fewer|idea|answer|way|clue|information|doubt|need|number|matter)[a-z]+\b.*"
    r"|there\s+(?:(?:is|are)\s+not|(?:is|are)n['’]t)\s+any\s+[a-z]+\b.*",
    re.IGNORECASE | re.DOTALL,
)
# "the one on the left" is no number next to another one.
_PRONOUN = re.compile(
    r"\b(?:the|this|that|each|every|another|other|which|any|no|last|first|second|left|right|middle|only)\s+one\b"
    r"|\bone\s+(?:of|that|which|is|on|in|at|has|with)\b",
    re.IGNORECASE,
)
_MEASURES = "个個只条张辆本位名人头件块支把朵棵匹座栋架艘间种"
_CHINESE = {sign: value for value, sign in enumerate("零一二三四五六七八九十")} | {"两": 2}
_CHINESE_COUNT = re.compile(
    rf"(?<![第{''.join(_CHINESE)}])([{''.join(_CHINESE)}])(?=[{_MEASURES}])"
)


def judge(answer: str, example: Example) -> Verdict:
    """1.0 if the answer states the gold number and no other."""
    gold, count = gold_count(example), parse_count(answer)
    return Verdict(
        score=float(count == gold), parsed=None if count is None else str(count), gold=str(gold)
    )


def gold_count(example: Example) -> int:
    """The gold number. Raises UserError that names the example if the gold answer states none."""
    count = _gold_count(example.answer)
    if count is None:
        raise UserError(
            f"The gold answer {example.answer!r} of example {example.id!r} is not a count. A whole number such as 4 is "
            f"allowed. Correct the row, or use the reward 'math' for other numbers."
        )
    return count


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _gold_count(answer: str) -> int | None:
    return parse_count(gold_text(answer))


def parse_count(text: str) -> int | None:
    """The one whole number, not negative, that a text states; None if it states none, several, or something else.

    The same number may be stated twice, as in "four (4)". "There are no cubes" states 0; "the one on the left" states
    nothing but a number. Total, and linear in the length of the text.
    """
    if len(text) > MAX_CANDIDATE:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    text = _CHINESE_COUNT.sub(lambda one: str(_CHINESE[one[1]]), _DOLLARS.sub(r"\1", text))
    for reading in dict.fromkeys((_PRONOUN.sub("it", text), text)):
        reading = with_digits(reading)
        stated = _numbers(_sum_of(reading) or reading)
        if stated is None or len(stated) > 1:
            return None
        if stated:
            return stated.pop()
        if _NONE.fullmatch(reading.strip(" .!\n")):
            return 0
    return None


def _sum_of(text: str) -> str | None:
    """`4` of `3 + 1 = 4`, if that is so."""
    left, equals, right = text.rpartition("=")
    if not equals or (total := evaluate(left)) is None or (value := evaluate(right)) is None:
        return None
    return right if total.exact == value.exact else None


def _numbers(text: str) -> set[int] | None:
    """The different numbers of a text; None if one of them is no count, or if they are qualified."""
    if _OPERATION.search(text):
        return None
    spans = word_spans(text)
    values, stated = word_values(text, spans), set()
    for place, (start, end) in enumerate(spans):
        word = text[start:end]
        if not is_number(word.casefold()):
            if any(one.isnumeric() and not re.match(f"[{CJK}]", one) for one in word):
                return None  # "3rd", "4x", "①"
            continue
        if (
            not _WHOLE.fullmatch(values[place])
            or not is_standalone(text, spans, place, place + 1)
            or is_changed(text, start, end)
        ):
            return None
        stated.add(int(values[place]))
    return None if stated and is_qualified(text, spans) else stated
