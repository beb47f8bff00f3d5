"""The sizes of a model that arithmetic depends on: what a family knows of a config and a cost model asks for."""

from dataclasses import dataclass
from typing import NamedTuple


class Kept(NamedTuple):
    """Numbers of a layer that its forward pass keeps for its backward pass, for each token or patch."""

    computed: int = 0
    """In the dtype of the products: what linear layers and attention were given, and what attention gave."""
    summed: int = 0
    """In float32 whatever the dtype: what norms were given, and what they gave before their weight."""
    cast: int = 0
    """More of them in a dtype narrower than float32: each linear layer makes its own copy of what several are given."""

    def bytes(self, itemsize: int) -> float:
        """itemsize: of the dtype of the products."""
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
    """Numbers that the cache of keys and values holds for one token, all layers together."""
    patch_weights: int = 0
    """Weights of the vision tower that every patch passes."""
    merger_weights: int = 0
    """Weights of the merger that every image token passes."""
    vision_layers: int = 0
    """Layers with attention over the whole image, or over each tile of it."""
    vision_window: int = 0
    """Patches of a tile, where an image is cut into tiles that are seen one by one."""
    vision_width: int = 0
    merge: int = 1
    """Patches per image token."""
    hidden: int = 0
    """What a layer is given for a token, and gives."""
    kept: Kept = NOTHING
    """Of each layer of the text tower, for a token."""
    vision_depth: int = 0
    """Blocks of the vision tower, with whatever attention."""
    vision_kept: Kept = NOTHING
    """Of each of them, for a patch."""
