"""The examples of a run in their order, encoded when they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpg_vl.data.order import index_at
from gpg_vl.models.encode import Encoder
from gpg_vl.types import Example, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Every place of the data order has an example, whatever was drawn before it: epoch after epoch, in seeded orders."""

    examples: Sequence[Example]
    encoder: Encoder
    seed: int

    def group_at(self, draw: int) -> Group:
        """The example at place `draw`, encoded, without completions. Raises UserError if it cannot be encoded."""
        number = index_at(draw, size=len(self.examples), seed=self.seed)
        example = self.examples[number]
        prompt = self.encoder.encode(example)
        return Group(example=example, prompt=prompt, completions=(), draw=draw)
