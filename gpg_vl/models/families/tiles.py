"""Images that are cut into square tiles of one size, each seen by the vision tower on its own.

Tiles travel as rows of patches, as the images of other families do: the grid of an image has its tiles in the place of time.
`_N` patches of all images, `_I` images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.models.families.family import Patches

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
