"""Image features that need not be computed again: bounded, and known by what the image holds.

While the vision tower and its merger are frozen, an image has the same features in every step.
While they are trained, features are good for the rollout of one step at most.
"""

from collections import OrderedDict

import torch
import xxhash
from torch import Tensor


def image_key(patches: Tensor, grid_3: Tensor) -> str:
    """Equal for equal patches on an equal grid, whatever file they came from."""
    # a name in memory, not a proof: a cryptographic digest of the patches takes as long as making them
    digest = xxhash.xxh3_128(repr(grid_3.tolist()).encode())
    digest.update(patches.contiguous().numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Features [image tokens, H] by image key and dtype; what was used longest ago goes first.

    max_bytes: of all features together. A single larger image is not kept.
    only: the images that are worth keeping; None keeps any.
    """

    def __init__(self, max_bytes: int, only: frozenset[str] | None = None) -> None:
        self._max_bytes = max_bytes
        self._only = only
        self._held_bytes = 0
        self._features: OrderedDict[tuple[str, torch.dtype], Tensor] = OrderedDict()

    def get(self, key: str, dtype: torch.dtype) -> Tensor | None:
        features = self._features.get((key, dtype))
        if features is not None:
            self._features.move_to_end((key, dtype))
        return features

    def put(self, key: str, features: Tensor, dtype: torch.dtype) -> None:
        size = features.numel() * features.element_size()
        unwanted = self._only is not None and key not in self._only
        if unwanted or size > self._max_bytes or (key, dtype) in self._features:
            return

        # not a view that would keep a whole batch alive
        self._features[key, dtype] = features.clone()
        self._held_bytes += size
        while self._held_bytes > self._max_bytes:
            _, oldest = self._features.popitem(last=False)
            self._held_bytes -= oldest.numel() * oldest.element_size()

    def clear(self) -> None:
        self._features.clear()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes
