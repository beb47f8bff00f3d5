"""The naive path, as an oracle: every completion in a row of its own through the stock model of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.models.load import Tokens
from gpg_vl.types import Prompt

TILED = {"internvl": True, "smolvlm": False}
"""Model types that see an image as tiles, and whether they take the tiles of all prompts in one axis."""


def naive_logp(
    model: nn.Module,
    tokens: Tokens,
    prompt: Prompt,
    completion: Sequence[int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """log pi of each completion token [T], with gradient, by the stock forward: its own positions, mask and image path."""
    logits_T_V = naive_logits(model, tokens, prompt, completion, temperature=temperature)
    logp_T_V = torch.log_softmax(logits_T_V, dim=-1)
    return logp_T_V[torch.arange(len(completion)), torch.tensor(list(completion), dtype=torch.long)]


def stock_images(model: Any, prompt: Prompt, following: int = 0) -> dict[str, Tensor]:
    """What the stock forward takes of the images of a prompt. following: tokens behind the prompt."""
    if prompt.pixel_values_N is None or prompt.grid_thw_I_3 is None:
        return {}
    if model.config.model_type in TILED:
        (rows, columns) = prompt.grid_thw_I_3[0, 1:].tolist()
        patch = int((prompt.pixel_values_N.shape[1] // 3) ** 0.5)
        size, columns_L = (rows * patch, columns * patch), rows * columns
        by_tile = prompt.pixel_values_N.unflatten(0, (-1, columns_L)).transpose(1, 2)
        tiles = nn.functional.fold(by_tile, size, kernel_size=patch, stride=patch)
        return {"pixel_values": tiles if TILED[model.config.model_type] else tiles[None]}

    mask_T = nn.functional.pad(prompt.image_mask_T, (0, following))
    return {
        "pixel_values": prompt.pixel_values_N,
        "image_grid_thw": prompt.grid_thw_I_3,
        "mm_token_type_ids": mask_T[None].int(),
    }


def naive_logits(
    model: nn.Module,
    tokens: Tokens,
    prompt: Prompt,
    completion: Sequence[int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """[T, V]: what each completion token was drawn from, vision tokens at minus infinity."""
    ids = torch.cat([prompt.input_ids_T, torch.tensor(list(completion), dtype=torch.long)])[None]
    arguments = stock_images(model, prompt, len(completion))
    if hasattr(model, "model") and hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    logits_T_V = model(input_ids=ids, use_cache=False, **arguments).logits[0]
    logits_T_V = logits_T_V.to(torch.promote_types(logits_T_V.dtype, torch.float32)) / temperature
    forbidden = torch.zeros(logits_T_V.shape[1], dtype=torch.bool)
    forbidden[list(tokens.never_sampled)] = True
    at = torch.arange(prompt.length - 1, prompt.length - 1 + len(completion))
    return logits_T_V.masked_fill(forbidden, -torch.inf)[at]
