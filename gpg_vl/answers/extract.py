r"""Extracts the answer from the text of a response, by one rule.

Reasoning is ignored. Emphasis (`*`, `_`, headings, code fences) is removed. Then the last marker of any kind counts: a tag
such as `<answer>`, a `\boxed{}`, a key `{"answer": ...}`, `[[X]]`, `#### 5`, or a phrase such as "the answer
is", "correct option:", "Final Answer", 答案是, 故选. The answer is the
text that it encloses, or the text after it to the end of its line, or else the next line that is not blank. Markers of one kind
that are joined by "or" or "and" count as one answer. Without a marker
it is the only code fence, or else the whole text.

Reasoning is in `<think>`, `<thinking>`, `<analysis>` or `<reasoning>`, in any case: the four are one and the same tag, so
that `<thinking>` may be closed by `</think>`. An unclosed block is reasoning to the end, in which only a complete answer tag
counts. An answer tag that is opened and never closed was cut off; then too only a complete one counts. Time grows with
the length of the text, whatever it holds.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gpg_vl.answers.text.markdown import only_fence, strip_markdown

TRIES = 200
"""Maximum number of occurrences of a word that are checked, from the last one backwards, for one that introduces an
answer."""

Step = Literal["tag", "boxed", "phrase", "text", "none"]

_OPENED = re.compile(r"<(?:think|thinking|analysis|reasoning)>", re.IGNORECASE | re.ASCII)
_CLOSED = re.compile(r"</(?:think|thinking|analysis|reasoning)>", re.IGNORECASE | re.ASCII)
_END_TOKEN = re.compile(r"(?:<\|[a-z_]{1,20}\|>|</s>)$")

# --- markers ----------------------------------------------------------------------------------------------------------

_TAG = re.compile(
    r"<(/?)(?:final[ _]?)?answer>|<\|(?:begin|(end))_of_box\|>", re.IGNORECASE | re.ASCII
)
_IS = (
    r"(?:\s*(?:[:：=→]|->|[-–—]+(?=\s))|\s+(?:is|are|was|must\s+be|should\s+be|would\s+be|will\s+be|could\s+be)\b"
    r"(?:\s*[:：])?)"
)
_NOT_OF_AN_ANSWER = (
    r"(?!\s*(?:obtained|found|given|determined|based|not\s+(?:given|shown|listed|among|in))\b)"
)
_HEAD = r"[ \t]*(?=\r|\n|$)"
_OPTION = (
    r"(?:(?<=correct )|(?<=right )|(?<=best )|(?<=final )|(?<=chosen )|(?<=\bmy )|(?<=\bthe ))(?:option|choice|letter)"
    r"(?:\s+is|\s+would\s+be|\s+should\s+be)?(?:\s*[:：]|(?<=is)\b|(?<=be)\b)"
)
_CORRECT = (
    r"(?:option|choice|answer)\s+\(?(?P<letter>[A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
)

MARKERS: tuple[tuple[str, str], ...] = (
    # English: "the answer is 5", "Answer: 5", "the answer to the question is 5", "**Final Answer**" above its line.
    (
        "answer",
        rf"answers?(?:\s+(?:choice|option|letter))?(?:\s+(?:to|for)\s[^.:\n]{{1,80}}?)?{_IS}{_NOT_OF_AN_ANSWER}",
    ),
    ("answer", rf"answers?{_HEAD}"),
    ("answer", _CORRECT),
    ("option", _CORRECT),
    ("option", _OPTION),
    ("choice", _CORRECT),
    ("choice", _OPTION),
    # Chinese.
    ("答案", r"答案(?:应该|应当|应|就)?(?:是|为|选)?\s*[:：]|答案(?:应该|应当|应|就)?(?:是|为|选)"),
    ("答案", rf"答案{_HEAD}"),
    ("选", r"(?<=[故此以应我该])选(?!项)择?(?:选项)?\s*[:：]?"),
    ("选项", r"(?<=正确)选项(?:应该|应)?(?:是|为)?\s*[:：]?"),
    # GSM8K, and the form that judges of pairs are asked for.
    ("####", r"(?<!#)####[ \t]*(?=[^\s#]{0,60}[0-9\\]\S{0,60}[ \t]*(?:\r|\n|$))"),
    ("[[", r"\[\[(?P<letter>[^\[\],\n]{1,80})\]\]"),
)
"""(word, pattern at the word): all phrases that introduce an answer, in either language, in any case."""

_PATTERNS = {
    word: tuple(re.compile(pattern, re.IGNORECASE) for of, pattern in MARKERS if of == word)
    for word in dict.fromkeys(word for word, _ in MARKERS)
}
_HEADED = re.compile(
    r"(?:^|\n)[^\w\n]*(?:(?:the|my|our|so|final|correct|best|最终|正确)\s*)*$", re.IGNORECASE
)
# "if the answer is 5", "I do not think the answer is 5".
_VOID = re.compile(
    r"(?:\b(?:if|whether|unless|suppose|assum[a-z]+)|(?:n['’]t|\bnot|\bnever)\s+(?:think|believe|say|true|certain|sure|clear|know))\b"
    r"(?:(?!\b(?:so|thus|then|hence)\b)[^.,;:\n]){0,40}$",
    re.IGNORECASE,
)
_JOINT = re.compile(
    r"(?P<joint>\b(?:or|and)\b|[或和])[\s,:$(]*(?:(?:maybe|perhaps|possibly|the|my|also|final|correct|else)\s+)*$",
    re.IGNORECASE,
)
_JOINTS = ("or", "and", "或", "和")
_KEY = re.compile(r"""answer["']\s*:\s*""", re.IGNORECASE)
_FILLERS = re.compile(
    r"(?:(?:therefore|thus|clearly|simply|just|indeed|actually|hence)\b[\s,]*)+", re.IGNORECASE
)
_LINE_END = re.compile(r"[\r\n。]")
_CLOSING = {"\\[": "\\]", "$$": "$$", "\\(": "\\)"}
_MARKS = " \t\r\n✅✔☑✓👍🎉🎯\ufe0f"
_JSON_LENGTH = 20_000

# A box, a pair that is no brace, or a brace. `\\boxed` in doubled backslashes (JSON habits) is still a box.
_BOX_TOKEN = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*(?P<start>\{|(?=[^\s{}$]))?|\\\\(?!boxed|fbox)|\\[{}]|[{}]"
)
_BARE = re.compile(r"[^\s{}$]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """The extracted answer, and how it was found.

    Example: `<think>hm</think><answer>(B)</answer>` gives `Extracted(candidate="(B)", step="tag")`.
    """

    candidate: str | None
    """The answer without outer blanks, never empty. None: unanswered."""
    step: Step
    """The kind of marker that was used, even if it enclosed nothing. `text`: there was no marker; `none`: no text was
    left."""
    unclosed_think: bool = False
    """A reasoning block was opened and not closed. Then only a complete tag can answer."""
    truncated: bool = False
    """The last tag of an answer was opened and not closed."""
    several: bool = False
    """There is more than one complete tag of an answer after the reasoning; the last one counts."""

    @property
    def flags(self) -> tuple[str, ...]:
        """A note on an unusual layout of the response."""
        return tuple(
            name for name in ("unclosed_think", "truncated", "several") if getattr(self, name)
        )


def extract_answer(text: str, *, prefilled_think: bool = False) -> Extracted:
    """Find the answer in a response. Total: any text has a result, in time proportional to its length.

    `prefilled_think`: True if the prompt opened the reasoning and `text` lacks the tag; for a text that contains
    it, such as `Completion.response`, the flag changes nothing.
    """
    if "◁" in text:  # as Kimi-VL writes it
        text = text.replace("◁think▷", "<think>").replace("◁/think▷", "</think>")

    # everything up to the end of the last closed reasoning block is skipped
    reasoned = 0
    for closed in _CLOSED.finditer(text) if "<" in text else ():
        reasoned = closed.end()
    rest = text[reasoned:]

    opened = "<" in rest and _OPENED.search(rest) is not None
    unclosed = opened or (prefilled_think and not reasoned)
    blocks = _tags(rest)

    # after an unclosed block only a complete answer tag counts
    if unclosed or blocks.unclosed:
        content = None if blocks.last is None else _find_inside(strip_markdown(blocks.last.content))
        return Extracted(
            candidate=content or None,
            step="none" if blocks.last is None and not blocks.unclosed else "tag",
            unclosed_think=unclosed,
            truncated=blocks.unclosed,
            several=blocks.complete > 1,
        )

    plain = strip_markdown(rest)
    found = _find_latest(plain, blocks if plain == rest else _tags(plain))
    if found is None:
        whole = _trim(strip_markdown(only_fence(rest)))
        return Extracted(candidate=whole or None, step="text" if whole else "none")
    return Extracted(
        candidate=_trim(found.content) or None, step=found.step, several=blocks.complete > 1
    )


def gold_text(answer: str) -> str:
    """A gold answer without the `<answer>` block that some data sets write around it, and without outer blanks."""
    blocks = _tags(answer)
    one = blocks.complete == 1 and not blocks.unclosed and blocks.last is not None
    return (blocks.last.content if one and blocks.last else answer).strip()


def _trim(text: str) -> str:
    """The text without outer blanks, backticks, and end-of-turn tokens."""
    text = text.strip().strip(_MARKS)
    while text.endswith(">") and (end := _END_TOKEN.search(text, max(0, len(text) - 30))):
        text = text[: end.start()].rstrip().rstrip(_MARKS)
    return text.strip()


# --- markers ----------------------------------------------------------------------------------------------------------


class _Marked(NamedTuple):
    """A marker: its position, and the answer that it encloses or introduces."""

    start: int
    end: int
    """The position after the enclosed text; for a phrase after its answer."""
    content: str
    step: Step


def _find_latest(text: str, tags: "_Tags | None", joints: int = 3) -> _Marked | None:
    """The last marker of a text with these tags; None if there is none. The content of a tag or box is searched again."""
    enclosing = [one for one in (tags and tags.last, _box(text)) if one]
    best = max(enclosing, key=lambda one: one.start, default=None)
    best = _phrase(text, best) or best
    if best is None:
        return None
    around = [one for one in enclosing if one is not best and best.start < one.end]
    if around:  # a marker inside another one ends where that ends
        outer = min(around, key=lambda one: one.start)
        return outer._replace(content=_find_inside(outer.content))
    return _join_earlier(text, best, tags, joints) if joints else best


def _find_inside(content: str) -> str:
    """The answer in the content of a tag or box: after the last marker in it, else all of it."""
    found = _find_latest(content, None)
    return _trim(content if found is None else found.content)


def _join_earlier(text: str, last: _Marked, tags: "_Tags | None", joints: int) -> _Marked:
    """The marker with those before it that "or" or "and" joins to it: "Answer: A or answer: B"."""
    near = text[max(0, last.start - 60) : last.start].lower()
    may_join = any(joint in near for joint in _JOINTS)
    joint = _JOINT.search(text, max(0, last.start - 60), last.start) if may_join else None
    if joint is None:
        return last
    before = text[: joint.start()]
    other = _find_latest(before, None if tags is None else _tags(before), joints - 1)
    if other is None or other.step != last.step or before[other.end :].strip(" ,.;$"):
        return last
    return last._replace(content=f"{other.content} {joint['joint']} {last.content}")


class _Tags(NamedTuple):
    complete: int
    """How many."""
    last: _Marked | None
    unclosed: bool
    """True if a tag is open at the end."""


def _tags(text: str) -> _Tags:
    """The tags around answers. One that opens within another is part of its content."""
    count, last, opened = 0, None, None
    for tag in _TAG.finditer(text) if "<" in text else ():
        closes = tag[1] == "/" or tag[2] is not None
        if not closes and opened is None:
            opened = tag
        elif closes and opened is not None:
            content = text[opened.end() : tag.start()]
            count, last = count + 1, _Marked(opened.start(), tag.end(), content.strip(), "tag")
            opened = None
    return _Tags(count, last, unclosed=opened is not None)


def _phrase(text: str, after: _Marked | None) -> _Marked | None:
    """The last phrase that introduces an answer which is not blank, if it starts after another marker."""
    best: _Marked | None = None
    start = after.start + 1 if after else 0
    lowered = _lower(text[start:]).replace(
        "answer>", "<a tag>"
    )  # the tag's name must not count as the word "answer"
    for word, patterns in _PATTERNS.items():
        if word not in lowered:  # fast path for most texts
            continue
        for pattern in patterns:
            places = _places(lowered, word, best.start - start if best else -1)
            found = (_read_marker(text, start + at, pattern) for at in places)
            best = next(filter(None, found), best)
    if "answer" in lowered and ('"' in lowered or "'" in lowered):
        places = _places(lowered, "answer", best.start - start if best else -1)
        best = next(filter(None, (_value_of_key(text, start + at) for at in places)), best)
    return best


def _lower(text: str) -> str:
    """In lower case, and of the same length: some letters are longer in lower case, and stay."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(one.lower() if one.isascii() else one for one in text)


def _places(lowered: str, word: str, last: int) -> Iterator[int]:
    """Positions of a word, from the last one backwards to `last`; at most `TRIES`."""
    at = len(lowered)
    for _ in range(TRIES):
        at = lowered.rfind(word, 0, at)
        if at <= last:
            return
        yield at


def _read_marker(text: str, at: int, pattern: re.Pattern[str]) -> _Marked | None:
    """The marker at a position with the answer it introduces; None if the pattern or the context does not match."""
    if at and text[at - 1].isalpha() and text[at].isascii() and text[at - 1].isascii():
        return None
    found = pattern.match(text, at)
    if found is None or _VOID.search(text, max(0, at - 80), at):
        return None
    if pattern.groups:
        return _Marked(at, found.end(), found["letter"], "phrase")
    if pattern.pattern.endswith(_HEAD) and not _HEADED.search(text, max(0, at - 60), at):
        return None
    start, end = _line_behind(text, found.end())
    filler = _FILLERS.match(text, start, end)
    content = _drop_unopened_bracket(text[filler.end() if filler else start : end].strip())
    return _Marked(at, end, content, "phrase") if content.strip(" .:;,*_") else None


def _line_behind(text: str, start: int) -> tuple[int, int]:
    """The range from a position to the end of its line, or of the next non-blank line; displayed mathematics and JSON are
    kept whole."""
    start = len(text) - len(text[start:].lstrip())
    closing = _CLOSING.get(text[start : start + 2])
    if closing and (end := text.find(closing, start + 2)) >= 0:
        return start, end + 2
    line_end = _LINE_END.search(text, start)
    end = line_end.start() if line_end else len(text)
    opens = text[start : start + 1]
    if opens in {"{", "["} and text.count(opens, start, end) > text.count(
        "]" if opens == "[" else "}", start, end
    ):
        return start, len(text)
    return start, end


def _drop_unopened_bracket(text: str) -> str:
    """The text without an unmatched closing bracket at its end, as in "(Answer: B)"."""
    for opening, closing in ("()", "{}", "[]"):
        bare = text.rstrip(". ")
        if (
            bare.endswith(closing)
            and text.count(closing) > text.count(opening)
            and not bare.endswith("\\" + closing)
        ):
            text = bare[:-1].rstrip()
    return text


def _value_of_key(text: str, at: int) -> _Marked | None:
    """The value of a key "answer" in JSON, or in a dict of Python."""
    found = _KEY.match(text, at)
    if found is None:
        return None
    start = found.end()
    if text[start : start + 1] == "'":
        end = text.find("'", start + 1)
        return _Marked(at, end + 1, text[start + 1 : end], "phrase") if end > 0 else None
    try:
        value, length = json.JSONDecoder().raw_decode(text[start : start + _JSON_LENGTH])
    except (ValueError, RecursionError):
        return None
    content = value if isinstance(value, str) else text[start : start + length]
    return _Marked(at, start + length, content.strip(), "phrase")


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{...}` whose braces balance, or of a bare `\boxed 5`; "" if there is none."""
    box = _box(text)
    return box.content if box else ""


def _box(text: str) -> _Marked | None:
    """The last `\\boxed`. Of nested boxes it is the inner one, which starts later. Escaped braces do not count."""
    first = text.find("box")
    if first < 0:
        return None
    # For each open brace, where its box and the content of it start; None: not a box.
    open_braces: list[tuple[int, int] | None] = []
    best: tuple[int, int, int] = (-1, -1, -1)
    for token in _BOX_TOKEN.finditer(text, max(0, first - 2)):
        if token[0].startswith(("\\boxed", "\\fbox")):
            if token["start"] == "{":
                open_braces.append((token.start(), token.end()))
            elif token["start"] is not None:
                best = (token.start(), token.end(), -1)
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None and opened[0] > best[0]:
                best = (*opened, token.start())

    start, content, end = best
    if start < 0:
        return None
    if end >= 0:
        return _Marked(start, end + 1, text[content:end].strip(), "boxed")

    bare = _BARE.match(text, content)
    inside = bare[0].rstrip(".,;:!?") if bare else ""
    return _Marked(start, content + len(inside), inside, "boxed")
