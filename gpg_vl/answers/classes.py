"""Classification: finds which class of a known list an answer names.

The list is `example.choices`, or `example.meta["classes"]`. Names are compared without case, blanks, `_`, `-` and
punctuation, as data sets write `american_bulldog` where people write "American Bulldog".
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.text.latex import strip_latex
from gpg_vl.answers.text.numerals import is_denied, is_glued, word_spans
from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import UserError
from gpg_vl.types import Example

MAX_CANDIDATE = 5_000
"""Maximum length of an answer that is read; class names are short."""

# A point or comma between digits belongs to the number: "2.5" is not "25".
_BETWEEN = re.compile(
    r"(?<![0-9])[.,]|[.,](?![0-9])|[\s_\-‐‑–!\"#$%&'()*+/:;<=>?@\[\\\]^`{|}~。，；：！？…“”‘’]"
)

# "This is a rose", "the flower in the image is a desert rose".
_LEAD = re.compile(
    r"(?:this|that|it|the\b[^.,;]{0,60}?)\s+(?:is|appears\s+to\s+be|looks\s+like)(?:\s*:\s*|\s+)(?:(?:most\s+likely|probably|an?|the)\s+)*(?=\S)",
    re.IGNORECASE,
)


def judge(answer: str, example: Example) -> Verdict:
    """1.0 if the answer names the right class, and no other.

    Needs the list of all classes, as `choices` or in the column `classes` of the data.
    """
    classes = classes_of(example)
    gold, named = gold_class(example), find_class(answer, classes)
    return Verdict(
        score=float(named == gold),
        parsed=None if named is None else classes[named],
        gold=classes[gold],
    )


def classes_of(example: Example) -> tuple[str, ...]:
    """The names of all classes. Raises UserError that names the example if the data does not list them."""
    classes = example.choices or example.meta.get("classes")
    if (
        isinstance(classes, Sequence)
        and not isinstance(classes, str)
        and len(classes) > 1
        and all(isinstance(name, str) for name in classes)
    ):
        return tuple(classes)
    raise UserError(
        f"Example {example.id!r} has {'no list of classes' if classes is None else f'the classes {classes!r:.80}'}, but "
        f"the reward 'classification' needs the names of all classes, at least two. Give the data a column `choices` or "
        f"`classes` with the list of names."
    )


def gold_class(example: Example) -> int:
    """The index of the right class. Raises UserError that names the example if the gold answer is not one class."""
    classes = classes_of(example)
    gold = plain_name(gold_text(example.answer))
    index = _by_name(classes).get(gold) if gold else None
    if index is None or index < 0:
        raise UserError(
            f"The gold answer {example.answer!r} of example {example.id!r} is "
            f"{'the name of no class' if index is None else 'the name of two classes'} among the {len(classes)} listed "
            f"({', '.join(classes[:3])}, ...). The name of exactly one is allowed. Correct the answer or the list."
        )
    return index


def find_class(candidate: str, classes: Sequence[str]) -> int | None:
    """The index of the one class that a text names, or None. Linear in the length of the text, whatever it holds.

    1. The text is the name of exactly one class, but for case, blanks, `_`, `-` and punctuation.
    2. It is at most twice as long as one class that occurs in it in whole words, and no other class occurs in it, but for
       those inside of that name; and it denies nothing. "This is a" does not count; a name with a number, such as `A320`,
       may have one more word before it, its maker.
    """
    names = tuple(classes)
    by_name = _by_name(names)
    candidate = strip_latex(candidate)
    lead = _LEAD.match(candidate)
    candidate = candidate[lead.end() :] if lead else candidate
    plain = plain_name(candidate) if len(candidate) <= MAX_CANDIDATE else ""
    if not plain:
        return None
    index = by_name.get(plain)
    if index is not None:
        return index if index >= 0 else None
    spans = word_spans(candidate) if len(plain) <= 2 * max(map(len, by_name)) + 20 else []
    found = set() if is_denied(candidate, spans) else _find_class_text(candidate, spans, by_name)
    if len(found) != 1:
        return None
    name = found.pop()
    numbered = any(character.isdigit() for character in name) and plain.endswith(name)
    is_made = numbered and plain == plain_name(candidate[slice(*spans[0])]) + name
    fits = is_made or len(plain) <= 2 * len(name)
    return by_name[name] if by_name[name] >= 0 and fits else None


def plain_name(text: str) -> str:
    """Case-folded, without blanks, `_`, `-` and punctuation."""
    return _BETWEEN.sub("", text).casefold()


@lru_cache(maxsize=64)
def _by_name(classes: tuple[str, ...]) -> dict[str, int]:
    """The index of each plain name; -1 for a name that two classes share."""
    names: dict[str, int] = {}
    for index, name in enumerate(classes):
        plain = plain_name(name)
        if plain:
            names[plain] = -1 if plain in names else index
    return names


def _find_class_text(
    candidate: str, spans: Sequence[tuple[int, int]], by_name: dict[str, int]
) -> set[str]:
    """The plain names that runs of whole words spell, without those inside of a longer run that spells a name.

    Nothing is named if a name is only part of a compound somewhere ("rose-like"): it is not known what that means.
    """
    words = [plain_name(candidate[start:end]) for start, end in spans]
    longest = max(map(len, by_name))
    found: list[tuple[int, int, str]] = []
    for first in range(len(words)):
        joined = ""
        for last in range(first, len(words)):
            joined += words[last]
            if len(joined) > longest:
                break
            if joined in by_name:
                found.append((first, last, joined))
    outer = [
        (first, last, name)
        for first, last, name in found
        if not any(f <= first and last <= e and (f, e) != (first, last) for f, e, _ in found)
    ]
    tied = any(
        is_glued(candidate, spans[first][0], -1) or is_glued(candidate, spans[last][1] - 1, 1)
        for first, last, _ in outer
    )
    return set() if tied else {name for _, _, name in outer}
