"""Stores prompts that the rollout has computed with their graph, so that training can reuse them.

Image and prompt are then computed only once per step. The activations of all prompts of a step stay in memory until then.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpg_vl.models.layout import Packed
from gpg_vl.models.requests import Prefix


class PrefixStore:
    """Prefixes by prompt, which an engine puts and a learner takes.

    It is open only while the weights do not change, because stored prefixes belong to the current weights.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Prefix] | None = None

    @property
    def is_open(self) -> bool:
        return self._kept is not None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside the block prefixes are stored until they are taken."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def put(self, packed: Packed, prefix: Prefix) -> None:
        """Store the prefix of a single prompt."""
        if self._kept is not None and len(packed.prompt_keys) == 1:
            self._kept[packed.prompt_keys[0]] = prefix

    def take(self, packed: Packed) -> Prefix | None:
        """Remove and return the stored prefixes of a micro-batch; None unless all are stored. They can be used once, since
        backward frees the graph."""
        wanted = set(packed.prompt_keys)
        is_repeated = len(wanted) != len(packed.prompt_keys)
        if not self._kept or is_repeated or not wanted <= self._kept.keys():
            return None

        kept = [self._kept.pop(key) for key in packed.prompt_keys]
        states_S_H = torch.cat([prefix.states_S_H for prefix in kept])
        layers = []
        for pairs in zip(*(prefix.keys for prefix in kept), strict=True):
            keys, values = zip(*pairs, strict=True)
            layers.append((torch.cat(keys, dim=2), torch.cat(values, dim=2)))
        return Prefix(states_S_H, layers)
