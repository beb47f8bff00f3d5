"""Text without the marks of Markdown: stars, lines under words, headings and fences of code."""

import re

_STARS = re.compile(r"(?<![\w)\]}*\\])(\*{1,3})(?=[^\s*])([^*\n]{1,400}?)(?<=\S)\1(?![\w(\[{*\\])")
_LINES_UNDER = re.compile(r"(?<![\w)\]}\\])(_{1,3})(?=[^\s_])([^_\n{}\\]{1,400}?)(?<=\S)\1(?!\w)")
_HEADING = re.compile(
    r"^[ \t]{0,3}(?:#{1,3}(?!#)|#{5,6}|####(?![ \t]*[^\s#]{0,60}[0-9\\]\S{0,60}[ \t]*$))[ \t]+",
    re.MULTILINE,
)
_FENCE = re.compile(r"```[A-Za-z]*(?=\s)|`")
_FENCED = re.compile(r"```[A-Za-z]*\s")


def strip_markdown(text: str) -> str:
    """The text without the marks of Markdown. A star or a line that may be mathematics stays."""
    if "*" in text:
        text = _STARS.sub(r"\2", text)
    if "_" in text:
        text = _LINES_UNDER.sub(r"\2", text)
    if "#" in text:
        text = _HEADING.sub("", text)
    if "`" in text:
        text = _FENCE.sub("", text)
    return text


def only_fence(text: str) -> str:
    """The content of the only fenced block of a text, else the text."""
    if text.count("```") == 2 and (opening := _FENCED.search(text)) is not None:
        closing = text.find("```", opening.end())
        return text[opening.end() : closing] if closing >= 0 else text
    return text
