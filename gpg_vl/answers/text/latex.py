"""Text that is wrapped in LaTeX, as the text that a reader sees: `red` for `$\\text{red}$`, `12%` for `12\\%`."""

import re

_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|rm)\s*\{([^{}]*)\}"
)
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_SPACE = re.compile(r"\\[,;:! ]|~(?=\S)")
_ESCAPED = re.compile(r"\\([%$#&_])")
_DISPLAY = re.compile(r"\\[()\[\]]|(?<!\\)\$")


def strip_latex(text: str) -> str:
    """The text without dollars, text commands, spacing and escapes. Commands of mathematics stay."""
    if "$" not in text and "\\" not in text:
        return text
    if _DISPLAY.sub("", text).strip() and text.count("$") != 1:
        text = _DISPLAY.sub("", text)
    text = _DEGREE.sub("°", _SPACE.sub(" ", text))
    for _ in range(3):  # text commands may be nested
        text = _TEXT.sub(r"\1", text)
    return _ESCAPED.sub(r"\1", text).strip()
