"""Rules of lmms-eval for texts, reimplemented with their quirks. Each first removes the reasoning as lmms-eval does.

`lmms_letter` is its CV-Bench and BLINK rule; `lmms_reasoning` that of its reasoning variants.
"""

import re

from gpg_vl.answers.verdict import Verdict
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.options import judge_letter
from gpg_vl.eval.scorers.tags import first_block
from gpg_vl.eval.task import Doc

_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))
_LETTER = re.compile(r"[\(\s]*([A-Z])", re.IGNORECASE)
_END_NUMBER = re.compile(r"\b\d++(?>(?:\.\d++)?)$")
_NUMBER_LENGTH = 100  # characters of a line's end that may be its number
_LETTERS = "ABCDEFGH"
_TRIMMED = (",", ".", "!", "?", ";", ":", "'", '"')
_PHRASES = """
the answer is; answer is; the correct answer is; correct answer is; the answer; answer;
correct answer; the correct answer; the best answer is; best answer is; the best answer; best answer;
the option is; option is; the correct option is; correct option is; the choice is; choice is;
the correct choice is; correct choice is; i choose; i select; i pick; my answer is; my choice is
"""
_PHRASE_LIST = tuple(phrase.strip() for phrase in _PHRASES.split(";"))
_SUFFIXES = ((".", 5), (":", 4), (")", 3), (" ", 2), ("-", 1), ("_", 1), ("=", 1))


def strip_reasoning(text: str) -> str:
    """The text as lmms-eval passes it to its scorers: without reasoning blocks, but with `<answer>` tags.

    Per pair of tags, blocks from the first start to the next end are deleted; what an end tag without a start tag leaves
    over is the text behind the last one; a start tag that is never closed stays.
    """
    for start, end in _TAGS:
        kept, at = [], 0
        while (first := text.find(start, at)) >= 0 and (close := text.find(end, first)) >= 0:
            kept.append(text[at:first])
            at = close + len(end)
        text = "".join((*kept, text[at:]))
        if end in text and start not in text:
            text = text.rpartition(end)[2]
    return text.strip()


def lmms_letter(doc: Doc, response: Response) -> Verdict:
    """The first letter of the text, behind parentheses and blanks, in either case.

    The rule needs no word boundary, so prose counts as the first letter of its first word ("The answer is (B)" is T), and a
    text that starts with a tag or a backslash has no answer.
    """
    found = _LETTER.match(strip_reasoning(response.text))
    return judge_letter(doc, found[1].upper() if found else None)


def lmms_reasoning(doc: Doc, response: Response) -> Verdict:
    """The letter inside of the first `<answer>`, else of the last box, else a number at the end of a line.

    A letter without a tag is therefore wrong. On a mismatch the original compares both texts by math_verify, which reads
    nothing in a bare letter, so that this changes no score and is left out.
    """
    answer = reasoning_answer(strip_reasoning(response.text))
    return judge_letter(doc, (option_letter(answer) or answer) if answer else None)


def reasoning_answer(text: str) -> str:
    """The answer by the rule of lmms-eval's reasoning tasks, without one final period; "" if there is none."""
    answer = first_block(text, one_line=False)
    if answer is None and not (answer := _last_box(text)):
        ends = (
            line.rstrip().removesuffix(".").rstrip()[-_NUMBER_LENGTH:]
            for line in reversed(text.split("\n"))
        )
        answer = next((found[0] for end in ends if (found := _END_NUMBER.search(end))), "")
    return answer.strip().removesuffix(".").strip()


def option_letter(text: str) -> str:
    """A letter from A to H, by the most convincing of many patterns; "" if none occurs.

    Capitals only. A text that starts with a letter's capital names that option, whatever the word ("An apple" is A).
    """
    for mark in _TRIMMED:
        text = text.strip().strip(mark)
    padded = f" {text} "
    found: list[tuple[int, int, str]] = []  # priority, minus position, letter
    lowered = padded.lower()
    starts = [lowered.find(phrase) for phrase in _PHRASE_LIST if phrase in lowered]
    for number, letter in enumerate(_LETTERS, 1):
        places = [(priority, padded.rfind(letter + suffix)) for suffix, priority in _SUFFIXES]
        places += [(6, padded.rfind(f"({letter})")), (8, padded.rfind(f"{number}. {letter}"))]
        places += [(7, padded.find(letter, start)) for start in starts]
        places += [(10, 0)] if text.startswith(letter) else []
        places += [(9, len(padded) - 1)] if text.endswith(letter) else []
        found += [(priority, -place, letter) for priority, place in places if place >= 0]
    if not found:
        found = [(0, -padded.rfind(letter), letter) for letter in _LETTERS if letter in padded]
    return max(found, key=lambda one: one[:2])[2] if found else ""


def _last_box(text: str) -> str:
    r"""The content of the last `\boxed{` that is closed, braces counted."""
    boxes, start = [], text.find(r"\boxed{")
    opened: list[int | None] = []
    while 0 <= start < len(text):
        if text.startswith(r"\boxed{", start):
            opened.append(start)
            start += len(r"\boxed{")
            continue
        if text[start] == "{":
            opened.append(None)
        elif text[start] == "}" and opened and (box := opened.pop()) is not None:
            boxes.append((box, text[box + len(r"\boxed{") : start]))
        start += 1
    return max(boxes)[1] if boxes else ""
