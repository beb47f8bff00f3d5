"""Words and numerals in running text: where they are, their values, and whether they are words of their own.

Numerals are ASCII digits, with thousands separators and a decimal point, or English number words up to twenty. Digits of
other scripts, superscripts and fractions written as one character are not numerals: reading them is guessing.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction

# An accent, an invisible character or a control character belongs to its word: what looks like another word is another.
_MARKS = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u0300-\u036f\u061c\u1ab0-\u1aff\u1dc0-\u1dff"
    r"\u20d0-\u20ff\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
)
_MARK = re.compile(f"[{_MARKS}]")
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts without blanks between words, as the inside of a class of characters: each character counts as a word."""
# The sign of an angle or a triangle belongs to its letter.
_LETTER = rf"[^\W_{CJK}]|[∠△]|[{_MARKS}]"
_RUN = re.compile(
    rf"[{CJK}]|(?:(?<![\w.])\.(?=[0-9]))?(?:{_LETTER})+(?:(?<=[0-9])[.,](?=[0-9])(?:{_LETTER})+)*"
)
_NUMERAL = re.compile(r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.))(?:\.(?P<part>[0-9]+))?")
_PART = re.compile(r"[^.,]+")
_UP_TO_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_UP_TO_TWENTY.split())}
_TENS = {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)  # noqa: SIM905
}
_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NUMBER_PARTS = frozenset(_TENS) | frozenset(_SCALES)
_SMALL = "|".join(sorted({*_NUMBER_WORDS, *_TENS}, key=len, reverse=True))
_SCALE = "|".join(_SCALES)
_SPELLED = re.compile(
    rf"\b(?:(?:{_SMALL})\b|(?P<digits>[0-9]{{1,12}}(?:\.[0-9]{{1,12}})?)(?=[ -](?:{_SCALE})\b))"
    rf"(?:(?:[ -]|[ ]and[ ])(?:{_SMALL}|{_SCALE})\b)*",
    re.IGNORECASE,
)
_LETTER_OF_WORDS = re.compile(r"[A-Za-z]")
_DENIAL_WORDS = """
not no nor neither never none without except excluding unlike cannot isnt arent wasnt dont
"""
_DENIALS = frozenset(_DENIAL_WORDS.split())
_DENIED = frozenset({"'t", "’t"})
# Not the point and the comma of a number; a colon may be between a denial and what it denies ("not: B").
_CLAUSE_END = re.compile(
    r"[;!?\r\n。，；！？…]|[.,](?![0-9])|\b(?:but|so|thus|hence|therefore|because|rather|instead|then)\b",
    re.IGNORECASE,
)
_BOUNDS = frozenset("than least most more less fewer between range either".split())  # noqa: SIM905
_BOUNDS_BEFORE = _BOUNDS | {"over", "under", "above", "below", "exceeds"}
_SUMS = frozenset({"add", "adds", "sum", "sums"})
_MORE = frozenset("more less fewer above over below under higher lower greater so".split())  # noqa: SIM905
_LINKS = frozenset({"or", "and", "to", "through", "till", "until"})
_REJECTED = re.compile(
    r"\b(?:is|are|was|were|be)\s+(?:wrong|incorrect|false|impossible|mistaken)\b", re.IGNORECASE
)
# What makes another number of the one behind it, or before it: "minus 5", "the square root of 5", "5 squared".
_CHANGES_BEHIND_IT = re.compile(
    r"\b(?:minus|negative|twice|double|triple|half|times|plus|by|(?:root|log|logarithm|ln|sine|cosine|tangent|sin|cos|tan"
    r"|square|cube|inverse|reciprocal|factorial|power|multiples?|opposite|percent|thirds?|quarters?|remainder)\s+of)\s+[^\w\s]*$",
    re.IGNORECASE,
)
_CHANGES_BEFORE_IT = re.compile(
    r"\s*(?:squared|cubed|factorial|tens|hundreds|thousands|millions|billions|dozens?|pairs|halves|thirds|quarters|percent\s+of"
    r"|hundred|thousand|million|billion|trillion|minus|and\s+a\s+(?:half|quarter|third))\b",
    re.IGNORECASE,
)
_GLUE = frozenset("-‐‑–−/'’&_")
_DIGIT_GLUE = frozenset(":.,+*")


def has_hidden_characters(text: str) -> bool:
    """True if a text holds accents, or characters that are not seen: it may not say what it shows."""
    return _MARK.search(text) is not None


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words are. "1,234", "1.5" and ".5" are one; "1,2,3" and "1.2.3" are lists and fall apart."""
    spans: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        if run[0].isalpha() or _NUMERAL.fullmatch(run[0]):
            spans.append(run.span())
        else:
            spans += (part.span() for part in _PART.finditer(text, *run.span()))
    return spans


def word_values(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The words case-folded, and numerals in one spelling: `-5`, `12%`, and 3 for `three` and `3.0`."""
    return [_value(text, start, end) for start, end in spans]


def _value(text: str, start: int, end: int) -> str:
    word = text[start:end].casefold()
    numeral = _NUMERAL.fullmatch(word)
    if numeral is None:
        return _NUMBER_WORDS.get(word, word)
    negative = text[start - 1 : start] in {"-", "−"} and not is_glued(text, start, -1)
    percent = text[end : end + 2].lstrip(" ").startswith("%")
    part = (numeral["part"] or "").rstrip("0")
    whole = (
        numeral["whole"].replace(",", "").lstrip("0") or "0"
    )  # not int(), which refuses 5,000 digits
    return (
        ("-" if negative else "") + whole + ("." + part if part else "") + ("%" if percent else "")
    )


def is_standalone(text: str, spans: Sequence[tuple[int, int]], first: int, end: int) -> bool:
    """True if nothing next to the words `first` to `end` makes them mean something else, as in "x-5" or "twenty one"."""
    left, right = spans[first], spans[end - 1]
    if is_glued(text, left[0], -1) or is_glued(text, right[1] - 1, 1):
        return False
    return not (
        (first > 0 and _one_number(text, spans[first - 1], left))
        or (end < len(spans) and _one_number(text, right, spans[end]))
    )


def _one_number(text: str, left: tuple[int, int], right: tuple[int, int]) -> bool:
    """True for two numerals with only blanks between them."""
    between = text[left[1] : right[0]]
    return between.isspace() and all(
        is_number(text[slice(*span)].casefold()) for span in (left, right)
    )


def is_number(word: str) -> bool:
    """True for a numeral and for a number word, also one that is only part of a number, such as `hundred`."""
    return word in _NUMBER_WORDS or word in _NUMBER_PARTS or _NUMERAL.fullmatch(word) is not None


def is_bounded(text: str, spans: Sequence[tuple[int, int]], first: int, end: int) -> bool:
    """True if the words `first` to `end` are a number that is a bound, or one of two: "more than 3", "3 or 4", "3+".

    Only the words right next to it are looked at.
    """

    def word(place: int) -> str:
        return text[slice(*spans[place])].casefold() if 0 <= place < len(spans) else ""

    if not (is_number(word(first)) and is_number(word(end - 1))):
        return False
    before, behind = word(first - 1), word(end)
    return (
        before in _BOUNDS_BEFORE
        or (
            before == "to" and word(first - 2) == "up" and word(first - 3) not in _SUMS
        )  # "it adds up to 3" states 3
        or (before in _LINKS and is_number(word(first - 2)))
        or (behind in _LINKS and (is_number(word(end + 1)) or word(end + 1) in _MORE))
        or behind == "plus"
        or text.startswith("+", spans[end - 1][1])
    )


def is_list_of_numbers(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """True if all words are numbers, and not all the same: "3, 4", but not "three (3)"."""
    values = word_values(text, spans)
    return all(is_number(text[slice(*span)].casefold()) for span in spans) and len(set(values)) > 1


def is_glued(text: str, edge: int, step: int) -> bool:
    """True if the character beyond `edge` ties it to another word, as in "x-5", "5/6", "B's", "1.2.3", "10:30"."""
    tie, beyond = edge + step, edge + 2 * step
    if min(tie, beyond) < 0 or max(tie, beyond) >= len(text) or not text[beyond].isalnum():
        return False
    return text[tie] in _GLUE or (
        text[tie] in _DIGIT_GLUE and text[edge].isdigit() and text[beyond].isdigit()
    )


def denials(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the words are that deny something: "not", "no", "neither", "isn't"."""
    found = []
    for start, end in spans:
        word = text[start:end].casefold()
        if word[-1:] == "n" and text[end : end + 2] in _DENIED:
            found.append((start, end + 2))
        elif word in _DENIALS:
            found.append((start, end))
    return found


def is_denied(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """True if a text denies something, so that naming a thing in it is not answering with it: "not a rose", "isn't 4"."""
    return bool(denials(text, spans))


def find_denied(
    text: str, spans: Sequence[tuple[int, int]], denying: Sequence[tuple[int, int]]
) -> Callable[[int], bool]:
    """Whether a place in the text is in what one of its `denying` words denies: the rest of the clause behind it.

    The next word always is, whatever is between ("not ... B"); but "No, B" and "No. B" do not deny B.
    """
    clause_ends = [*(found.start() for found in _CLAUSE_END.finditer(text)), len(text)]
    words = [start for start, _ in spans]
    first, last = [], []  # of each denied stretch; both rise
    for start, end in denying:
        following = bisect_left(words, end)
        least = (
            end
            if text[start:end].casefold() == "no" or following == len(words)
            else words[following]
        )
        first.append(end)
        last.append(clause_ends[bisect_left(clause_ends, least)])

    def is_denied_at(place: int) -> bool:
        nearest = bisect_right(first, place) - 1
        return nearest >= 0 and place <= last[nearest]

    return is_denied_at


def is_qualified(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """True if a text denies or bounds a number instead of stating it: "not 4", "at least 4", "more than 4"."""
    return (
        is_denied(text, spans)
        or any(text[start:end].casefold() in _BOUNDS for start, end in spans)
        or is_rejected(text)
    )


def is_rejected(text: str) -> bool:
    """True if a text says that something is wrong: "5 is wrong"."""
    return _REJECTED.search(text) is not None


def is_changed(text: str, start: int, end: int) -> bool:
    """True if words next to a number make another one of it: "minus 5", "the square root of 5", "5 squared"."""
    before = _CHANGES_BEHIND_IT.search(text, max(0, start - 40), start)
    return before is not None or _CHANGES_BEFORE_IT.match(text, end) is not None


def with_digits(text: str, *, words: bool = True) -> str:
    """The text with the numbers that are spelled in English as digits: `21` for "twenty-one", `5000000` for "5 million".

    `words`: also those that begin with a word.
    """
    if not _LETTER_OF_WORDS.search(text):
        return text
    if words:
        return _SPELLED.sub(_digits, text)
    return _SPELLED.sub(lambda found: _digits(found) if found["digits"] else found[0], text)


def _digits(found: re.Match[str]) -> str:
    """The digits of a run of number words, or the run itself if it is no one number, as "four five" is none."""
    words = [word for word in re.split(r"[ -]", found[0].lower()) if word != "and"]
    total, group, last = Fraction(0), Fraction(0), 10**18
    for word in words:
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100 or scale == 12:
                group = (group or Fraction(1)) * scale
            else:
                total, group = total + (group or Fraction(1)) * scale, Fraction(0)
            last = scale
            continue
        value = Fraction(_TENS.get(word) or _NUMBER_WORDS.get(word) or word)
        tens = group % 100
        if value >= last or (tens and not (value < 10 and tens >= 20 and tens % 10 == 0)):
            return found[0]
        group, last = group + value, 10 if value >= 20 else 1
    total += group
    return str(total) if total.denominator == 1 else format(float(total), "g")
