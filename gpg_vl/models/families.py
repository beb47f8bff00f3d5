"""What differs between model families, all of it in this one place.

A family says which tokens stand for vision, how a grid of patches becomes positions, and where the parts of the model
are. Qwen2-VL and Qwen2.5-VL are complete; text-only Qwen2 and Qwen2.5 take the same path with no vision part. To add a
family, add an entry to `FAMILIES` and, if its positions differ, a position function; the tests run over every entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.registry import did_you_mean

VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Never sampled: a completion that held one would need an image that does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The facts of one model family."""

    model_type: str
    """`model_type` in the checkpoint's config.json."""
    model_class: str
    """The class of transformers that loads it."""
    has_vision: bool
    patch_size: int = 0
    """Pixels along the side of a patch."""
    merge_size: int = 0
    """Patches along the side of what becomes one image token."""
    image_markup: str = ""
    """What stands for one image in a rendered prompt."""
    positions: Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
    """(ids_T, image_mask_T, grid_thw_I_3, merge_size) -> positions_3_T."""

    def language_model(self, model: Any) -> nn.Module:
        """The text tower, without head."""
        tower: nn.Module = model.model.language_model if self.has_vision else model.model
        return tower

    def vision_tower(self, model: Any) -> nn.Module | None:
        return model.model.visual if self.has_vision else None

    def part_of(self, parameter_name: str) -> str:
        """`vision`, `merger` or `language`: the part that a parameter of the model belongs to."""
        if ".visual.merger." in parameter_name or parameter_name.startswith("visual.merger."):
            return "merger"
        return (
            "vision"
            if ".visual." in parameter_name or parameter_name.startswith("visual.")
            else "language"
        )


def text_positions(
    ids_T: Tensor, image_mask_T: Tensor, grid_thw_I_3: Tensor | None, merge_size: int
) -> Tensor:
    """0, 1, 2, ... on all three axes."""
    return torch.arange(ids_T.shape[0]).expand(3, -1).clone()


def mrope_positions(
    ids_T: Tensor, image_mask_T: Tensor, grid_thw_I_3: Tensor | None, merge_size: int
) -> Tensor:
    """M-RoPE of Qwen2-VL: text advances all axes by one, an image spans its own time, height and width.

    After an image, text goes on at the largest position of the image plus one, which is less than its number of tokens.
    Raises AssertionError if the image tokens of the ids are not those of the grids.
    """
    positions: list[Tensor] = []
    following = 0
    at = 0
    grids = [] if grid_thw_I_3 is None else grid_thw_I_3.tolist()
    image_starts = _run_starts(image_mask_T)
    assert len(image_starts) == len(grids), (
        f"{len(image_starts)} runs of image tokens, {len(grids)} images"
    )
    for start, (time, height, width) in zip(image_starts, grids, strict=True):
        text = torch.arange(start - at) + following
        positions.append(text.expand(3, -1))
        following += start - at
        rows, columns = height // merge_size, width // merge_size
        grid = torch.cartesian_prod(torch.arange(time), torch.arange(rows), torch.arange(columns)).T
        positions.append(grid + following)
        at = start + time * rows * columns
        following += max(rows, columns)
    positions.append((torch.arange(ids_T.shape[0] - at) + following).expand(3, -1))
    return torch.cat(positions, dim=1)


def _run_starts(mask_T: Tensor) -> list[int]:
    before = torch.cat([torch.zeros(1, dtype=torch.bool), mask_T[:-1]])
    return torch.nonzero(mask_T & ~before).flatten().tolist()


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="qwen2_vl",
            model_class="Qwen2VLForConditionalGeneration",
            has_vision=True,
            patch_size=14,
            merge_size=2,
            image_markup=_QWEN_IMAGE,
            positions=mrope_positions,
        ),
        Family(
            model_type="qwen2_5_vl",
            model_class="Qwen2_5_VLForConditionalGeneration",
            has_vision=True,
            patch_size=14,
            merge_size=2,
            image_markup=_QWEN_IMAGE,
            positions=mrope_positions,
        ),
        Family(
            model_type="qwen2",
            model_class="Qwen2ForCausalLM",
            has_vision=False,
            positions=text_positions,
        ),
    )
}


def family_of(model_type: str, where: str) -> Family:
    """The family called `model_type`. Raises UserError that names the supported ones."""
    if model_type not in FAMILIES:
        raise UserError(
            f"The checkpoint {where} is of model type {model_type!r}, which gpg_vl does not train. "
            f"{did_you_mean(model_type, list(FAMILIES))} Choose a checkpoint of one of these."
        )
    return FAMILIES[model_type]
