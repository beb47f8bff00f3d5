"""Finds signs that a text was damaged by a wrong encoding or a wrong escape.

Some of them may be meant, so they become notes and the row is not refused.
"""

import re
from collections.abc import Iterator

from gpg_vl.data.prompts import texts_of
from gpg_vl.types import Example

_LOST = re.compile("\ufffd")
# é written as two letters, ’ as three: UTF-8 that was read as Latin-1 or as Windows-1252
_TWICE_ENCODED = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0153\u009d\u2122\u02dc\u201c\u201d\u00a6]"
    "|\u00e2\u0080[\u0080-\u00bf]"
)
# \frac, \beta, \times and \right behind an escape that JSON or Python took for one of theirs
_EATEN = re.compile(
    r"\f(rac|orall)|\x08(eta|egin|ar\b|inom|oxed|ig)|\t(imes|ext|heta|frac|riangle|an\b|au\b)|\r(ight|ho\b|m\b)"
)
_PLAIN = re.compile(r"[\n\x20-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_SIGNS = (
    (
        "lost",
        _LOST,
        "the text holds U+FFFD, which stands for a character that was lost. Convert the data again from its own encoding",
    ),
    (
        "encoding",
        _TWICE_ENCODED,
        "the text looks like UTF-8 that was read in another encoding, such as 'Ã©' for 'é'. Convert the data again",
    ),
    (
        "escape",
        _EATEN,
        "the text holds a control character where a command such as \\frac stood. Write its backslash twice",
    ),
    (
        "control",
        _CONTROL,
        "the text holds control characters, which nobody sees. Remove them where the data is made",
    ),
)


def find_damage(example: Example) -> Iterator[tuple[str, str]]:
    """(kind, text) of what looks damaged in the texts of an example."""
    text = "\n".join((*texts_of(example.prompt), example.answer, *(example.choices or ())))

    # nearly every text is plain, and that is quickly known
    if _PLAIN.fullmatch(text):
        return
    for kind, pattern, words in _SIGNS:
        if pattern.search(text):
            yield kind, words


def find_control(text: str) -> str | None:
    """The first control character of a text as an escape, other than a tab or the end of a line; None if there is none."""
    found = _CONTROL.search(text)
    return None if found is None else f"\\x{ord(found[0]):02x}"
