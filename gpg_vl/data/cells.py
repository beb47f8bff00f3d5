"""The error for a cell that cannot be parsed, and how messages quote a cell."""

from typing import Literal

from gpg_vl.errors import UserError, cut

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


class CellError(UserError):
    """A cell that cannot be parsed. The reader turns it into a `RowProblem`."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def refuse_surrogates(text: str, kind: Kind) -> str:
    """Return `text` if UTF-8 can encode it. JSON can contain half a surrogate pair, which tokenizers refuse
    later.
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


def quote(cell: object) -> str:
    """A cell for a message, cut to a line."""
    return cut("null" if cell is None else repr(cell))
