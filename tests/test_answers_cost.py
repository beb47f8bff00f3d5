"""What an ordinary answer costs, counted: patterns that are tried on it, and how often a gold answer is read."""

import re

import pytest

from gpg_vl.answers import box, boxes, count, expression, extract, quantity
from gpg_vl.answers.text import markdown
from gpg_vl.types import Example

WORK = "The red one stands in front of the blue box, and the lamp is behind both. " * 20
ORDINARY = {
    "a tag": f"<think>{WORK}</think>\n<answer>(B)</answer>",
    "a box": f"{WORK}So we get $\\boxed{{12}}$.",
    "a phrase": f"{WORK}\nThe answer is 12.",
    "nothing but the answer": "12",
}
A_BOX = "(100,200),(300,400)"
MOST = {"a tag": 3, "a box": 2, "a phrase": 6, "nothing but the answer": 0}
"""How many times a pattern is tried. One more sort of marker adds none where its word is absent."""


class Counted:
    """A pattern that writes down each time that it is tried."""

    def __init__(self, pattern: re.Pattern[str], tried: list[str]) -> None:
        self.pattern, self.groups = pattern.pattern, pattern.groups
        self._pattern, self._tried = pattern, tried

    def _try(self, method, *given):
        self._tried.append(self.pattern)
        return getattr(self._pattern, method)(*given)

    def match(self, *given):
        return self._try("match", *given)

    def search(self, *given):
        return self._try("search", *given)

    def finditer(self, *given):
        return self._try("finditer", *given)

    def sub(self, *given):
        return self._try("sub", *given)


@pytest.fixture
def tried(monkeypatch):
    found: list[str] = []
    for module in (extract, markdown):
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, Counted(value, found))
    patterns = {
        word: tuple(Counted(one, found) for one in several)
        for word, several in extract._PATTERNS.items()
    }
    monkeypatch.setattr(extract, "_PATTERNS", patterns)
    return found


@pytest.mark.parametrize("name", ORDINARY)
def test_few_patterns_are_tried_on_an_ordinary_response(name, tried):
    extracted = extract.extract_answer(ORDINARY[name])

    assert extracted.candidate in {"(B)", "12", "12."}
    assert len(tried) <= MOST[name], tried


@pytest.mark.parametrize(
    ("module", "answer", "gold"),
    [
        (count, "There are 4 cups.", "4"),
        (quantity, "5 cm", "5cm"),
        (expression, "0.5", r"\frac{1}{2}"),
        (box, A_BOX, A_BOX),
        (boxes, f"[{A_BOX}]", A_BOX),
    ],
)
def test_a_gold_answer_is_read_once_for_all_completions_of_its_group(
    module, answer, gold, monkeypatch
):
    read: list[str] = []

    def counted(text):
        read.append(text)
        return extract.gold_text(text)

    monkeypatch.setattr(module, "gold_text", counted)
    gold = f"{gold} "  # no other test has this spelling
    example = Example(id="7", prompt="?", answer=gold, meta={"coordinates": "rel1000"})

    scores = {module.judge(answer, example).score for _ in range(8)}

    assert scores == {1.0}
    assert read == [gold]
