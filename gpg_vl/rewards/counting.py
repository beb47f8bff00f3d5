"""Counting: the one whole number that an answer states, and the reward for stating the right one."""

import re

from gpg_vl.errors import UserError
from gpg_vl.rewards.explain import Explanation, Sample, explained, explanation
from gpg_vl.rewards.numerals import is_number, is_qualified, stands_free, word_spans, word_values
from gpg_vl.rewards.parse import extract_answer, gold_text
from gpg_vl.types import Completion, Example

MAX_CANDIDATE = 5_000
"""Characters of an answer that are looked at: in a longer one no number could be told to be the answer."""

_WHOLE = re.compile(r"[0-9]{1,18}")
# Signs that make more of a number than a count of things: "2+2", "√4", "4²", "<5".
_OPERATION = re.compile(
    r"[0-9]\s*+[-−–*]\s*+[0-9]|[√∛^×÷±+<>≤≥≠≈~π/\\\u00b2\u00b3\u00b9\u2070-\u209f\u00bc-\u00be\u2150-\u218b]"
)

EXAMPLES = (
    Sample(response="<think>3 red, 1 blue</think><answer>4</answer>", answer="4"),
    Sample(response="<answer>There are four items.</answer>", answer="4"),
    Sample(response="<answer> 4.0 </answer>", answer="4"),
    Sample(response="<answer>4 or 5</answer>", answer="4"),
    Sample(response="<answer>14</answer>", answer="4"),
    Sample(response="<think>there are 4</think><answer></answer>", answer="4"),
)


def explain(completion: Completion, example: Example) -> Explanation:
    """How `counting` reads a completion."""
    return explanation(completion, lambda text: _shown(parse_count(text)), str(gold_count(example)))


@explained(explain, EXAMPLES)
def counting(completion: Completion, example: Example) -> float:
    """1.0 if the answer states the gold number, and no other, else 0.0.

    `4`, `4.0`, `four`, `1,234` and "There are 4 items." state one number; "4 or 5", "3 red and 1 blue", "-4", "4.5",
    "not 4" and "2+2" state none that could be credited. Digits of other scripts are not read.
    """
    gold = str(gold_count(example))
    candidate = extract_answer(completion.response).candidate
    return float(candidate is not None and match_count(candidate, gold))


def gold_count(example: Example) -> int:
    """The gold number. Raises UserError that names the example if the gold answer states none."""
    count = parse_count(gold_text(example.answer))
    if count is None:
        raise UserError(
            f"The gold answer {example.answer!r} of example {example.id!r} is not a count. A whole number such as 4 is "
            f"allowed. Correct the row, or use the reward 'math' for other numbers."
        )
    return count


def match_count(candidate: str, gold: str) -> bool:
    """True if both texts state the same whole number."""
    count = parse_count(candidate)
    return count is not None and count == parse_count(gold_text(gold))


def parse_count(text: str) -> int | None:
    """The one whole number, not negative, that a text states; None if it states none, several, or something else.

    The same number may be stated twice, as in "four (4)". Total, and linear in the length of the text.
    """
    if len(text) > MAX_CANDIDATE or _OPERATION.search(text):
        return None
    spans = word_spans(text)
    if is_qualified(text, spans):
        return None
    values = word_values(text, spans)
    stated = set()
    for place, (start, end) in enumerate(spans):
        if not is_number(text[start:end].casefold()):
            if any(character.isnumeric() for character in text[start:end]):
                return None  # "3rd", "4x", "①"
            continue
        if not stands_free(text, spans, place, place + 1) or not _WHOLE.fullmatch(values[place]):
            return None
        stated.add(int(values[place]))
    return stated.pop() if len(stated) == 1 else None


def _shown(count: int | None) -> str | None:
    return None if count is None else str(count)
