"""One row, as a mapping from column names to cells, becomes an `Example` or a `RowProblem`.

Nothing here touches a file: `gpg_vl.data.read` brings the cells, this module says what they mean. A
cell that cannot be understood makes the row a `RowProblem`, which names the first thing that is
wrong with it; a row is never dropped.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean
from gpg_vl.types import Example, Message

IMAGE_MARK = "<image>"
Kind = Literal[
    "source",
    "json",
    "column",
    "id",
    "image",
    "prompt",
    "marks",
    "answer",
    "choices",
    "task",
    "length",
    "encode",
]
_ROLES = ("system", "user", "assistant")
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """What is wrong with one row, as a value.

    Example: `RowProblem(row=17, id="17", source="train.jsonl:18", kind="marks", message="The prompt
        has 2 ...")`
    """

    row: int
    """The number of the row in the whole source, from 0."""
    source: str
    """Where it stands: `file.jsonl:LINE`, from 1, or `file.parquet[ROW]`, from 0 in that file. May
    be empty."""
    kind: Kind
    """What kind of problem it is, to count by."""
    message: str
    """What was given, what is allowed and what to do."""
    id: str = ""
    """The id of the row, where it could be read."""

    def __str__(self) -> str:
        known = (f"row {self.row}", self.id and f"id {self.id!r}", self.source)
        return f"{', '.join(filter(None, known))}: {self.message}"


Row = Example | RowProblem


class CellError(UserError):
    """A cell that cannot be understood. It becomes a `RowProblem` before it leaves the reader."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def parse_row(
    cells: Mapping[str, Any], mapping: Mapping[str, str], *, row: int, source: str
) -> Row:
    """The row as an Example, or the first thing that is wrong with it.

    `mapping` names the column of each field that the source has
    (`gpg_vl.data.read.resolve_columns`); a dotted name reaches into a struct. A row without an id
    is called by its number. Columns that are mapped to no field go to `meta` if JSON can hold them;
    pictures, other bytes and dates cannot be held and stay out.
    """
    name = ""
    try:
        given = _find_cell(cells, mapping, "id")
        name = str(row) if given in (None, "") else parse_text(given, "id")
        images = parse_images(_find_cell(cells, mapping, "images"))
        prompt = parse_prompt(_require_cell(cells, mapping, "prompt"), images=len(images))
        answer = parse_text(_require_cell(cells, mapping, "answer"), "answer")
        choices = parse_choices(_find_cell(cells, mapping, "choices"))
        task = _find_cell(cells, mapping, "task")
        return Example(
            id=name,
            images=images,
            prompt=prompt,
            answer=answer,
            choices=choices,
            task="" if task is None else parse_text(task, "task"),
            meta=collect_meta(cells, mapping),
        )
    except CellError as error:
        return RowProblem(row=row, id=name, source=source, kind=error.kind, message=error.message)
    except RecursionError:
        message = (
            "A cell is nested hundreds of levels deep. Lists and structs of ordinary depth are "
            "allowed. Flatten it."
        )
        return RowProblem(row=row, id=name, source=source, kind="json", message=message)


def parse_text(cell: object, kind: Kind, what: str | None = None) -> str:
    """A string as it stands; a number or a truth value as JSON writes it (`7`, `0.5`, `true`).

    Raises CellError.
    """
    if isinstance(cell, str):
        return _refuse_surrogates(cell, kind)
    if isinstance(cell, int) or (isinstance(cell, float) and math.isfinite(cell)):
        return json.dumps(cell)
    raise CellError(
        kind,
        f"The {what or kind} is {_quote(cell)}. A string, a finite number or true/false is allowed. "
        f"Write it as a string.",
    )


def parse_images(cell: object) -> tuple[str | bytes, ...]:
    """No picture (null or an empty list), one picture, or a list of pictures, in order. Raises
    CellError.

    A picture is a path, encoded bytes, a struct `{"bytes", "path"}` whose bytes count first, or a
    string `data:image/png;base64,...`, which is decoded here.
    """
    if cell is None:
        return ()

    pictures = cell if isinstance(cell, list) else [cell]
    parsed = []
    for number, picture in enumerate(pictures, 1):
        parsed.append(_parse_picture(picture, f"Image {number} of {len(pictures)}"))
    return tuple(parsed)


def _parse_picture(cell: object, name: str) -> str | bytes:
    # empty bytes are reported as such only where there is no path
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path") or cell.get("bytes")

    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise CellError(
            "image",
            f"{name} is {_quote(cell)}. A path, encoded bytes, a {{bytes, path}} struct, a "
            f"base64 data URI, or a list of these is allowed. Correct the cell; write null for a "
            f"row without images.",
        )

    if uri := _DATA_URI.match(cell):
        try:
            return base64.b64decode("".join(cell[uri.end() :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise CellError(
                "image",
                f"{name} is a data URI whose base64 is broken: {error}. Complete base64 is "
                f"needed. Export the row again.",
            ) from error
    if _URL.match(cell):
        raise CellError(
            "image",
            f"{name} is the address {_quote(cell)}. Paths, bytes and data:image/...;base64 are "
            f"allowed; nothing is fetched from the network. Download the picture and write its "
            f"path.",
        )
    return _refuse_surrogates(cell, "image")


def parse_prompt(cell: object, *, images: int) -> str | tuple[Message, ...]:
    """Text, or a conversation whose last turn is the user's. Raises CellError.

    The `<image>` marks of all turns together must be as many as there are images, or none: the
    images then go in front of the first user text, where the prompt is encoded.
    """
    if isinstance(cell, str):
        prompt: str | tuple[Message, ...] = _refuse_surrogates(cell, "prompt")
    elif isinstance(cell, list) and cell:
        prompt = _parse_conversation(cell)
    else:
        raise CellError(
            "prompt",
            f"The prompt is {_quote(cell)}. A string or a non-empty list of {{role, content}} "
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

    if not images and not any(text.strip() for text in _list_texts(prompt)):
        raise CellError(
            "prompt",
            "The prompt is empty and there is no image. A question is needed. Write one, or remove the row.",
        )
    return prompt


def count_marks(prompt: str | tuple[Message, ...]) -> int:
    """The number of `<image>` marks in all turns."""
    return sum(text.count(IMAGE_MARK) for text in _list_texts(prompt))


def _list_texts(prompt: str | tuple[Message, ...]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [message.content for message in prompt]


def _parse_conversation(cells: Sequence[object]) -> tuple[Message, ...]:
    messages = []
    for number, cell in enumerate(cells, 1):
        messages.append(_parse_message(cell, f"Message {number} of {len(cells)}"))

    if messages[-1].role != "user":
        raise CellError(
            "prompt",
            f"The conversation ends with a turn of the {messages[-1].role}. The last turn "
            f"must be the user's, because the model writes the next one. Remove the turns "
            f"after it.",
        )
    return tuple(messages)


def _parse_message(cell: object, name: str) -> Message:
    if not isinstance(cell, dict) or not {"role", "content"} <= cell.keys():
        raise CellError(
            "prompt",
            f"{name} is {_quote(cell)}. A message has a role and a content. Write it as "
            f'{{"role": "user", "content": "..."}}.',
        )
    if cell["role"] not in _ROLES:
        raise CellError(
            "prompt",
            f"{name} has the role {_quote(cell['role'])}. The roles are {', '.join(_ROLES)}. Rename or remove it.",
        )

    content = cell["content"]
    parts = content if isinstance(content, list) else [content]
    text = "".join(_parse_content_part(part, name) for part in parts)
    return Message(role=cell["role"], content=text)


def _parse_content_part(cell: object, name: str) -> str:
    """The text of one content part, with a picture as its mark.

    Which picture it is, the images column says.
    """
    if isinstance(cell, str):
        return _refuse_surrogates(cell, "prompt")
    if isinstance(cell, dict) and cell.get("type") == "image":
        return IMAGE_MARK
    if isinstance(cell, dict) and cell.get("type") == "text" and isinstance(cell.get("text"), str):
        return _refuse_surrogates(cell["text"], "prompt")
    raise CellError(
        "prompt",
        f"{name} has the content {_quote(cell)}. A string, or a list of {{type: text, text: "
        f"...}} and {{type: image}} parts, is allowed. Put the pictures themselves into the "
        f"images column.",
    )


def parse_choices(cell: object) -> tuple[str, ...] | None:
    """The option texts; null and an empty list mean that the question is open. Raises CellError."""
    if cell is None or cell == []:
        return None
    if not isinstance(cell, list):
        raise CellError(
            "choices",
            f"The choices are {_quote(cell)}. A list of option texts, or null, is allowed. "
            f"Write them as a list in the order of the letters.",
        )

    options = []
    for number, option in enumerate(cell, 1):
        options.append(parse_text(option, "choices", f"option {number} of {len(cell)}"))
    return tuple(options)


def _find_cell(cells: Mapping[str, Any], mapping: Mapping[str, str], field: str) -> Any:
    """The cell of a field, None where the row has none. A dotted column reaches into structs."""
    column = mapping.get(field)
    if column is None:
        return None

    # a column may have a dot in its own name
    if column in cells:
        return cells[column]

    cell: Any = cells
    for key in column.split("."):
        cell = cell.get(key) if isinstance(cell, Mapping) else None
    return cell


def _require_cell(
    cells: Mapping[str, Any], mapping: Mapping[str, str], field: Literal["prompt", "answer"]
) -> Any:
    cell = _find_cell(cells, mapping, field)
    if cell is not None:
        return cell

    column = mapping.get(field, field)
    if column in cells:
        raise CellError(
            field,
            f"The column {column!r} is null, so the row has no {field}. Every row needs one. Fill "
            f"the cell or remove the row.",
        )
    raise CellError(
        "column",
        f"The row has no column {column!r} for its {field}. {did_you_mean(column, list(cells))} "
        f"Add the column, or declare where it is: columns: {{{field}: <column>}}.",
    )


def collect_meta(cells: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The cells that JSON can hold, but for mapped columns; NaN and infinities are null."""
    meta = {}
    for key, cell in cells.items():
        if key in mapping.values():
            continue
        try:
            meta[key] = _to_json_value(cell)
        except TypeError:
            continue
    return meta


def _to_json_value(value: Any) -> Any:
    """The value if JSON can hold it, with null for NaN and infinities.

    Raises TypeError for anything else.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_to_json_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _to_json_value(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(type(value).__name__)


def _refuse_surrogates(text: str, kind: Kind) -> str:
    """`text` itself, if UTF-8 can hold it: JSON can smuggle in half a surrogate pair, which
    tokenizers refuse later.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CellError(
            kind,
            f"The {kind} text holds half a surrogate pair at character {error.start}. Unicode text "
            f"is allowed. Remove the character or export the row again.",
        ) from error
    return text


def _quote(cell: object) -> str:
    """A cell for a message, cut to a line."""
    text = "null" if cell is None else repr(cell)
    return text if len(text) <= 80 else text[:77] + "..."
