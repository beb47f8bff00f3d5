"""From the text of a response to the one piece of it that counts as the answer.

The order is the same for every strict reward and scorer: the text after the reasoning; there the last complete
`<answer>` block; else the last `\\boxed{}`; else what follows the last "answer is" or "answer:"; else the whole text.
Reasoning stands in `<think>`, `<thinking>`, `<analysis>` or `<reasoning>`, in any case: the four are one and the same tag,
so that `<thinking>` may be closed by `</think>`. What is never closed is reasoning to the end.
Every step is one pass over the text, so a response of a million hostile characters costs no more than its length.
"""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Step = Literal["answer", "boxed", "phrase", "text", "none"]

_OPENED = re.compile(r"<(?:think|thinking|analysis|reasoning)>", re.IGNORECASE | re.ASCII)
_CLOSED = re.compile(r"</(?:think|thinking|analysis|reasoning)>", re.IGNORECASE | re.ASCII)
_PHRASE = re.compile(r"\banswer(?:[ \t]+is\b[ \t]*:?|[ \t]*:)", re.IGNORECASE)
_LINE_END = re.compile(r"[\r\n]")
# A box, a pair that is no brace, or a brace. `\\boxed` in doubled backslashes (JSON habits) is still a box.
_BOX_TOKEN = re.compile(
    r"\\boxed(?![A-Za-z])[ \t]*(?P<start>\{|(?=[^\s{}$]))?|\\\\(?!boxed)|\\[{}]|[{}]"
)
_BARE = re.compile(r"[^\s{}$]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What a response answers, and how that was found.

    Example: `<think>hm</think><answer>(B)</answer>` gives `Extracted(candidate="(B)", step="answer")`.
    """

    candidate: str | None
    """The answer without outer blanks, never empty. None: unanswered."""
    step: Step
    """The step that decided; `answer` without a candidate if the block is empty or open, `none` if nothing was left."""
    unclosed_think: bool = False
    """A reasoning block was opened and not closed. Then only a complete `<answer>` block can answer."""
    truncated: bool = False
    """The last `<answer>` was opened and not closed."""
    several: bool = False
    """There is more than one complete `<answer>` block after the reasoning; the last one counts."""


def extract_answer(text: str, *, prefilled_think: bool = False) -> Extracted:
    """Find the answer in a response. Total: any text has a result, in time proportional to its length.

    `prefilled_think` says that the prompt had opened the reasoning and that `text` lacks the tag; for a text that contains
    it, such as `Completion.response`, the flag changes nothing.
    """
    reasoned = 0
    for closed in _CLOSED.finditer(text):
        reasoned = closed.end()
    rest = text[reasoned:]
    unclosed = _OPENED.search(rest) is not None or (prefilled_think and not reasoned)
    blocks = _answer_blocks(rest)
    if blocks.complete or blocks.unclosed:
        return Extracted(
            candidate=blocks.last.strip() or None,
            step="answer",
            unclosed_think=unclosed,
            truncated=blocks.unclosed,
            several=blocks.complete > 1,
        )
    if unclosed:
        return Extracted(candidate=None, step="none", unclosed_think=True)
    candidates: tuple[tuple[Step, str], ...] = (
        ("boxed", last_boxed(rest)),
        ("phrase", _last_phrase(rest)),
        ("text", rest.strip()),
    )
    for step, candidate in candidates:
        if candidate:
            return Extracted(candidate=candidate, step=step)
    return Extracted(candidate=None, step="none")


def gold_text(answer: str) -> str:
    """A gold answer without the `<answer>` block that some data sets write around it, and without outer blanks."""
    blocks = _answer_blocks(answer)
    return (blocks.last if blocks.complete == 1 and not blocks.unclosed else answer).strip()


class _Blocks(NamedTuple):
    complete: int
    """How many."""
    last: str
    """The content of the last complete one, or "" if there is none."""
    unclosed: bool
    """A tag is open at the end."""


def _answer_blocks(text: str) -> _Blocks:
    """What `<answer>(.*?)</answer>` finds, without the pattern's quadratic time on tags that are never closed."""
    count, last, position = 0, "", 0
    while (start := text.find("<answer>", position)) >= 0:
        end = text.find("</answer>", start)
        if end < 0:
            return _Blocks(count, last, unclosed=True)
        count, last, position = (
            count + 1,
            text[start + len("<answer>") : end],
            end + len("</answer>"),
        )
    return _Blocks(count, last, unclosed=False)


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{...}` whose braces balance, or of a bare `\boxed 5`; "" if there is none.

    Of nested boxes the inner one is the last, as it starts later. Escaped braces do not count.
    """
    first = text.find(r"\boxed")
    if first < 0:
        return ""
    open_braces: list[
        int | None
    ] = []  # for each open brace, where the content of its box starts; None: not a box
    start, end = -1, -1
    for token in _BOX_TOKEN.finditer(text, first):
        if token[0].startswith(r"\boxed"):
            if token["start"] == "{":
                open_braces.append(token.end())
            elif token["start"] is not None:
                start, end = token.end(), -1
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            content = open_braces.pop()
            if content is not None and content > start:
                start, end = content, token.start()
    if start < 0:
        return ""
    if end >= 0:
        return text[start:end].strip()
    bare = _BARE.match(text, start)
    return bare[0].rstrip(".,;:!?") if bare else ""


def _last_phrase(text: str) -> str:
    introduced = -1
    for phrase in _PHRASE.finditer(text):
        introduced = phrase.end()
    if introduced < 0:
        return ""
    line_end = _LINE_END.search(text, introduced)
    return text[introduced : line_end.start() if line_end else len(text)].strip()
