"""Multiple choice: which option an answer names, and the reward for naming the right one.

An answer is credited only if it can be read in one way: as a whole letter, as the verbatim text of an option, by one
distinct capital letter, or by one option text in whole words. Where these rules leave room, the reading that credits
less is taken: an article is not option A, a list of all options is not an answer, "5-6" is not 5.
"""

import re
from collections.abc import Sequence
from typing import Literal

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.numerals import is_glued, stands_free, word_spans, word_values
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WHOLE_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.)]?")
_FINAL_PUNCTUATION = ".,;:!?。，；：！？…"
# CJK text has no blanks between words, so there a letter beside an ideograph stands alone.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_CAPITAL = re.compile(rf"(?<![^\W_{_CJK}])([A-Z])(?![^\W_{_CJK}])")
_NEXT_WORD = re.compile(r"[ \t]+[*_\"'“‘`]*([^\W_]+)")
# No article stands before these, so "A or B" and "A is right, B is wrong" name two letters.
_AFTER_A_LETTER = frozenset(
    {
        "and",
        "or",
        "nor",
        "but",
        "not",
        "vs",
        "versus",
        "is",
        "isn",
        "was",
        "are",
        "than",
        "because",
        "since",
        "as",
        "if",
        "over",
    }
)

# An expression means more than its words ("√3" is not "3"), so it is compared whole and never looked for inside a text.
_EXPRESSION = re.compile(r"[√∛^×÷±π²³]|\\(?:[dt]?frac|sqrt|pi|times|cdot)")
_OPTION_EXPRESSION = re.compile(r"[√∛^×÷±π²³<>≤≥=+*/\\]")


_SIDES = ("left", "right", "red, to the left")
EXAMPLES = (
    Sample(response="<think>it is near</think><answer>(B)</answer>", answer="(B)", choices=_SIDES),
    Sample(response="The answer is right.", answer="(B)", choices=_SIDES),
    Sample(response="<answer>B. right</answer>", answer="right", choices=_SIDES),
    Sample(response="<answer>(A) or (B)</answer>", answer="(B)", choices=_SIDES),
    Sample(response="<answer>a</answer>", answer="(A)", choices=_SIDES),
    Sample(response="<think>so (B)</think><answer></answer>", answer="(B)", choices=_SIDES),
)


def explain(completion: Completion, example: Example) -> Explanation:
    """How `choice` reads a completion."""
    choices = example.choices or ()

    def read(text: str) -> str | None:
        index = match_choice(text, choices)
        return None if index is None else _option(index, choices)

    return explanation(completion, read, _option(gold_index(example), choices))


@explained(explain, EXAMPLES)
def choice(completion: Completion, example: Example) -> float:
    """1.0 if the completion names the right option, else 0.0. Needs `example.choices`."""
    gold = gold_index(example)
    candidate = extract_answer(completion.response).candidate
    return float(candidate is not None and match_choice(candidate, example.choices or ()) == gold)


def gold_index(example: Example) -> int:
    """The index of the right option, from a gold answer that is `(B)`, `B` or the text of an option.

    Raises UserError (a ValueError) that names the example if the gold names no option, or could mean two.
    """
    choices, gold = example.choices, gold_text(example.answer)
    if not choices:
        raise UserError(
            f"Example {example.id!r} has no choices, but the reward 'choice' scores multiple choice only. "
            f"Map a column to `choices`, or use another reward for this data set."
        )
    letter = _whole_letter(gold, len(choices))
    readings: set[int] = {*_equal_options(gold, choices), *(() if letter is None else (letter,))}
    if len(readings) == 1:
        return readings.pop()
    options = ", ".join(_option(index, choices) for index in range(len(choices)))
    raise UserError(
        f"The gold answer {example.answer!r} of example {example.id!r} names "
        f"{'no option' if not readings else f'{len(readings)} options'} of {options}. "
        f"Write it as a parenthesised letter, such as (A), or as the text of exactly one option."
    )


def _option(index: int, choices: Sequence[str]) -> str:
    return f"({LETTERS[index] if index < len(LETTERS) else index + 1}) {choices[index]}"


def match_choice(candidate: str, choices: Sequence[str]) -> int | None:
    """The index of the one option that `candidate` names, or None. Total, and linear in the length of the candidate.

    1. The whole candidate is a letter: `B`, `(B)`, `B.`, `B)`, in either case; but a bare `a` is the article.
    2. The candidate is the text of exactly one option, but for case, outer blanks and final punctuation.
    3. Exactly one distinct capital among the first n stands alone or in parentheses. `A` before a word is an article.
    4. The text of exactly one option occurs in whole words; `three` is `3`, `3.0` is `3`, and `11` is not `1`.

    The verbatim text comes before the lone capital, so that "Vitamin C" is that option and not option C.
    """
    candidate = candidate.strip()
    if candidate == "a":
        return None
    letter = _whole_letter(candidate, len(choices))
    if letter is not None:
        return letter
    equal = _equal_options(candidate, choices)
    if equal:
        return equal[0] if len(equal) == 1 else None
    letter = _lone_capital(candidate, choices)
    return _named_in_words(candidate, choices) if letter is None else letter


def _whole_letter(text: str, n: int) -> int | None:
    found = _WHOLE_LETTER.fullmatch(text)
    if found is None or text == "a":
        return None
    index = LETTERS.index((found[1] or found[2]).upper())
    return index if index < n else None


def _equal_options(text: str, choices: Sequence[str]) -> list[int]:
    plain = _plain(text)
    return [index for index, option in enumerate(choices) if plain and _plain(option) == plain]


def _plain(text: str) -> str:
    """Case-folded, without outer blanks and final punctuation; text that is nothing but punctuation stays."""
    text = text.strip()
    return (text.rstrip(_FINAL_PUNCTUATION).rstrip() or text).casefold()


def _lone_capital(candidate: str, choices: Sequence[str]) -> int | None:
    """The only option letter that the candidate mentions, if one of its mentions is a letter on its own."""
    mentioned, alone = set(), set()
    for found in _CAPITAL.finditer(candidate):
        index = LETTERS.index(found[1])
        if index >= len(choices):
            continue
        as_word = found[1] in "AI" and _reads_as_word(candidate, found, choices[index])
        if as_word == "word":
            continue
        mentioned.add(index)
        if not as_word and not is_glued(candidate, found.start(), -1) and not is_glued(candidate, found.end() - 1, 1):
            alone.add(index)
    return mentioned.pop() if len(mentioned) == 1 and mentioned == alone else None


def _reads_as_word(candidate: str, found: re.Match[str], option: str) -> Literal["word", "list"] | None:
    """How to take an `A` or `I` that a word may follow: an article or pronoun, part of a list, or (None) a letter.

    "A chair" is a word. "A or B", and "A left" where option A is "left", may be lists: not to be credited, but not to
    be overlooked beside another letter either. "A, B" and "A B" are letters.
    """
    if found[1] == "I" and candidate[found.end() : found.end() + 1] in {"'", "’"}:
        return "word"
    following = _NEXT_WORD.match(candidate, found.end())
    if following is None or (len(following[1]) == 1 and following[1] in LETTERS):
        return None
    rest = candidate[following.start(1) : following.start(1) + len(option)]
    if following[1].casefold() in _AFTER_A_LETTER or (option and rest.casefold() == option.casefold()):
        return "list"
    return "word"


def _named_in_words(candidate: str, choices: Sequence[str]) -> int | None:
    """The only option whose text occurs in the candidate, if one of its occurrences stands free."""
    if _EXPRESSION.search(candidate):
        return None
    phrases: dict[str, list[tuple[int, list[str]]]] = {}
    for index, option in enumerate(choices):
        phrase = [] if _OPTION_EXPRESSION.search(option) else word_values(option, word_spans(option))
        if phrase:
            phrases.setdefault(phrase[0], []).append((index, phrase))
    spans = word_spans(candidate)
    values = word_values(candidate, spans)
    named, free = set(), set()
    for start, value in enumerate(values):
        for index, phrase in phrases.get(value, ()):
            end = start + len(phrase)
            if values[start:end] == phrase:
                named.add(index)
                if stands_free(candidate, spans, start, end):
                    free.add(index)
    return named.pop() if len(named) == 1 and named == free else None
