"""Computes image features once per micro-batch, per rollout, or per run.

While the vision tower and its merger are frozen, an image has the same features in every step, so they are cached for the whole
run. While they are trained, features are valid for the rollout of one step at most.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.models.families import Family
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.head import compute_dtype
from gpg_vl.models.layout import Packed

ROLLOUT_FEATURE_BYTES = 2**30
"""Maximum memory for the features of images that several prompts of one rollout share."""


class ImageEncoder:
    """The vision tower of a model with caches of its features. Called inside the policy's forward.

    kept: the cache for features of a frozen tower, for the whole run; None caches nothing.
    """

    def __init__(self, model: Any, family: Family, kept: FeatureCache | None) -> None:
        self._model = model
        self._family = family
        self.kept = kept
        self._rollout: FeatureCache | None = None
        self.patches = 0
        """Patches that went through the tower so far."""

    def features(self, packed: Packed) -> list[Tensor]:
        """Features [image tokens, H] of each distinct image: cached ones if valid, else from one call of the tower."""
        if packed.pixel_values_N is None or packed.grid_thw_I_3 is None:
            return []
        if not packed.image_keys:
            return self._encode(packed.pixel_values_N, packed.grid_thw_I_3)

        # one image at a time, so that features are a function of the image alone and a resumed run finds the same
        if self.kept is not None and not self.is_trained:
            with torch.no_grad():
                return self._remember(packed, self.kept, one_by_one=True)

        if self._rollout is not None and not torch.is_grad_enabled():
            return self._remember(packed, self._rollout, one_by_one=False)
        return self._encode(packed.pixel_values_N, packed.grid_thw_I_3)

    @contextmanager
    def remembering(self, keys: Collection[str]) -> Iterator[None]:
        """Inside the block weights must not change. Features of these images are cached once computed without gradient."""
        self._rollout = FeatureCache(ROLLOUT_FEATURE_BYTES, only=frozenset(keys)) if keys else None
        try:
            yield
        finally:
            self._rollout = None

    @property
    def is_trained(self) -> bool:
        """Whether features change from step to step."""
        return any(p.requires_grad for p in self._parameters())

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self._family.vision_modules(self._model):
            yield from module.parameters()

    def _remember(self, packed: Packed, cache: FeatureCache, *, one_by_one: bool) -> list[Tensor]:
        assert packed.pixel_values_N is not None, "features were requested, but there is no image"
        assert packed.grid_thw_I_3 is not None
        # check a weight of the tower: reading one of the head would gather it if it is sharded
        dtype = compute_dtype(next(self._parameters()))

        known: dict[str, Tensor] = {}
        missing: list[int] = []
        for number, key in enumerate(packed.image_keys):
            features = cache.get(key, dtype)
            if features is None:
                missing.append(number)
            else:
                known[key] = features

        patches = packed.pixel_values_N.split(packed.grid_thw_I_3.prod(dim=1).tolist())
        calls = [[number] for number in missing] if one_by_one else [missing]
        for call in calls if missing else []:
            encoded = self._encode(
                torch.cat([patches[number] for number in call]), packed.grid_thw_I_3[call]
            )
            for number, features in zip(call, encoded, strict=True):
                known[packed.image_keys[number]] = features
                cache.put(packed.image_keys[number], features, dtype)
        return [known[key] for key in packed.image_keys]

    def _encode(self, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
        self.patches += len(pixel_values_N)
        return self._family.image_features(self._model, pixel_values_N, grid_thw_I_3)
