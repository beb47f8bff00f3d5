"""Short free answers: soft VQA accuracy, relaxed accuracy for charts, and ANLS for documents.

`soft_accuracy`, `relaxed_accuracy` and `anls` are the published metrics, for evaluation. The rewards are built on them
and differ where the metric can be collected without the right answer; each says how.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

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
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3}){1,12}(?:\.[0-9]{1,40})?")

_TEN = {"answers": ["red"] * 6 + ["dark red"] * 4}
VQA_EXAMPLES = (
    Sample(response="<think>hm</think><answer>Red.</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>the dark red</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>red or dark red</answer>", answer="red", meta=_TEN),
    Sample(response="<answer>the</answer>", answer="red", meta=_TEN),
)
RELAXED_EXAMPLES = (
    Sample(response="<answer>102</answer>", answer="100"),
    Sample(response="<answer>1,020</answer>", answer="1000"),
    Sample(response="<answer>12</answer>", answer="12%"),
    Sample(response="<answer>106</answer>", answer="100"),
    Sample(response="<answer>95 to 105</answer>", answer="100"),
)
ANLS_EXAMPLES = (
    Sample(response="<answer>Grand  Total</answer>", answer="grand total"),
    Sample(response="<answer>grand totals</answer>", answer="grand total"),
    Sample(response="<answer>the grand total is the sum of all</answer>", answer="grand total"),
)


def _explain_with(
    read: Callable[[str], str | None],
) -> Callable[[Completion, Example], Explanation]:
    def explain(completion: Completion, example: Example) -> Explanation:
        return explanation(completion, read, " | ".join(dict.fromkeys(gold_answers(example))))

    return explain


def gold_answers(example: Example) -> tuple[str, ...]:
    """The accepted answers: the column `answers` of the data, as texts or as `{"answer": text}`, else the gold answer.

    Raises UserError that names the example if the column holds something else.
    """
    answers = example.meta.get("answers")
    if answers is None:
        return (gold_text(example.answer),)
    if isinstance(answers, Sequence) and not isinstance(answers, str) and answers:
        texts = [item.get("answer") if isinstance(item, Mapping) else item for item in answers]
        if all(isinstance(text, str) for text in texts):
            return tuple(str(text) for text in texts)
    raise UserError(
        f"Example {example.id!r} has the answers {answers!r:.80}. A list of texts, or of {{answer: text}}, is allowed. "
        f"Correct the column, or leave it out to compare with the gold answer alone."
    )


# --- soft VQA accuracy -----------------------------------------------------------------------------------------------


@explained(_explain_with(lambda text: compared_vqa(text) or None), VQA_EXAMPLES)
def vqa(completion: Completion, example: Example) -> float:
    """Soft VQA accuracy of the answer, as a share of the best that any of the accepted answers has.

    Without the share, a question on which ten people gave ten answers could not be answered with full marks, and the
    rewards of its group would be closer together than those of an easy one. The evaluation takes no share. The answers are
    in the column `answers`; without it there is one, the gold answer.
    """
    golds = gold_answers(example)
    best = _best_soft_accuracy(golds)
    if best == 0.0:
        raise UserError(
            f"The answers of example {example.id!r} are empty: {golds!r:.80}. Correct the row."
        )
    candidate = extract_answer(completion.response).candidate
    return (
        0.0 if candidate is None else min(1.0, soft_accuracy(candidate, golds, compared_vqa) / best)
    )


def normalize_vqa(text: str, *, textvqa: bool = False) -> str:
    """The official normal form: no punctuation, digits for number words, no articles, contractions with apostrophes.

    A punctuation mark becomes a blank; it is deleted instead, everywhere in the text, if it touches a blank anywhere or
    if the text has a comma between digits. `textvqa` adds what that benchmark does before.
    """
    if textvqa:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result, grouped = text, bool(_DIGIT_COMMA.search(text))
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches or grouped else " ")
    words = (_NUMBER_WORDS.get(word, word) for word in _FREE_PERIOD.sub("", result).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_textvqa(text: str) -> str:
    """The normal form of TextVQA."""
    return normalize_vqa(text, textvqa=True)


def compared_vqa(text: str) -> str:
    """The normal form; where it leaves nothing ("a", "-"), the text itself but for case, blanks and a final point.

    So the answer to "What letter is it?" may be "A", and no article is as good as another one.
    """
    return normalize_vqa(text) or _plain(text)


def compared_textvqa(text: str) -> str:
    """The same with the normal form of TextVQA."""
    return normalize_textvqa(text) or _plain(text)


def soft_accuracy(
    candidate: str, golds: Sequence[str], form: Callable[[str], str] = normalize_vqa
) -> float:
    """VQA accuracy: the mean, over leaving out each gold answer once, of min(1, equal answers / 3).

    Texts are equal if their `form` is, by default the published normal form, of which an article leaves nothing: there
    "a" and "the" are the same answer. With a single gold answer, equality. A blank answer is worth 0.
    """
    if not candidate.strip() or len(candidate) > MAX_CANDIDATE:
        return 0.0
    mine = form(candidate)
    count = sum(bool(gold.strip()) and _gold_form(gold, form) == mine for gold in golds)
    if len(golds) == 1:
        return float(count)
    others = len(golds) - count
    return (
        (count * min(1.0, (count - 1) / 3) + others * min(1.0, count / 3)) / len(golds)
        if count
        else 0.0
    )


@lru_cache(maxsize=1024)
def _best_soft_accuracy(golds: tuple[str, ...]) -> float:
    return max(soft_accuracy(gold, golds, compared_vqa) for gold in golds)


@lru_cache(maxsize=8192)
def _gold_form(gold: str, form: Callable[[str], str]) -> str:
    return form(gold)


# --- relaxed accuracy ------------------------------------------------------------------------------------------------


@explained(_explain_with(lambda text: text), RELAXED_EXAMPLES)
def vqa_relaxed(completion: Completion, example: Example) -> float:
    """1.0 if the answer is a number within 5 % of the gold number, or else the gold text but for case; else 0.0.

    The published rule reads `12%` as 0.12 and does not know `$` or `1,234`, so that "12" for "12%" is wrong; here they
    are read, and a percent sign may be left out. A range or a list is no number.
    """
    candidate = extract_answer(completion.response).candidate
    return float(
        candidate is not None
        and any(match_relaxed(candidate, gold) for gold in gold_answers(example))
    )


def match_relaxed(candidate: str, gold: str) -> bool:
    """True if both are numbers at most 5 % of `gold` apart, or the same text but for case, blanks and a final point."""
    mine, right = _amount(candidate), _amount(gold)
    if mine is None or right is None:
        plain = _plain(candidate)
        return bool(plain) and plain == _plain(gold)
    readings = {mine.value} if mine.percent == right.percent else {mine.value, mine.true_value}
    golds = {right.value} if mine.percent == right.percent else {right.value, right.true_value}
    return any(abs(one - other) <= RELAXED * abs(other) for one in readings for other in golds)


def relaxed_accuracy(candidate: str, gold: str) -> float:
    """The published rule of ChartQA, for evaluation only: a final `%` divides by 100; numbers within 5 %; else equal text."""
    mine, right = _official_number(candidate), _official_number(gold)
    if mine is not None and right is not None and right != 0:
        return float(abs(mine - right) <= RELAXED * abs(right))
    return float(candidate.lower() == gold.lower())


class _Amount(NamedTuple):
    """A stated number, with and without what its percent sign means."""

    value: Fraction
    percent: bool

    @property
    def true_value(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


def _amount(text: str) -> _Amount | None:
    text = _plain(text[:MAX_CANDIDATE])
    percent = text.endswith("%")
    text = text.removesuffix("%").rstrip().lstrip("$€£¥").lstrip()
    if len(text) > 100:
        return None
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _Amount(Fraction(text), percent) if _FLOAT.fullmatch(text) else None


def _official_number(text: str) -> Fraction | None:
    text = text.strip()
    percent = text.endswith("%")
    text = text.rstrip("%") if percent else text
    if len(text) > 100 or not _FLOAT.fullmatch(text.strip()):
        return None
    return Fraction(text.strip()) / (100 if percent else 1)


def _plain(text: str) -> str:
    text = " ".join(text.split())
    return (text.removesuffix(".") or text).casefold()


# --- ANLS ------------------------------------------------------------------------------------------------------------


@explained(_explain_with(lambda text: _collapsed(text) or None), ANLS_EXAMPLES)
def vqa_anls(completion: Completion, example: Example) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer; 0.0 below 0.5.

    The published rule divides by the length with all blanks counted, so that a text padded with blanks resembles any
    answer; here runs of blanks count as one.
    """
    candidate = extract_answer(completion.response).candidate
    return 0.0 if candidate is None else anls(candidate, gold_answers(example))


def anls(candidate: str, golds: Sequence[str], *, raw_lengths: bool = False) -> float:
    """1 - distance / longer length for the nearest gold answer, 0 below 0.5. `raw_lengths` is the published rule."""
    return max((_similarity(candidate, gold, raw_lengths) for gold in golds), default=0.0)


def _similarity(candidate: str, gold: str, raw_lengths: bool) -> float:
    one, other = _collapsed(candidate), _collapsed(gold)
    longer = max(len(candidate), len(gold)) if raw_lengths else max(len(one), len(other))
    if not one or not other or abs(len(one) - len(other)) > (1 - ANLS_THRESHOLD) * longer:
        return 0.0  # the distance is at least the difference of the lengths
    similarity = 1 - levenshtein(one, other) / longer
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _collapsed(text: str) -> str:
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
