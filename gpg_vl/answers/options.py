"""The options of a multiple-choice question: their letters, their texts, and which of them a gold answer means."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.text.latex import strip_latex
from gpg_vl.errors import UserError
from gpg_vl.types import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WHOLE_LETTER = re.compile(
    r"(?:(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer)\s*(?:is\b)?:?)\s*)?"
    r"[\"'“”‘’]?(?:\(\s*([A-Za-z])\s*\)|\[([A-Za-z])\]|([A-Za-z])[.):]?)[.\"'“”‘’]*"
)
# An option, or a gold answer, with its letter before its text: "(A) ball", "A. ball", "B: cube".
_LETTERED = re.compile(
    r"(?:[(（]\s*([A-Za-z])\s*[)）]|\[\s*([A-Za-z])\s*\]|([A-Za-z])\s*[.):、．：）])[.):]*\s*(?=[^\s.):])(.*)",
    re.DOTALL,
)
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])[).:]*\s+(.*)", re.DOTALL)
ARTICLES = frozenset({"a", "a."})
_FINAL_PUNCTUATION = ".,;:!?。，；：！？…"


def gold_index(example: Example) -> int:
    """The index of the right option, from a gold answer that is `(B)`, `B` or the text of an option.

    Raises UserError (a ValueError) that names the example if the gold names no option, or could mean two.
    """
    choices = example.choices
    if not choices:
        raise UserError(
            f"Example {example.id!r} has no choices, but the reward 'choice' scores multiple choice only. "
            f"Map a column to `choices`, or use another reward for this data set."
        )
    readings = gold_readings(example.answer, choices)
    if len(readings) == 1:
        return next(iter(readings))
    options = ", ".join(_option(index, choices) for index in range(len(choices)))
    raise UserError(
        f"The gold answer {example.answer!r} of example {example.id!r} names "
        f"{'no option' if not readings else f'{len(readings)} options'} of {options}. "
        f"Write it as a parenthesised letter, such as (A), or as the text of exactly one option."
    )


@lru_cache(maxsize=1024)  # a gold answer is met once per completion
def gold_readings(answer: str, choices: tuple[str, ...]) -> frozenset[int]:
    """The indices of the options that a gold answer may mean: none, one, or several where the row is ambiguous.

    `B`, `(b)` and `B.` are letters, and so is a bare `a`, which would be an article in an answer. Or it is the text of an
    option, or both: `(B) cube`, where the two agree.
    """
    gold, texts = gold_text(answer), strip_letters(choices)
    readings = {*options_of_text(gold, texts), *options_of_text(gold, choices)}

    letter = 0 if gold.casefold() in ARTICLES else whole_letter(gold, len(texts))
    if letter is not None and texts:
        readings.add(letter)

    # the text behind a letter must be that of its option: `(B) cube` where B is a ball is a mistake
    if both := _LETTER_AND_TEXT.fullmatch(gold):
        place = LETTERS.index(both[1].upper())
        if place < len(texts) and plain(both[2]) == plain(texts[place]):
            readings.add(place)
    return frozenset(readings)


@lru_cache(maxsize=1024)
def strip_letters(choices: tuple[str, ...]) -> tuple[str, ...]:
    """The options without the letters that they carry: `ball` of `(A) ball`.

    They are unchanged unless all of them, at least two, begin with their own letter and have text behind it.
    """
    found = [_LETTERED.fullmatch(option.strip()) for option in choices]
    bare = []
    for place, one in enumerate(found):
        if one is None or place >= len(LETTERS):
            return choices
        if (one[1] or one[2] or one[3]).upper() != LETTERS[place]:
            return choices
        bare.append(one[4])
    return tuple(bare) if len(bare) > 1 else choices


def equal_options(choices: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """(first, second) for each option that repeats an earlier one, but for case, outer blanks, final punctuation and letters."""
    first: dict[str, int] = {}
    for place, text in enumerate(_plain_texts(strip_letters(choices))):
        before = first.setdefault(text, place)
        if before != place and text:
            yield before, place


def _option(index: int, choices: Sequence[str]) -> str:
    return f"({letter_of(index)}) {choices[index]}"


def letter_of(index: int) -> str:
    """`B` for 1; a number from the 27th option on."""
    return LETTERS[index] if index < len(LETTERS) else str(index + 1)


def whole_letter(text: str, n: int) -> int | None:
    """The index of the option, among `n`, whose letter is the whole text; a bare `a` is the article."""
    found = _WHOLE_LETTER.fullmatch(text)
    if found is None or text in ARTICLES:
        return None
    index = LETTERS.index((found[1] or found[2] or found[3]).upper())
    return index if index < n else None


def options_of_text(text: str, choices: tuple[str, ...]) -> list[int]:
    """The options whose text this is, verbatim if there is one, else but for case, outer blanks and final punctuation."""
    bare = plain(text)
    found = [index for index, option in enumerate(_plain_texts(choices)) if option == bare != ""]

    # "Cu" is the second of "cu" and "Cu"
    verbatim = [index for index in found if choices[index] == text]
    return verbatim if len(verbatim) == 1 else found


@lru_cache(maxsize=1024)
def _plain_texts(choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(plain(strip_latex(option)) for option in choices)


def plain(text: str) -> str:
    """Case-folded, without outer blanks and final punctuation; text that is nothing but punctuation stays."""
    text = text.strip("\"'“”‘’ \t\r\n")
    return (text.rstrip(_FINAL_PUNCTUATION).rstrip() or text).casefold()
