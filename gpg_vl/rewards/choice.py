"""Multiple choice: which option an answer names, and the reward for naming the right one.

An answer is credited only if it can be read in one way: as a whole letter, as the verbatim text of an option, by one
distinct capital letter, or by one option text in whole words. Where these rules leave room, the reading that credits
less is taken: an article is not option A, a list of all options is not an answer, "5-6" is not 5, and who says that it
is not (A) has not answered (A). A letter that is struck out, or beside what is not seen, is no letter. All this is about the
piece of a response that `parse` takes for the answer; what stands before a box, or before "answer is", is not looked at.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.numerals import (
    denials,
    denied_places,
    is_bounded,
    is_glued,
    is_list_of_numbers,
    stands_free,
    word_spans,
    word_values,
)
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WHOLE_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.)]?")
_ARTICLES = frozenset({"a", "a."})
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
# "(A) is not it", "left isn't right", "A is wrong"; what only has a denial behind it may quote its option: "(B) not seen".
_REFUTED = re.compile(
    r"[\s)\]*_\"'”’]*+(?:(?:is|are|was|were|does|do|did|has|can|could|would|will)\s++(?:not|never|no|wrong|incorrect|false)"
    r"|(?:is|are|was|were|can\s++be|must\s++be)\s++(?>(?:ruled\s++)?)(?:out|excluded|eliminated|impossible)"
    r"|(?:is|are|was|were|does|do|did|has|ca|could|would|wo)n['’]?t|cannot)\b",
    re.IGNORECASE,
)
# These deny what stands right behind them, and not the rest of the clause: "what is other than red is on the left".
_REFUSAL = re.compile(
    r"\b(?:(?:anything|everything|all)\s++but|(?:rul(?:e|es|ed|ing)|leav(?:e|es|ing))\s++out|opposite\s++of|contrary\s++to"
    r"|(?:other|rather)\s++than|instead\s++of|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed)|reject(?>(?:s|ed)?))(?![^\W_])"
    r"(?>(?:\s++(?:the|(?-i:an?)|both|option|options|answer|choice|letter)(?![^\W_]))*)[\s:(\[*_\"'“‘`]*+",
    re.IGNORECASE,
)

# Blanks, and what may close behind a letter: a stroke behind them strikes out the letter as well.
_CLOSING = re.compile(r"[\s)\]}.*_]*+")
# A mark that is not seen at all, or that turns the direction of a text, makes the whole text other than it looks.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_MARKS = frozenset({"Mn", "Me", "Mc", "Cf", "Cc"})
"""The Unicode categories of what is added to a letter, and of what has no looks."""

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

    The verbatim text comes before the lone capital, so that "Vitamin C" is that option and not option C. Steps 3 and 4
    refuse what is denied: behind a "not" in its clause, as in "not (A)" and "it did not turn left", or right before one,
    as in "(A) is not it"; and a candidate that denies a letter names nothing else. The "no" of an option's own text
    denies nothing. Nor is a number named that is bounded, or one of two: "more than 3", "3 or 4". From step 3 on nothing is
    named beside a letter with an accent, a stroke or an invisible character, or in a text with characters that are not
    seen, unless an option has them too.
    """
    candidate = candidate.strip()
    if candidate in _ARTICLES:
        return None
    letter = _whole_letter(candidate, len(choices))
    if letter is not None:
        return letter
    equal = _equal_options(candidate, choices)
    if equal:
        return equal[0] if len(equal) == 1 else None
    if not set(_UNSEEN.findall(candidate)) <= set("".join(choices)):
        return None
    words = _read(candidate, choices)
    letters = _letters(candidate, choices)
    if any(_is_marked(candidate, one) or words.is_denied(one.start, one.end) for one in letters):
        return None
    letter = _lone(letters)
    if letter is None:
        return _named_in_words(candidate, words)
    return None if letter in words.denied_options() else letter


def _whole_letter(text: str, n: int) -> int | None:
    found = _WHOLE_LETTER.fullmatch(text)
    if found is None or text in _ARTICLES:
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


class _Words(NamedTuple):
    """The words of a candidate."""

    spans: Sequence[tuple[int, int]]
    options: Sequence[tuple[int, int, int]]
    """(option, first word, word behind it) of every occurrence of an option's text."""
    is_denied: Callable[[int, int], bool]
    """Whether what stands from a character up to another is denied."""

    def denied_options(self) -> set[int]:
        """The options whose text is denied somewhere."""
        places = (
            (option, self.spans[first][0], self.spans[end - 1][1])
            for option, first, end in self.options
        )
        return {option for option, start, end in places if self.is_denied(start, end)}


def _read(candidate: str, choices: Sequence[str]) -> _Words:
    spans = word_spans(candidate)
    options = _occurrences(word_values(candidate, spans), choices)
    quoted = {spans[place][0] for _, start, end in options for place in range(start, end)}
    denying = [span for span in denials(candidate, spans) if span[0] not in quoted]
    is_denied_at = denied_places(candidate, spans, denying)
    refused = {found.end() for found in _REFUSAL.finditer(candidate) if found.start() not in quoted}

    def is_denied(start: int, end: int) -> bool:
        return is_denied_at(start) or start in refused or _REFUTED.match(candidate, end) is not None

    return _Words(spans=spans, options=options, is_denied=is_denied)


def _occurrences(values: Sequence[str], choices: Sequence[str]) -> list[tuple[int, int, int]]:
    """(option, first word, word behind it) wherever the words spell the text of an option."""
    phrases: dict[str, list[tuple[int, list[str]]]] = {}
    for index, option in enumerate(choices):
        phrase = (
            [] if _OPTION_EXPRESSION.search(option) else word_values(option, word_spans(option))
        )
        if phrase:
            phrases.setdefault(phrase[0], []).append((index, phrase))
    return [
        (index, start, start + len(phrase))
        for start, value in enumerate(values)
        for index, phrase in phrases.get(value, ())
        if values[start : start + len(phrase)] == phrase
    ]


class _Letter(NamedTuple):
    """A capital that may be the letter of an option."""

    option: int
    start: int
    end: int
    alone: bool
    """It is no part of a list or of a compound."""


def _letters(candidate: str, choices: Sequence[str]) -> list[_Letter]:
    """Every option letter that the candidate mentions."""
    letters = []
    for found in _CAPITAL.finditer(candidate):
        index = LETTERS.index(found[1])
        if index >= len(choices):
            continue
        as_word = found[1] in "AI" and _reads_as_word(candidate, found, choices[index])
        if as_word == "word":
            continue
        glued = is_glued(candidate, found.start(), -1) or is_glued(candidate, found.end() - 1, 1)
        letters.append(_Letter(index, *found.span(), alone=not as_word and not glued))
    return letters


def _is_marked(candidate: str, letter: _Letter) -> bool:
    """True if a mark stands right before a letter, or behind it and what closes it: a stroke, an accent, a joiner."""
    closing = _CLOSING.match(candidate, letter.end)
    behind = closing.end() if closing else letter.end
    beside = candidate[max(0, letter.start - 1) : letter.start] + candidate[behind : behind + 1]
    return any(
        unicodedata.category(character) in _MARKS and not character.isspace()
        for character in beside
    )


def _lone(letters: Sequence[_Letter]) -> int | None:
    """The only option that is mentioned by letter, if one of its mentions is a letter on its own."""
    mentioned = {one.option for one in letters}
    return mentioned.pop() if len(mentioned) == 1 and any(one.alone for one in letters) else None


def _reads_as_word(
    candidate: str, found: re.Match[str], option: str
) -> Literal["word", "list"] | None:
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
    if following[1].casefold() in _AFTER_A_LETTER or (
        option and rest.casefold() == option.casefold()
    ):
        return "list"
    return "word"


def _named_in_words(candidate: str, words: _Words) -> int | None:
    """The only option whose text occurs in the candidate, if one of its occurrences stands free and none is denied."""
    if _EXPRESSION.search(candidate) or is_list_of_numbers(candidate, words.spans):
        return None
    named = {index for index, _, _ in words.options}
    free = {
        index
        for index, start, end in words.options
        if stands_free(candidate, words.spans, start, end)
        and not is_bounded(candidate, words.spans, start, end)
    }
    return named.pop() if len(named) == 1 and named == free and not words.denied_options() else None
