"""Computes the first layer of a vision tower as a matrix product.

transformers implements it as a convolution whose kernel is a whole patch, applied to single patches, so each output is one
product of a patch with the weight. Libraries are slow for convolutions of this shape, especially for the gradient in
bfloat16.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

from gpg_vl.models.families import Family


class PatchEmbedding(nn.Module):
    """Replaces a convolution over single patches and keeps its weight and name, so checkpoints do not change.

    convolution: must have one group; patches have the size of its kernel.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        if convolution.groups != 1:
            raise ValueError(
                f"A patch embedding has one group, this is {convolution}. Leave `patch_embedding` of the "
                f"family empty: the layer is then computed as it is."
            )
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        """[N, channels, time, height, width], each a whole patch -> [N, features, 1, 1, 1]."""
        if patches.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"The patch embedding takes patches of {tuple(self.weight.shape[1:])}, this is a batch of "
                f"{tuple(patches.shape[1:])}."
            )
        embedded_N_H = linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return embedded_N_H[:, :, None, None, None]


def install(model: nn.Module, family: Family) -> None:
    """Make the vision tower of `model` embed patches by a matrix product, if the family names the layer."""
    tower = family.vision_tower(model)
    if tower is None or not family.patch_embedding:
        return

    layer = tower.get_submodule(family.patch_embedding)
    if isinstance(layer, nn.Conv3d):  # a model that is used by a second policy has it already
        tower.set_submodule(family.patch_embedding, PatchEmbedding(layer))
