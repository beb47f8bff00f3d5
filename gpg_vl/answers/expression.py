"""Expressions: whether an answer is the same number, expression, set, interval or equation as the gold answer.

What an answer states is found here; whether two statements are the same is decided in `math.equality`, at last by
math-verify.
"""

import re
from functools import lru_cache

from gpg_vl.answers.extract import gold_text, last_boxed
from gpg_vl.answers.math.equality import (
    equal,
    first_of_approximations,
    has_relation,
    interval,
    is_readable,
    normalize,
    right_side,
)
from gpg_vl.answers.text.numerals import (
    CJK,
    has_hidden_characters,
    is_changed,
    is_qualified,
    with_digits,
    word_spans,
)
from gpg_vl.answers.text.sentences import (
    is_factor,
    is_sentence,
    is_word,
    without_label,
    without_unit,
)
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

MAX_CANDIDATE = 2000
"""Characters of an answer that are looked at; an expression of 400 with a sentence around it is well below."""

# The dollar form last: a `\$` is money. One line, as an unclosed dollar must not swallow what follows.
_SPAN = re.compile(
    r"\\\((.+?)\\\)|\\\[(.+?)\\\]|\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)(?<!\\)\$", re.DOTALL
)
_LIST_WORDS = re.compile(r"(?:\s|,|;|\band\b|\bor\b)*")
_TEXT_COMMAND = re.compile(
    r"\\(?:begin|end|text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{([^{}]*)\}"
)
_UNIT = re.compile(
    r"(?<=[0-9}\s])\s*\\(?:text|mathrm|mbox)\s*\{[\s~]*[A-Za-z][A-Za-z. /]*\}(?:\s*\^\s*\{?-?[1-4]\}?)?\s*$"
)
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree(?![A-Za-z])|\bdegrees?\b)\s*$")
_NUMBER = re.compile(
    r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?|-?\.[0-9]+"
)

_CHINESE = re.compile(f"[{CJK}，。]")
_ONE_LETTER_UNIT = re.compile(r"(?<=[0-9}])\s+[mgshNCVWJKAFTLHΩ]$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PRIMES = re.compile(r"[0-9]\s*(?:'|’|\^\{?\\prime)")


def judge(answer: str, example: Example) -> Verdict:
    """1.0 if the answer is mathematically the gold answer."""
    gold = gold_expression(example)
    answer_value = find_expression(answer) if answer else None
    return Verdict(
        score=float(answer_value is not None and _matches(answer_value, gold)),
        parsed=answer_value,
        gold=gold,
    )


def gold_expression(example: Example) -> str:
    """The gold expression, normalised. Raises UserError that names the example if it cannot be read."""
    gold = _read_gold(example.answer)
    if gold is None:
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} cannot be read as mathematics. An expression "
            f"in LaTeX such as \\frac{{1}}{{2}}, or a text with one \\boxed{{}}, is allowed. Correct the row."
        )
    return gold


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def _read_gold(answer: str) -> str | None:
    gold = find_expression(gold_text(answer))
    return gold if gold is not None and (is_readable(gold) or _is_word(gold)) else None


def matches(answer: str, gold: str) -> bool:
    """True if the two answers mean the same. Total; what cannot be read, or would take long to compare, is not equal."""
    answer_value, gold_value = find_expression(answer), find_expression(gold_text(gold))
    return (
        answer_value is not None and gold_value is not None and _matches(answer_value, gold_value)
    )


def _matches(answer_value: str, gold: str) -> bool:
    """True if two statements mean the same: letters for a word, one side for an equation, intervals for inequalities."""
    if _is_word(gold):
        return _letters(answer_value) == _letters(gold)
    if has_relation(answer_value) != has_relation(gold) or r"\in" in answer_value + gold:
        answer_value, gold = interval(answer_value) or answer_value, interval(gold) or gold
    left: str | None = answer_value
    if "=" in answer_value and "=" not in gold:
        left = right_side(answer_value)
    elif "=" in gold and "=" not in answer_value:
        gold = right_side(gold) or gold
    if left is None:
        return False
    has_letters = re.search(r"[A-Za-z]", _COMMAND.sub("", gold)) is not None
    unit = None if has_letters else _ONE_LETTER_UNIT.search(left)
    left = left[: unit.start()] if unit else left
    twice = left.removeprefix(r"\{").removesuffix(r"\}").split(",")
    if len(twice) == 2 and "," not in gold and equal(twice[0].strip(), twice[1].strip()):
        left = twice[0].strip()  # one value in two spellings
    return equal(left, gold)


def find_expression(candidate: str) -> str | None:
    """The expression that an answer states, normalised, without units; None if it states none or several.

    A box counts as the answer, then the only formula between dollar signs, then the whole text if it is a formula, then the
    only number of a sentence. Letters are variables unless they spell words: `2xy + 1` is a formula. Of an approximation,
    `2\\sqrt{3} \\approx 3.46`, the exact side counts.
    """
    marked = candidate.rpartition("####")[2]  # as the gold answers of GSM8K are written
    inner = last_boxed(marked) or marked
    if len(inner) > MAX_CANDIDATE or has_hidden_characters(inner):
        return None
    inner = without_label(inner.strip().strip("*`").strip())
    formula = _formula(first_of_approximations(inner))
    if formula is None or _PRIMES.search(formula):
        return None
    return normalize(_without_unit(first_of_approximations(formula))) or None


def _formula(text: str) -> str | None:
    """What is stated in a text without a box, not yet normalised; None if it is nothing, or several things."""
    spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(text)]
    if spans:
        rest = _SPAN.sub("", text)
        if len(spans) > 1:
            joint = " or " if re.search(r"\bor\b", rest) else ", "
            return joint.join(spans) if _LIST_WORDS.fullmatch(rest.strip(" .")) else None
        qualified = any(character.isdigit() for character in rest) or is_qualified(
            rest, word_spans(rest)
        )
        return None if qualified else spans[0]

    # without a formula: a text that is no sentence counts as a whole
    text = with_digits(text, words=not any(character.isdigit() for character in text))
    chinese = _CHINESE.search(text) is not None
    if not chinese and not is_sentence(_without_unit(text)):
        return text
    if not any(character.isdigit() for character in text):
        return text  # an answer in words

    # in a sentence only a single, unqualified number counts
    if is_qualified(text, word_spans(text)):
        return None
    found = list(_NUMBER.finditer(text))
    numbers = {number[0].lstrip("$") for number in found}
    if (
        len(numbers) != 1
        or re.search(r"[√π^\\+*]" if chinese else r"[√π^\\=+*]", text)
        or any(
            is_factor(text, number.end()) or is_changed(text, *number.span()) for number in found
        )
    ):
        return None
    return numbers.pop()


def _without_unit(text: str) -> str:
    text = text.rstrip(" .")
    unit = _UNIT.search(text)
    if unit is not None and not _is_no_unit(unit[0]):
        text = text[: unit.start()]
    return without_unit(_DEGREES.sub("", text))


def _is_no_unit(text: str) -> bool:
    """True for words behind a number that change it: "or 6", "not", "or more"."""
    spans = word_spans(text)
    return is_qualified(text, spans) or any(
        text[start:end].casefold() in {"or", "and", "to"} for start, end in spans
    )


def _is_word(text: str) -> bool:
    """True for a gold answer in words, such as `\\text{Evelyn}`: letters are compared, as `yes` is no product of e, s, y."""
    letters = _letters(text)
    if not re.fullmatch(r"[^\W\d_]{3,}(?:[\s-]+[^\W\d_]+)*", letters):
        return False
    return r"\text" in text or any(
        not word.isascii() or is_word(word) for word in re.split(r"[\s-]+", letters)
    )


def _letters(text: str) -> str:
    return " ".join(_TEXT_COMMAND.sub(r"\1", text).casefold().split())
