"""Parses the prompt of a row: text, or a conversation, whose messages may contain images.

A cell that cannot be parsed raises a CellError, which `gpg_vl.data.rows` turns into a problem of the row.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpg_vl.data.cells import CellError, quote, refuse_surrogates
from gpg_vl.data.media import looks_like_media
from gpg_vl.types import Message

IMAGE_MARK = "<image>"
_ROLES = ("system", "user", "assistant")
_MEDIA = ("video", "videos", "audio", "audios")
_PICTURES = ("image", "images")
_PART_TYPES = ("image", "image_url")
_PART_KEYS = ("image", "image_url", "url")
_READ_KEYS = frozenset(("role", "content", "type", "text", *_PICTURES))

# the beginning of a list of messages or of content parts, or of an object that is one or holds some, as JSON or as
# Python writes it
_BEGINS = re.compile(r"\s*(?:array\(\s*)?\[?\s*\{\s*['\"]\w{1,40}['\"]\s*:")
_ENDS = re.compile(r"[\]})]\s*$")
_SPEAKER = re.compile(
    r"['\"](?:role|from)['\"]\s*:\s*['\"](?:system|user|assistant|human|gpt)['\"]"
    r"|['\"]type['\"]\s*:\s*['\"](?:text|image|image_url|input_text|input_image)['\"]"
)
_SPOKEN = re.compile(r"['\"](?:content|value|text|image|image_url)['\"]\s*:")


def parse_prompt(cell: object, *, images: int) -> str | tuple[Message, ...]:
    """Text, or a conversation whose last turn is the user's. Raises CellError.

    The `<image>` marks of all turns together must be as many as there are images, or none: the
    images then go in front of the first user text, where the prompt is encoded.
    """
    if isinstance(cell, str):
        _refuse_stored_messages(cell, "The prompt")
        prompt: str | tuple[Message, ...] = refuse_surrogates(cell, "prompt")
    elif isinstance(cell, list) and cell:
        prompt = _parse_conversation(cell)
    else:
        raise CellError(
            "prompt",
            f"The prompt is {quote(cell)}. A string or a non-empty list of {{role, content}} "
            f"messages is allowed. Correct the cell.",
        )

    marks = count_marks(prompt)
    if marks not in (0, images):
        raise CellError(
            "marks",
            f"The prompt has {marks} {IMAGE_MARK} mark(s) and the row has {images} image(s). One "
            f"mark for each image, or no mark at all, is allowed. Add or remove marks or images "
            f"until both numbers are equal.",
        )

    if not images and not any(text.strip() for text in texts_of(prompt)):
        raise CellError(
            "prompt",
            "The prompt is empty and there is no image. A question is needed. Write one, or remove the row.",
        )
    return prompt


def count_marks(prompt: str | tuple[Message, ...]) -> int:
    """The number of `<image>` marks in all turns."""
    return sum(text.count(IMAGE_MARK) for text in texts_of(prompt))


def turns_of(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of a conversation; a plain text is one user turn."""
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt


def texts_of(prompt: str | tuple[Message, ...]) -> tuple[str, ...]:
    """The text of each turn."""
    return (prompt,) if isinstance(prompt, str) else tuple(turn.content for turn in prompt)


def _parse_conversation(cells: Sequence[object]) -> tuple[Message, ...]:
    messages = []
    for number, cell in enumerate(cells, 1):
        messages.append(_parse_message(cell, f"Message {number} of {len(cells)}"))

    system = [message.role for message in messages].count("system")
    if system > 1:
        raise CellError(
            "prompt",
            f"The conversation has {system} system turns. One is allowed. Join their texts, or remove "
            f"all but one.",
        )
    if messages[-1].role != "user":
        raise CellError(
            "prompt",
            f"The conversation ends with a turn of the {messages[-1].role}. The last turn "
            f"must be the user's, because the model writes the next one. Remove the turns after it; where the last turn is "
            f"the gold answer, declare it: columns: {{answer: <column of the conversation>}}.",
        )
    return tuple(messages)


def _parse_message(cell: object, name: str) -> Message:
    if not isinstance(cell, dict) or not {"role", "content"} <= cell.keys():
        raise CellError(
            "prompt",
            f"{name} is {quote(cell)}. A message has a role and a content. Write it as "
            f'{{"role": "user", "content": "..."}}.',
        )
    if cell["role"] not in _ROLES:
        raise CellError(
            "prompt",
            f"{name} has the role {quote(cell['role'])}. The roles are {', '.join(_ROLES)}. Rename or remove it.",
        )

    content = cell["content"]
    if isinstance(content, str):
        _refuse_stored_messages(content, name)
    parts = content if isinstance(content, list) else [content]
    text = "".join(_parse_content_part(part, name) for part in parts)
    return Message(role=cell["role"], content=_mark_pictures(text, cell, name))


def _mark_pictures(text: str, message: Mapping[str, Any], name: str) -> str:
    """The text of a message with a mark for each picture that the message lists next to it, in
    front if it has none.
    """
    for key in _other_media(message):
        raise CellError(
            "prompt",
            f"{name} has {quote(message[key])} under {key!r}. Text and images are allowed; video and audio "
            f"are not read. Use frames as images, or remove the row.",
        )
    for key in _unread_pictures(message):
        raise CellError(
            "prompt",
            f"{name} has {quote(message[key])} under {key!r}, which looks like a picture and would not be seen. A message "
            f"brings pictures under image or images, or as {{type: image}} parts of its content. Rename the key, or "
            f"remove it.",
        )

    pictures, marks = len(_listed_pictures(message)), text.count(IMAGE_MARK)
    if not pictures or marks == pictures:
        return text
    if not marks:
        return IMAGE_MARK * pictures + text
    raise CellError(
        "marks",
        f"{name} has {marks} {IMAGE_MARK} mark(s) and lists {pictures} image(s). One mark for each "
        f"image, or no mark at all, is allowed. Add or remove marks or images.",
    )


def _parse_content_part(cell: object, name: str) -> str:
    """The text of one content part, with a picture as its mark.

    The image itself is in the part or in the images column.
    """
    if isinstance(cell, str):
        return refuse_surrogates(cell, "prompt")
    if _is_picture_part(cell):
        return IMAGE_MARK

    text = cell.get("text") if isinstance(cell, dict) and cell.get("type") == "text" else None
    if isinstance(text, str) and isinstance(cell, dict) and not _picture_keys(cell):
        return refuse_surrogates(text, "prompt")
    raise CellError(
        "prompt",
        f"{name} has the content {quote(cell)}. A string, or a list of {{type: text, text: "
        f"...}} and {{type: image}} parts, is allowed. Put the pictures themselves into parts of "
        f"their own, or into the images column.",
    )


def _refuse_stored_messages(text: str, name: str) -> None:
    """Raise CellError for messages, or parts of their content, that were stored as text."""
    if _holds_messages(text):
        raise CellError(
            "prompt",
            f"{name} is text that holds messages: {quote(text)}. The brackets would be part of "
            f"the question. A string that is the question, or a list of messages, is allowed. Store the "
            f"list itself, or the text of its user turn alone.",
        )


def _holds_messages(text: str) -> bool:
    """True for messages that were stored as text, in JSON or as Python prints them: the brackets would be the question."""
    if not _BEGINS.match(text) or not _ENDS.search(text[-20:]):
        return False
    return _SPEAKER.search(text) is not None and _SPOKEN.search(text) is not None


def pictures_in_messages(cell: object) -> list[object]:
    """The cells of all images in messages, in the order of the turns; empty for a text prompt."""
    found: list[object] = []
    for message in cell if isinstance(cell, list) else ():
        if not isinstance(message, dict):
            continue
        found += _listed_pictures(message)

        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if _is_picture_part(part) and (picture := _picture_of(part)) is not None:
                found.append(picture)
    return found


def _listed_pictures(message: Mapping[str, Any]) -> list[object]:
    """The pictures that a message lists next to its content, under `image` or `images`."""
    found: list[object] = []
    for key in _PICTURES:
        cell = message.get(key)
        found += cell if isinstance(cell, list) else [] if cell is None else [cell]
    return found


def _is_picture_part(part: object) -> bool:
    """True for a part of a content that is one picture, with or without the picture itself."""
    return isinstance(part, dict) and part.get("type") in _PART_TYPES


def _other_media(message: Mapping[str, Any]) -> list[str]:
    """The keys of a message with media that no model here can read."""
    return [key for key in _MEDIA if message.get(key)]


def _unread_pictures(cell: Mapping[str, Any]) -> list[str]:
    """The keys of a message, or of its text parts, whose value looks like an image but is not read."""
    return [
        key for key, value in cell.items() if key not in _READ_KEYS and looks_like_media(key, value)
    ]


def _picture_keys(part: Mapping[str, Any]) -> list[str]:
    """The keys of a part that contain an image; a text part may have none."""
    known = [key for key in (*_PART_KEYS, "images", *_MEDIA) if part.get(key)]
    return known + _unread_pictures(part)


def _picture_of(part: Mapping[str, Any]) -> object | None:
    """The image of a part: `{"image": ...}`, `{"image_url": {"url": ...}}`, or a path or bytes in the part itself."""
    for key in _PART_KEYS:
        cell = part.get(key)
        if cell is not None:
            picture: object = cell["url"] if isinstance(cell, dict) and "url" in cell else cell
            return picture
    if part.get("bytes") is not None or part.get("path") is not None:
        return {"bytes": part.get("bytes"), "path": part.get("path")}
    return None
