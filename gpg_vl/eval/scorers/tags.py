"""Finds `<answer>` blocks like the patterns of published scorers, but in linear time."""


def first_block(text: str, *, one_line: bool, trimmed: bool = False) -> str | None:
    """What `<answer>(.*?)</answer>` captures first, None if nothing.

    `one_line`: the dot matches no line break, so a block with one is skipped. `trimmed`: blanks and line
    breaks at both ends belong to the tags.
    """
    at = 0
    while (start := text.find("<answer>", at)) >= 0:
        end = text.find("</answer>", start)
        if end < 0:
            return None
        content = text[start + len("<answer>") : end]
        content = content.strip() if trimmed else content
        if not (one_line and "\n" in content):
            return content
        at = start + len("<answer>")
    return None
