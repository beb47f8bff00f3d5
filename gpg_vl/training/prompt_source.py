"""The examples of a run in their order, encoded when they are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpg_vl.data.order import Order, Shuffled
from gpg_vl.models.encode import Encoder
from gpg_vl.training.row_digests import RowDigests, refuse_changed_row
from gpg_vl.types import Example, Group


class Source(Protocol):
    """A source of groups without completions. The group at a position of the data order depends
    only on that position."""

    def row_at(self, draw: int) -> int:
        """The number of the row at a place of the data order. Reads nothing."""
        ...

    def group_at(self, draw: int) -> Group:
        """The group at a place of the data order. Raises UserError if its example cannot be used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Finds and encodes the example at any position of the data order, independent of earlier
    draws."""

    examples: Sequence[Example]
    encoder: Encoder
    seed: int
    rows: RowDigests | None = None
    """The digests of the rows when the data was checked; None: not checked."""
    order: Order | None = None
    """None: every epoch is shuffled with its own seed."""
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    """Encoders by source of the example, if several sets have different prompts."""

    def row_at(self, draw: int) -> int:
        """The number of the row at place `draw`."""
        order = self.order or Shuffled(rows=range(len(self.examples)), seed=self.seed)
        return order.row_at(draw)

    def group_at(self, draw: int) -> Group:
        """The example at place `draw`, encoded, without completions.

        Raises UserError if it cannot be read or encoded, or has changed since the check.
        """
        return self.group_of(self.row_at(draw), draw=draw)

    def group_of(self, number: int, *, draw: int) -> Group:
        """The same for the row with this number."""
        example = self.examples[number]
        encoder = self.encoders.get(example.source, self.encoder)
        if self.rows is not None:
            refuse_changed_row(self.rows, number, example, encoder.root)
        prompt = encoder.encode(example)
        return Group(example=encoder.place(example), prompt=prompt, completions=(), draw=draw)
