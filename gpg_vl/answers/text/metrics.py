"""Published metrics of short texts: soft VQA accuracy, the relaxed accuracy of charts, and ANLS of documents.

Each is the owner's rule on a text as it is. The judges of `gpg_vl.answers.short_answer` are built on them and differ
where a metric can be collected without the right answer.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

MAX_CANDIDATE = 5_000
"""Characters of an answer that are looked at; a short answer is asked for."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"[0-9],[0-9]")
_FREE_PERIOD = re.compile(r"\.(?![0-9])")
_ARTICLES = frozenset({"a", "an", "the"})
_ZERO_TO_TEN = """zero one two three four five six seven eight nine ten"""
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ZERO_TO_TEN.split())} | {
    "none": "0"
}
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm i've
isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't oughtn't shan't should've shouldn't somebody's
someone's something's that's there'd there's they'd they'll they're they've wasn't we've weren't what'll what're what's
what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all
you'd you'll you're you've
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _WITH_APOSTROPHE.split()}
RELAXED = Fraction(5, 100)
ANLS_THRESHOLD = 0.5
FLOAT = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?")


def normalize_vqa(text: str, *, textvqa: bool = False) -> str:
    """The official normal form: no punctuation, digits for number words, no articles, contractions with apostrophes.

    A punctuation mark becomes a blank; it is deleted instead, everywhere in the text, if it touches a blank anywhere or
    if the text has a comma between digits. `textvqa` adds what that benchmark does before.
    """
    if textvqa:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result, grouped = text, bool(_DIGIT_COMMA.search(text))
    for mark in filter(text.__contains__, _PUNCTUATION):
        touches = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches or grouped else " ")
    words = (_NUMBER_WORDS.get(word, word) for word in _FREE_PERIOD.sub("", result).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_textvqa(text: str) -> str:
    """The normal form of TextVQA."""
    return normalize_vqa(text, textvqa=True)


def soft_accuracy(
    candidate: str, golds: Sequence[str], form: Callable[[str], str] = normalize_vqa
) -> float:
    """VQA accuracy: the mean, over leaving out each gold answer once, of min(1, equal answers / 3).

    Texts are equal if their `form` is, by default the published normal form, of which an article leaves nothing: there
    "a" and "the" are the same answer. With a single gold answer, equality. A blank answer is worth 0.
    """
    if not candidate.strip() or len(candidate) > MAX_CANDIDATE:
        return 0.0
    answer_value = form(candidate)
    count = sum(bool(gold.strip()) and _gold_form(gold, form) == answer_value for gold in golds)
    if len(golds) == 1:
        return float(count)
    others = len(golds) - count
    return (
        (count * min(1.0, (count - 1) / 3) + others * min(1.0, count / 3)) / len(golds)
        if count
        else 0.0
    )


@lru_cache(maxsize=8192)
def _gold_form(gold: str, form: Callable[[str], str]) -> str:
    return form(gold)


def relaxed_accuracy(candidate: str, gold: str) -> float:
    """The published rule of ChartQA, for evaluation only: a final `%` divides by 100; numbers within 5 %; else equal text."""
    answer_value, gold_value = _official_number(candidate), _official_number(gold)
    if answer_value is not None and gold_value is not None and gold_value != 0:
        return float(abs(answer_value - gold_value) <= RELAXED * abs(gold_value))
    return float(candidate.lower() == gold.lower())


def _official_number(text: str) -> Fraction | None:
    text = text.strip()
    percent = text.endswith("%")
    text = text.rstrip("%") if percent else text
    if len(text) > 100 or not FLOAT.fullmatch(text.strip()):
        return None
    return Fraction(text.strip()) / (100 if percent else 1)


def anls(candidate: str, golds: Sequence[str], *, raw_lengths: bool = False) -> float:
    """1 - distance / longer length for the nearest gold answer, 0 below 0.5. `raw_lengths` is the published rule."""
    return max((_similarity(candidate, gold, raw_lengths) for gold in golds), default=0.0)


def _similarity(candidate: str, gold: str, raw_lengths: bool) -> float:
    one, other = collapse_blanks(candidate), collapse_blanks(gold)
    longer = max(len(candidate), len(gold)) if raw_lengths else max(len(one), len(other))
    if not one or not other or abs(len(one) - len(other)) > (1 - ANLS_THRESHOLD) * longer:
        return 0.0  # the distance is at least the difference of the lengths
    similarity = 1 - levenshtein(one, other) / longer
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def collapse_blanks(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(one: str, other: str) -> int:
    """The least number of characters to insert, delete or replace. Time is the product of the lengths."""
    row = list(range(len(other) + 1))
    for i, character in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (character != wanted)),
            )
    return row[-1]
