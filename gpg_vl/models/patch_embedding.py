"""The first layer of a vision tower as the matrix product that it is.

It is written as a convolution whose kernel is a whole patch, and is given patches one by one, so each of its outputs is one
product of a patch with the weight. Libraries compute a convolution of that shape slowly, above all its gradient in bfloat16.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

from gpg_vl.models.families import Family


class PatchEmbedding(nn.Module):
    """A convolution over single patches, with its own weight and under its own name: checkpoints stay as they are.

    convolution: of one group; patches have the size of its kernel.
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
    """Let the vision tower of `model` embed patches by a matrix product, if the family says which layer does it."""
    tower = family.vision_tower(model)
    if tower is None or not family.patch_embedding:
        return

    layer = tower.get_submodule(family.patch_embedding)
    if isinstance(layer, nn.Conv3d):  # a model that is put into a second policy has it already
        tower.set_submodule(family.patch_embedding, PatchEmbedding(layer))
