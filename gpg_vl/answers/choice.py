"""Multiple choice: which option an answer names.

An answer is credited only if it can be read in one way: as a whole letter, as the verbatim text of an option, by one
distinct capital letter, or by one option text in whole words. In doubtful cases the stricter reading is used: an article is
not option A, a list of all options is not an answer, "5-6" is not 5, and "it is not (A)" does
not answer (A). A letter that is struck out or next to an invisible character does not count, nor does the C of "Vitamin C"
if an option is "Vitamin D".
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from gpg_vl.answers.count import parse_count
from gpg_vl.answers.options import (
    ARTICLES,
    LETTERS,
    gold_index,
    letter_of,
    options_of_text,
    plain,
    strip_letters,
    whole_letter,
)
from gpg_vl.answers.text.latex import strip_latex
from gpg_vl.answers.text.numerals import (
    CJK,
    denials,
    find_denied,
    is_bounded,
    is_glued,
    is_list_of_numbers,
    is_standalone,
    word_spans,
    word_values,
)
from gpg_vl.answers.verdict import Verdict
from gpg_vl.types import Example

MAX_CANDIDATE = 5_000
"""Maximum length of an answer that is searched; a longer one can only match as the exact text of an option."""

_LEADING = re.compile(r"(?:\(([A-Z])\)|([A-Z])(?=[.):,\-–—]))[.):,\-–—]*\s+")
_CAPITAL = re.compile(rf"(?<![^\W_{CJK}\uac00-\ud7af])(?<![∠△])([A-Z])(?![^\W_{CJK}\uac00-\ud7af])")
_LABELLED = re.compile(r"([^\W\d_]{2,})\s+[A-Z](?![^\W_])")
_WORD_BEFORE = re.compile(r"([^\W\d_]{2,})\s+$")
_NEXT_WORD = re.compile(r"[ \t]+[*_\"'“‘`]*([^\W_]+)")
# No article precedes these, so "A or B" and "A is right, B is wrong" name two letters.
_AFTER_A_LETTER = frozenset(
    "and or nor but not vs versus is isn was are than because since as if over".split()  # noqa: SIM905
)
# Another letter that is spoken about, and not offered: "B. Note that A is a distractor."
_SPOKEN_OF = re.compile(
    r"[\s)\]*_\"'”’]*+(?:is|was|are|would|can|could|does|has|says|shows|puts|describes|refers|fails|lacks|means|gives)\b"
)
_HEDGE = re.compile(
    r"\b(?:or|maybe|possibly|perhaps|either|also|alternatively|both)\b|\?", re.IGNORECASE
)
# Words before a comparison or a reason, not an answer: "more than the table", "since the table".
_ASIDE = re.compile(
    r"\b(?:(?<!other )(?<!rather )than|because|since|whereas|unlike|compared\s+(?:to|with)|while)\b",
    re.IGNORECASE,
)
# "(A) is not it", "left isn't right", "A is wrong"; what only has a denial behind it may quote its option: "(B) not seen".
_REFUTED = re.compile(
    r"[\s)\]*_\"'”’]*+(?:(?:is|are|was|were|does|do|did|has|can|could|would|will)\s++(?:not|never|no|wrong|incorrect|false)"
    r"|(?:is|are|was|were|can\s++be|must\s++be)\s++(?>(?:ruled\s++)?)(?:out|excluded|eliminated|impossible)"
    r"|(?:is|are|was|were|does|do|did|has|ca|could|would|wo)n['’]?t|cannot)\b",
    re.IGNORECASE,
)
# These deny what is right behind them, and not the rest of the clause: "what is other than red is on the left".
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
"""Unicode categories of combining marks and of invisible characters."""

# An expression means more than its words ("√3" is not "3"), so it is compared whole and never looked for inside a text.
_EXPRESSION = re.compile(r"[√∛^×÷±π²³]|\\(?:[dt]?frac|sqrt|pi|times|cdot)")
_OPTION_EXPRESSION = re.compile(r"[√∛^×÷±π²³<>≤≥=+*/\\]")


def judge(answer: str, example: Example) -> Verdict:
    """1.0 if the answer names the right option. Needs `example.choices`."""
    gold, choices = gold_index(example), example.choices or ()
    named = match_choice(answer, choices)
    return Verdict(
        score=float(named == gold),
        parsed=None if named is None else letter_of(named),
        gold=letter_of(gold),
    )


def match_choice(candidate: str, choices: Sequence[str]) -> int | None:
    """The index of the one option that `candidate` names, or None. Total, and linear in the length of the candidate.

    1. The whole candidate is a letter: `B`, `(B)`, `B.`, `option b`; but a bare `a` is the article.
    2. The candidate is the text of exactly one option, verbatim or else but for case, outer blanks and final punctuation.
       Letters that all options carry, as in `(A) ball`, are not of their text.
    3. It starts with a letter that is set off, as in `B. right`, and offers no other one behind it.
    4. Exactly one distinct capital among the first n is alone or in parentheses. `A` before a word is an article.
    5. The text of exactly one option occurs in whole words; `three` is `3`, `3.0` is `3`, and `11` is not `1`. Of texts that
       lie within each other the longest counts. "No cubes" is the option 0.

    The verbatim text comes before the lone capital, so that "Vitamin C" is that option and not option C. From step 3 on what
    is denied is not named: behind a "not" in its clause, as in "not (A)" and "it did not turn left", or right before one,
    as in "(A) is not it"; a text is not named either behind "than" or "because". The "no" of an option's own text denies
    nothing. Nor is a number named that is bounded, or one of two: "more than 3", "3 or 4". Nothing is named next to a letter
    with an accent, a stroke or an invisible character, or in a text with characters that are not seen, unless an option has
    them too.
    """
    candidate, given = strip_latex(candidate.strip()), tuple(choices)
    choices = strip_letters(given)

    # steps 1 and 2: the whole candidate is a letter, or the text of an option
    if candidate in ARTICLES:
        return None
    letter = whole_letter(candidate, len(choices))
    if letter is not None:
        return letter
    equal = options_of_text(candidate, choices) or options_of_text(candidate, given)
    if equal:
        return equal[0] if len(equal) == 1 else None

    # from here on the candidate is searched, so it must be short and have no hidden characters
    if len(candidate) > MAX_CANDIDATE or not set(_UNSEEN.findall(candidate)) <= set(
        "".join(choices)
    ):
        return None
    words = _find_words(candidate, choices)
    letters = _letters(candidate, choices, words)
    if any(_is_marked(candidate, one) for one in letters):
        return None

    # steps 3 to 5: a leading letter, a lone letter, an option text
    stated = [one for one in letters if not words.is_denied(one.start, one.end)]
    letter = _find_leading_option(candidate, stated, choices)
    if letter is None:
        letter = _find_lone_option(stated)
    if letter is None:
        return None if letters and not stated else _find_option_text(candidate, words, choices)
    return None if letter in words.denied_options() else letter


def _find_leading_option(
    candidate: str, letters: Sequence["_Letter"], choices: Sequence[str]
) -> int | None:
    """The option of a letter that leads the candidate and is set off, if nothing behind it offers another one."""
    found = _LEADING.match(candidate)
    if found is None or not letters or letters[0].end > found.end():
        return None
    first, rest = letters[0].option, candidate[found.end() :]
    if plain(rest) == plain(choices[first]):
        return first
    others = [one for one in letters if one.option != first]
    are_only_discussed = all(_SPOKEN_OF.match(candidate, one.end) for one in others)
    return first if are_only_discussed and not (others and _HEDGE.search(rest)) else None


class _Words(NamedTuple):
    """The words of a candidate."""

    spans: Sequence[tuple[int, int]]
    options: Sequence[tuple[int, int, int]]
    """(option, first word, word behind it) of every occurrence of an option's text that is in no longer one."""
    is_denied: Callable[[int, int], bool]
    """Whether what is from a character up to another is denied."""

    def denied_options(self) -> set[int]:
        """The options whose text is denied somewhere."""
        places = (
            (option, self.spans[first][0], self.spans[end - 1][1])
            for option, first, end in self.options
        )
        return {option for option, start, end in places if self.is_denied(start, end)}


def _find_words(candidate: str, choices: Sequence[str]) -> _Words:
    spans = word_spans(candidate)
    options = _occurrences(word_values(candidate, spans), choices)
    quoted = {spans[place][0] for _, start, end in options for place in range(start, end)}
    denying = [span for span in denials(candidate, spans) if span[0] not in quoted]
    is_denied_at = find_denied(candidate, spans, denying)
    refused = {found.end() for found in _REFUSAL.finditer(candidate) if found.start() not in quoted}

    def is_denied(start: int, end: int) -> bool:
        return is_denied_at(start) or start in refused or _REFUTED.match(candidate, end) is not None

    return _Words(spans=spans, options=options, is_denied=is_denied)


def _occurrences(values: Sequence[str], choices: Sequence[str]) -> list[tuple[int, int, int]]:
    """(option, first word, word behind it) wherever the words spell the text of an option."""
    phrases = _phrases(tuple(choices))
    found = [
        (index, start, start + len(phrase))
        for start, value in enumerate(values)
        for index, phrase in phrases.get(value, ())
        if values[start : start + len(phrase)] == phrase
    ]
    # Each within the one before it if within any: they are in the order of their first word.
    outer, reached, began = [], 0, -1
    for one in sorted(found, key=lambda one: (one[1], -one[2])):
        if one[2] > reached or (one[1], one[2]) == (began, reached):
            outer.append(one)
            began, reached = one[1], one[2]
    return outer


@lru_cache(maxsize=1024)
def _phrases(choices: tuple[str, ...]) -> dict[str, list[tuple[int, list[str]]]]:
    """The options as words, each under its first word; what is mathematics is never looked for inside a text."""
    phrases: dict[str, list[tuple[int, list[str]]]] = {}
    for index, option in enumerate(choices):
        phrase = (
            [] if _OPTION_EXPRESSION.search(option) else word_values(option, word_spans(option))
        )
        if phrase:
            phrases.setdefault(phrase[0], []).append((index, phrase))
    return phrases


class _Letter(NamedTuple):
    """A capital that may be the letter of an option."""

    option: int
    start: int
    end: int
    alone: bool
    """It is no part of a list or of a compound."""


def _letters(candidate: str, choices: Sequence[str], words: _Words) -> list[_Letter]:
    """Every option letter that the candidate mentions, but for those in the texts of options, or in others like these."""
    letters, labels = [], _labels(tuple(choices))
    quoted = {
        place
        for option, first, end in words.options
        if len(choices[option].strip()) > 1
        for place in range(words.spans[first][0], words.spans[end - 1][1])
    }
    for found in _CAPITAL.finditer(candidate):
        index = LETTERS.index(found[1])
        if index >= len(choices) or found.start() in quoted:
            continue
        before = _WORD_BEFORE.search(candidate, max(0, found.start() - 40), found.start())
        if before is not None and before[1].casefold() in labels:
            continue
        as_word = found[1] in "AI" and _reads_as_word(candidate, found, choices[index])
        if as_word == "word":
            continue
        glued = is_glued(candidate, found.start(), -1) or is_glued(candidate, found.end() - 1, 1)
        letters.append(_Letter(index, *found.span(), alone=not as_word and not glued))
    return letters


@lru_cache(maxsize=1024)
def _labels(choices: tuple[str, ...]) -> frozenset[str]:
    """The words that are before a capital in the texts of options, such as "vitamin"."""
    return frozenset(label.casefold() for option in choices for label in _LABELLED.findall(option))


def _is_marked(candidate: str, letter: _Letter) -> bool:
    """True if a mark is right before a letter, or behind it and what closes it: a stroke, an accent, a joiner."""
    closing = _CLOSING.match(candidate, letter.end)
    behind = closing.end() if closing else letter.end
    beside = candidate[max(0, letter.start - 1) : letter.start] + candidate[behind : behind + 1]
    return any(
        unicodedata.category(character) in _MARKS and not character.isspace()
        for character in beside
    )


def _find_lone_option(letters: Sequence[_Letter]) -> int | None:
    """The only option that is mentioned by letter, if one of its mentions is a letter on its own."""
    mentioned = {one.option for one in letters}
    return mentioned.pop() if len(mentioned) == 1 and any(one.alone for one in letters) else None


def _reads_as_word(
    candidate: str, found: re.Match[str], option: str
) -> Literal["word", "list"] | None:
    """How to take an `A` or `I` that a word may follow: an article or pronoun, part of a list, or (None) a letter.

    "A chair" is a word. "A or B", and "A left" where option A is "left", may be lists: not to be credited, but not to
    be overlooked next to another letter either. "A, B" and "A B" are letters.
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


def _find_option_text(candidate: str, words: _Words, choices: Sequence[str]) -> int | None:
    """The only option whose text is stated, if one of its occurrences is a whole word."""
    if _EXPRESSION.search(candidate) or is_list_of_numbers(candidate, words.spans):
        return None
    if not words.options:
        zeros = [index for index, option in enumerate(choices) if parse_count(option) == 0]
        return zeros[0] if len(zeros) == 1 and parse_count(candidate) == 0 else None
    aside = _ASIDE.search(candidate)
    stated = [
        (index, start, end)
        for index, start, end in words.options
        if not words.is_denied(words.spans[start][0], words.spans[end - 1][1])
        and (aside is None or words.spans[start][0] < aside.start())
    ]
    named = {index for index, _, _ in stated}
    free = {
        index
        for index, start, end in stated
        if is_standalone(candidate, words.spans, start, end)
        and not is_bounded(candidate, words.spans, start, end)
    }
    one = named.pop() if len(named) == 1 and named == free else None
    return None if one in words.denied_options() else one
