"""The sizes of a model that its computing cost depends on. A family derives them from a config, and the cost model uses
them."""

from dataclasses import dataclass
from typing import NamedTuple


class Kept(NamedTuple):
    """How many numbers the forward pass of a layer keeps for its backward pass, per token or patch."""

    computed: int = 0
    """Numbers in the dtype of products: inputs of linear layers and attention, and outputs of attention."""
    summed: int = 0
    """Numbers in float32 with any dtype: inputs of norms, and their outputs before the weight."""
    cast: int = 0
    """Additional numbers in a dtype narrower than float32: each linear layer makes its own cast copy of a shared input."""

    def bytes(self, itemsize: int) -> float:
        """itemsize: bytes of a number in the dtype of products."""
        cast = self.cast if itemsize < 4 else 0
        return float((self.computed + cast) * itemsize + self.summed * 4)


NOTHING = Kept()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a model. Biases, norms and embeddings are left out: they are bytes, not arithmetic.

    Example: `Shape(body=1_310_195_712, head=233_373_696, layers=28, width=1536)`
    """

    body: int
    """Weights of the text tower's matrices, embeddings not included."""
    head: int
    """Hidden size times vocabulary."""
    layers: int
    width: int
    """Heads times head size."""
    key_values: int = 0
    """Numbers in the KV cache per token, over all layers."""
    patch_weights: int = 0
    """Weights of the vision tower that are applied to every patch."""
    merger_weights: int = 0
    """Weights of the merger that are applied to every image token."""
    vision_layers: int = 0
    """Layers with attention over the whole image, or over each tile of it."""
    vision_window: int = 0
    """Patches of a tile, where an image is cut into tiles that are seen one by one."""
    vision_width: int = 0
    merge: int = 1
    """Patches per image token."""
    hidden: int = 0
    """Hidden size: numbers per token in the input and output of a layer."""
    kept: Kept = NOTHING
    """Kept numbers of each text layer, per token."""
    vision_depth: int = 0
    """Blocks of the vision tower, with any kind of attention."""
    vision_kept: Kept = NOTHING
    """Kept numbers of each block, per patch."""
