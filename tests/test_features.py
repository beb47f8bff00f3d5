"""Kept image features: known by content, bounded, the least recently used go first."""

import torch

from gpg_vl.models.features import FeatureCache, image_key

GRID = torch.tensor([1, 2, 2])


def features(value: float) -> torch.Tensor:
    """256 bytes."""
    return torch.full((8, 8), float(value))


def test_a_key_is_the_content() -> None:
    patches = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    assert image_key(patches, GRID) == image_key(patches.clone(), GRID.clone())
    assert image_key(patches.T.contiguous().T, GRID) == image_key(patches, GRID)
    changed = patches.clone()
    changed[3, 5] += 1e-6
    others = {
        image_key(changed, GRID),
        image_key(patches, torch.tensor([1, 4, 1])),
        image_key(patches[:3], GRID),
    }
    assert len(others) == 3
    assert image_key(patches, GRID) not in others


def test_the_bound_holds_and_the_least_recently_used_go() -> None:
    cache = FeatureCache(3 * 256)
    for name in "abc":
        cache.put(name, features(ord(name)), torch.float32)
    assert cache.get("a", torch.float32)[0, 0] == 97
    cache.put("d", features(1.0), torch.float32)
    assert cache.held_bytes == 3 * 256
    assert [name for name in "abcd" if cache.get(name, torch.float32) is not None] == [
        "a",
        "c",
        "d",
    ]
    cache.put("huge", torch.zeros(1000), torch.float32)
    assert cache.get("huge", torch.float32) is None
    assert cache.held_bytes == 3 * 256


def test_precision_is_part_of_the_key() -> None:
    cache = FeatureCache(10**6)
    cache.put("a", features(1.0), torch.bfloat16)
    assert cache.get("a", torch.float32) is None
    cache.clear()
    assert cache.get("a", torch.bfloat16) is None
    assert cache.held_bytes == 0
