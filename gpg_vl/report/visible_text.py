"""Makes untrusted text safe to show: nothing invisible, limited length.

`<` is escaped by the page (jinja2). Here characters that a browser would drop, interpret or refuse are replaced by visible
ones.
"""

import reprlib
import unicodedata
from dataclasses import dataclass

LONGEST = 4000
"""Characters of one text that are shown."""

_KEPT = "\n\t"
_NO_TEXT = ("Cc", "Cs", "Cf", "Co", "Cn", "Zl", "Zp")
"""Categories of Unicode: controls, lone surrogates, formats (direction among them), private, none, separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need; they do not change the layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The visible beginning of a text.

    Example: `Shown(text="a\\u2400b", left_out=0)` of "a\\x00b"
    """

    text: str
    left_out: int
    """Number of further characters that are not shown."""


def make_visible(value: object, longest: int = LONGEST) -> Shown:
    """The first `longest` characters of a text; of anything else, those of its Python spelling, cut where it is nested."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return Shown(text=visible(text[:longest]), left_out=max(len(text) - longest, 0))


def line(value: object, longest: int = 200) -> str:
    """The same as a single line."""
    one = make_visible(value, longest)
    return one.text.replace("\n", " ") + ("…" if one.left_out else "")


def visible(text: str) -> str:
    """The text with every control character, surrogate and mark of direction as something that can be seen."""
    # console.visible is for terminals and writes escape sequences; a page can show a symbol for each control
    # character, and must also show what browsers drop silently
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _KEPT or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _NO_TEXT:
        return character

    # the control pictures of Unicode: one sign for each of the first 32
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"
