"""Images that are cut into square tiles of one size, each seen by the vision tower on its own.

Tiles travel as rows of patches, as the images of other families do: the grid of an image has its tiles in the place of time.
`_N` patches of all images, `_I` images.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpg_vl.models.families import qwen2
from gpg_vl.models.families.family import Patches
from gpg_vl.models.shape import Kept, Shape

CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The sizes of a tile.

    Example: `Tile(side=448, patch=14, merge=2)` has 256 image tokens.
    """

    side: int
    """Pixels along its side."""
    patch: int
    """Pixels along the side of a patch."""
    merge: int
    """Patches along the side of what becomes one image token."""

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return (self.side // (self.patch * self.merge)) ** 2


def to_patches(tiles: Tensor, patch: int) -> Tensor:
    """[tiles, channels, side, side] -> [N, channels * patch * patch], tile by tile, row by row."""
    count, channels, height, width = tiles.shape
    cut = tiles.reshape(count, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * patch * patch)


def to_tiles(pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> Tensor:
    """The inverse of `to_patches`: the tiles of all images, one image behind the other."""
    _, rows, columns = grid_thw_I_3[0].tolist()
    patch = round((pixel_values_N.shape[1] / CHANNELS) ** 0.5)
    cut = pixel_values_N.reshape(-1, rows, columns, CHANNELS, patch, patch)
    joined = cut.permute(0, 3, 1, 4, 2, 5)
    return joined.reshape(-1, CHANNELS, rows * patch, columns * patch)


def patches_of(tiles_of_images: list[Tensor], tile: Tile) -> Patches:
    """The images of a prompt, each as its tiles [tiles, channels, side, side]."""
    counts = [len(tiles) for tiles in tiles_of_images]
    rows = tile.side // tile.patch
    grid_I_3 = torch.tensor([[count, rows, rows] for count in counts])
    pixels_N = to_patches(torch.cat(tiles_of_images).float(), tile.patch)
    return Patches(pixels_N, grid_I_3, [count * tile.tokens for count in counts])


def blank(tile: Tile, tokens: int) -> Patches:
    """As many tiles of zeros as have at most `tokens` image tokens, at least one."""
    count = max(1, tokens // tile.tokens)
    return patches_of([torch.zeros(count, CHANNELS, tile.side, tile.side)], tile)


def by_image(features: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
    """Features [tiles, image tokens, H] of all tiles -> [image tokens, H] of each image."""
    counts = grid_thw_I_3[:, 0].tolist()
    return [of_image.flatten(0, 1) for of_image in features.split(counts)]


# ---- what is known from the config alone


def add_vision(text: Shape, vision: Any, tile: Tile, *, merger_weights: int, kept: Kept) -> Shape:
    """The shape of a text tower with a vision tower before it: an MLP of two matrices, attention within each tile.

    vision: the `vision_config`. kept: what a layer of the vision tower keeps for the backward pass.
    """
    width, inner, layers = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    block = 4 * width * width + 2 * width * inner
    return replace(
        text,
        patch_weights=layers * block + CHANNELS * tile.patch**2 * width,
        merger_weights=merger_weights,
        vision_layers=layers,
        vision_window=(tile.side // tile.patch) ** 2,
        vision_width=width,
        merge=tile.merge**2,
        vision_depth=layers,
        vision_kept=kept,
    )


def thinned(config: Any, share: int) -> Any:
    """As for the text tower alone, and one in `share` of the vision tower's layers."""
    thin = qwen2.thinned(config, share)
    vision = thin.vision_config
    vision.num_hidden_layers = max(1, vision.num_hidden_layers // share)
    return thin
