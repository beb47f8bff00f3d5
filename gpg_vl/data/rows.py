"""Parses one row, a mapping from column names to cells, into an `Example` or a `RowProblem`.

Nothing here reads a file: `gpg_vl.data.read` provides the cells, and this module interprets them. If a
cell cannot be parsed, the row becomes a `RowProblem` with the first problem found; a row is never
dropped.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpg_vl.data.cells import CellError, Kind, quote, refuse_surrogates
from gpg_vl.data.layouts import read_asked
from gpg_vl.data.media import is_media_path
from gpg_vl.data.numbers import likely_written, write_number
from gpg_vl.data.prompts import parse_prompt, pictures_in_messages
from gpg_vl.data.text_damage import find_control
from gpg_vl.registry import did_you_mean
from gpg_vl.types import Example

_DATA_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_PICTURE_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0AK")
"""The first characters of JPEG, PNG, GIF, WEBP and TIFF in base64."""
_SHORTEST_BASE64, _LONGEST_PATH = 40, 400
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_OTHER_DATA_URI = re.compile(r"data:[^/\\]{0,40}[/;,]|base64[,:]", re.IGNORECASE)
_PRINTED = re.compile(r"\s*[\[({].*[\])}]\s*|b(['\"]).*\1|<PIL\..*>", re.DOTALL)
"""Matches a list or struct stored as text, printed bytes, and a printed image object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """What is wrong with one row, as a value.

    Example: `RowProblem(row=17, id="17", source="train.jsonl:18", kind="marks", message="The prompt
        has 2 ...")`
    """

    row: int
    """The number of the row in the whole source, from 0."""
    source: str
    """Its place: `file.jsonl:LINE`, from 1, or `file.parquet[ROW]`, from 0 in that file. May
    be empty."""
    kind: Kind
    """What kind of problem it is, to count by."""
    message: str
    """What was given, what is allowed and what to do."""
    id: str = ""
    """The id of the row, if it could be read."""

    def __str__(self) -> str:
        known = (f"row {self.row}", self.id and f"id {self.id!r}", self.source)
        return f"{', '.join(filter(None, known))}: {self.message}"


Row = Example | RowProblem


def parse_row(
    cells: Mapping[str, Any],
    mapping: Mapping[str, str],
    *,
    row: int,
    source: str,
    answers: bool = True,
) -> Row:
    """The row as an Example, or the first thing that is wrong with it.

    `mapping` names the column of each field that the source has
    (`gpg_vl.data.read.resolve_columns`); a dotted name reaches into a struct. A row without an id
    is called by its number. Unmapped columns go to `meta` if they are JSON values;
    images, other bytes and dates are left out.

    answers: whether a row needs a gold answer; False: without one it has the answer "".
    """
    name = ""
    try:
        given = _find_cell(cells, mapping, "id")
        name = str(row) if given in (None, "") else parse_text(given, "id")
        asked = read_asked(
            _require_cell(cells, mapping, "prompt"),
            cells,
            mapping,
            system=_find_cell(cells, mapping, "system"),
            answers=answers,
        )
        of_messages = pictures_in_messages(asked.prompt)
        images = _join_images(_find_cell(cells, mapping, "images"), of_messages)
        prompt = parse_prompt(asked.prompt, images=len(images))
        gold = asked.last_turn
        if mapping.get("answer") != mapping.get("prompt"):
            gold = (_require_cell if answers else _find_cell)(cells, mapping, "answer")
        answer = "" if gold is None and not answers else parse_answer(gold)
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
            place=source,
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
    """Parse a cell as text: a string unchanged; a number as people write it (`7`, `0.5`, `3` for 3.0); `true`
    or `false`.

    Raises CellError.
    """
    if isinstance(cell, str):
        return refuse_surrogates(cell, kind)
    if isinstance(cell, int) or (isinstance(cell, float) and math.isfinite(cell)):
        try:
            return write_number(cell)
        except ValueError as error:
            raise CellError(
                kind,
                f"The {what or kind} is {cell!r}, and {error}. Numbers of that length are allowed as "
                f"strings. Write it as a string, from the data it came from.",
            ) from error
    raise CellError(
        kind,
        f"The {what or kind} is {quote(cell)}. A string, a finite number or true/false is allowed. "
        f"Write it as a string.",
    )


def parse_answer(cell: object) -> str:
    """The gold answer as text. Raises CellError, also for a number that no person wrote."""
    text = parse_text(cell, "answer")
    if control := find_control(text):
        raise CellError(
            "answer",
            f"The answer {quote(text)} holds the control character {control}. Text that can be seen is allowed. Write it "
            f"anew; where a backslash command such as \\frac was meant, write the backslash twice.",
        )
    if meant := likely_written(text):
        raise CellError(
            "answer",
            f"The answer is {text!r}, whose digits no person wrote: it is {meant} after rounding by a computer, and "
            f"{meant} would be no right answer to it. The number that was meant is allowed. Write {meant}, as a string.",
        )
    return text


def parse_images(cell: object) -> tuple[str | bytes, ...]:
    """Parse an images cell: null or an empty list, one image, or a list of images, in order. Raises
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


def _join_images(cell: object, in_messages: Sequence[object]) -> tuple[str | bytes, ...]:
    """The images of a row, which may be in the images column or in its messages. Raises CellError if both
    have different images.
    """
    images = parse_images(cell)
    if not in_messages:
        return images

    of_messages = parse_images(list(in_messages))
    if images and images != of_messages:
        raise CellError(
            "image",
            f"The images column has {len(images)} image(s), and the messages bring {len(of_messages)} "
            f"others. Pictures are allowed in one of the two places. Write them into the images "
            f"column, and {{type: image}} without a picture into the messages.",
        )
    return of_messages


def _parse_picture(cell: object, name: str) -> str | bytes:
    # empty bytes are an error only if there is no path
    given = cell
    if isinstance(cell, dict):
        if not {"bytes", "path"} & cell.keys():
            raise CellError(
                "image",
                f"{name} is the struct {quote(cell)}, which has neither bytes nor path. A path, encoded bytes, a "
                f"{{bytes, path}} struct, a base64 data URI, or a list of these is allowed. Rename its key to path or "
                f"bytes, or write the path alone.",
            )
        cell = cell.get("bytes") or cell.get("path") or cell.get("bytes")

    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise CellError(
            "image",
            f"{name} is {quote(given)}. A path, encoded bytes, a {{bytes, path}} struct, a "
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
    _refuse_other_text(cell, name)
    return refuse_surrogates(cell, "image")


def _refuse_other_text(cell: str, name: str) -> None:
    """Raise CellError for a text that is not a path: base64, a URL, or a printed value."""
    if _is_base64(cell):
        raise CellError(
            "image",
            f"{name} is {quote(cell)}, {len(cell)} characters that look like base64. Paths, bytes and base64 behind "
            f"data:image/...;base64, are allowed. Write data:image/png;base64, (or jpeg, webp ...) in front of it.",
        )

    if _OTHER_DATA_URI.match(cell):
        raise CellError(
            "image",
            f"{name} is {quote(cell)}, which is no data URI of a picture in base64. One begins with "
            f"data:image/png;base64, (or jpeg, webp ...). Correct its beginning, and encode the picture in base64.",
        )

    if _URL.match(cell):
        raise CellError(
            "image",
            f"{name} is the address {quote(cell)}. Paths, bytes and data:image/...;base64 are "
            f"allowed; nothing is fetched from the network. Download the picture and write its "
            f"path.",
        )

    if _PRINTED.fullmatch(cell) and (len(cell) > _LONGEST_PATH or not is_media_path(cell)):
        raise CellError(
            "image",
            f"{name} is {quote(cell)}, a value that was stored as text. A path, encoded bytes, a {{bytes, path}} struct, or "
            f"a list of these is allowed. Store the value itself where the data is made.",
        )


def _is_base64(text: str) -> bool:
    """Whether a text is a base64 image and not a path, by its first characters or its length.

    So long a text without a dot is not a path.
    """
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return False
    return text.startswith(_PICTURE_BASE64) or len(text) > _LONGEST_PATH


def parse_choices(cell: object) -> tuple[str, ...] | None:
    """The option texts; null and an empty list mean that the question is open. Raises CellError."""
    if cell is None or cell == []:
        return None
    if not isinstance(cell, list):
        raise CellError(
            "choices",
            f"The choices are {quote(cell)}. A list of option texts, or null, is allowed. "
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
    """The unmapped cells that are JSON values; NaN and infinities become null."""
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
    """Convert to a JSON value, with null for NaN and infinities.

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
