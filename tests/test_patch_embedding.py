"""The patch embedding: a convolution over whole patches as a matrix product, with the weight and name that it had."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gpg_vl.model import Model
from gpg_vl.models.load import load_model
from gpg_vl.models.patch_embedding import PatchEmbedding

KERNEL = (2, 3, 3)


def made(seed: int = 0) -> tuple[nn.Conv3d, torch.Tensor]:
    torch.manual_seed(seed)
    convolution = nn.Conv3d(3, 8, KERNEL, stride=KERNEL, bias=False)
    return convolution, torch.randn(20, 3, *KERNEL)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_value_and_gradients_are_those_of_the_convolution(dtype: torch.dtype, most: float) -> None:
    """Against the convolution in float64."""
    convolution, patches = made()
    weights = torch.randn(20, 8, 1, 1, 1, dtype=torch.float64)

    results = []
    for layer, precision in (
        (convolution.double(), torch.float64),
        (PatchEmbedding(made()[0]).to(dtype), dtype),
    ):
        given = patches.to(precision).requires_grad_()
        output = layer(given)
        (output * weights.to(precision)).sum().backward()
        results.append((output, given.grad, layer.weight.grad))

    for expected, ours in zip(*results, strict=True):
        assert ours.shape == expected.shape
        assert (ours.double() - expected).norm() <= most * expected.norm()


def test_in_bfloat16_the_gradient_is_as_exact_as_its_factors() -> None:
    """Each factor is rounded to eight bits, 2^-9 at most: 3e-3 together. Sums of 5000 patches must not be rounded too."""
    convolution, _ = made()
    layer, patches = PatchEmbedding(convolution), torch.randn(5000, 3, *KERNEL)
    weights = torch.randn(5000, 8, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(patches)
    (output * weights).sum().backward()
    exact = weights.flatten(1).double().T @ patches.flatten(1).double()
    assert layer.weight.grad is not None
    error = (layer.weight.grad.flatten(1).double() - exact).norm() / exact.norm()
    assert error < 4e-3


def test_the_tower_of_a_policy_has_it_under_the_names_of_the_checkpoint(
    tiny_checkpoint: Path, newer_checkpoint: Path, deep_checkpoint: Path
) -> None:
    """That of Qwen3-VL has a bias."""
    for checkpoint in (tiny_checkpoint, newer_checkpoint, deep_checkpoint):
        stock = load_model(str(checkpoint))
        policy = Model.load(checkpoint, device="cpu").policy
        layer = policy.model.model.visual.patch_embed.proj
        assert isinstance(layer, PatchEmbedding)
        assert not [m for m in policy.model.model.visual.modules() if isinstance(m, nn.Conv3d)]
        shapes = [(name, weight.shape) for name, weight in stock.state_dict().items()]
        assert [(name, w.shape) for name, w in policy.model.state_dict().items()] == shapes


def test_what_it_cannot_compute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one group, this is Conv3d"):
        PatchEmbedding(nn.Conv3d(4, 8, KERNEL, groups=2, bias=False))

    convolution, _ = made()
    with pytest.raises(
        ValueError, match=r"takes patches of \(3, 2, 3, 3\).*batch of \(3, 2, 6, 3\)"
    ):
        PatchEmbedding(convolution)(torch.zeros(1, 3, 2, 6, 3))
