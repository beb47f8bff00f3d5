"""Mathematics: whether an answer is the same number, expression, set, interval or equation as the gold answer.

The reward is registered as `math`. What an answer states is found here; whether two statements are the same is decided
in `expressions`, at last by math-verify.
"""

import re

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.expressions import equal, normalize, readable, right_side
from gpg_vl.rewards.numerals import hides, is_qualified, word_spans
from gpg_vl.rewards.parse import extract_answer, gold_text, last_boxed
from gpg_vl.rewards.prose import is_factor, is_sentence, is_word, without_unit
from gpg_vl.types import Completion, Example

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
    r"(?<=[0-9}\s])\s*\\(?:text|mathrm|mbox)\s*\{\s*[A-Za-z][A-Za-z. /]*\}(?:\s*\^\s*\{?-?[1-4]\}?)?\s*$"
)
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree(?![A-Za-z])|\bdegrees?\b)\s*$")
_NUMBER = re.compile(
    r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?|-?\.[0-9]+"
)

EXAMPLES = (
    Sample(
        response=r"<think>so</think>The answer is $\boxed{\dfrac{1}{2}}$.", answer=r"\frac{1}{2}"
    ),
    Sample(response="<answer>0.5</answer>", answer=r"\frac{1}{2}"),
    Sample(response=r"<answer>$y = (x+1)^2$</answer>", answer="x^2+2x+1"),
    Sample(response=r"<answer>-6 and 6</answer>", answer=r"\{6,-6\}"),
    Sample(response=r"<answer>[1,2)</answer>", answer="(1,2]"),
    Sample(response="<think>so</think>48 + 24 = 72\n#### 72", answer="72"),
    Sample(response="<answer>1, 2, 3</answer>", answer="3"),
    Sample(response=r"<answer>9^{9^{9}}</answer>", answer="3"),
)


def explain(completion: Completion, example: Example) -> Explanation:
    """How `math` reads a completion."""
    return explanation(completion, stated, gold_expression(example))


@explained(explain, EXAMPLES)
def math(completion: Completion, example: Example) -> float:
    """1.0 if the answer is mathematically the gold answer, else 0.0.

    Numbers, fractions, roots, expressions with letters, sets, tuples, intervals, equations and matrices are compared as
    math-verify does: `1/2` is `0.5`, `(x+1)^2` is `x^2+2x+1`, `\\{6,-6\\}` has no order, `x=5` is `5`. A list is not its
    last member. A decimal must agree with an irrational or periodic gold to six places and a relative 2e-6. A unit behind a
    number is passed over, `11 cm` is `11`, but `3 xy` is not `3`.
    """
    gold = gold_expression(example)
    candidate = extract_answer(completion.response).candidate
    return float(candidate is not None and _matches(candidate, gold))


def gold_expression(example: Example) -> str:
    """The gold expression, normalised. Raises UserError that names the example if it cannot be read."""
    gold = stated(gold_text(example.answer))
    if gold is None or not (readable(gold) or _is_word(gold)):
        raise UserError(
            f"The gold answer {example.answer!r:.200} of example {example.id!r} cannot be read as mathematics. An expression "
            f"in LaTeX such as \\frac{{1}}{{2}}, or a text with one \\boxed{{}}, is allowed. Correct the row."
        )
    return gold


def match_math(candidate: str, gold: str) -> bool:
    """True if the two answers mean the same. Total; what cannot be read, or would take long to compare, is not equal."""
    right = stated(gold_text(gold))
    return right is not None and _matches(candidate, right)


def _matches(candidate: str, gold: str) -> bool:
    mine = stated(candidate)
    if mine is None:
        return False
    if "=" in mine and "=" not in gold:
        mine = right_side(mine)
    elif "=" in gold and "=" not in mine:
        gold = right_side(gold) or gold
    if _is_word(gold):
        return mine is not None and _letters(mine) == _letters(gold)
    return mine is not None and equal(mine, gold)


def stated(candidate: str) -> str | None:
    """The expression that an answer states, normalised, without units; None if it states none or several.

    What stands behind the last `####`, as the answers of GSM8K are written, or else all of it is looked at. A box in there
    counts as the answer, then the only formula between dollar signs, then the whole text if it is a formula, then the only
    number of a sentence. Letters are variables unless they spell words: `2xy + 1` is a formula.
    """
    marked = candidate.rpartition("####")[2]
    inner = last_boxed(marked) or marked
    if len(inner) > MAX_CANDIDATE or hides(inner):
        return None
    formula = _formula(inner.strip().strip("*").strip())
    return None if formula is None else normalize(_without_unit(formula)) or None


def _formula(text: str) -> str | None:
    """What is stated in a text without a box, not yet normalised; None if it is nothing, or several things."""
    spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(text)]
    if spans:
        rest = _SPAN.sub("", text)
        if len(spans) > 1:
            return ", ".join(spans) if _LIST_WORDS.fullmatch(rest.strip(" .")) else None
        qualified = any(character.isdigit() for character in rest) or is_qualified(
            rest, word_spans(rest)
        )
        return None if qualified else spans[0]
    if not is_sentence(_without_unit(text)):
        return text
    if not any(character.isdigit() for character in text):
        return text  # an answer in words
    if is_qualified(text, word_spans(text)):
        return None
    found = list(_NUMBER.finditer(text))
    numbers = {number[0].lstrip("$") for number in found}
    if (
        len(numbers) != 1
        or re.search(r"[√π^\\=+*]", text)
        or any(is_factor(text, number.end()) for number in found)
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
