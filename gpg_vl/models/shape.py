"""The sizes of a model that arithmetic depends on: what a family knows of a config and a cost model asks for."""

from dataclasses import dataclass


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
    """Layers with attention over the whole image."""
    vision_width: int = 0
    merge: int = 1
    """Patches per image token."""
