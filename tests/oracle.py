"""The naive path, as an oracle: every completion in a row of its own through the stock model of transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpg_vl.models.load import Tokens
from gpg_vl.types import Prompt


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
    arguments = {}
    if prompt.pixel_values_N is not None:
        types = torch.cat([prompt.image_mask_T, torch.zeros(len(completion), dtype=torch.bool)])[
            None
        ].int()
        arguments = {
            "pixel_values": prompt.pixel_values_N,
            "image_grid_thw": prompt.grid_thw_I_3,
            "mm_token_type_ids": types,
        }
    if hasattr(model, "model") and hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    logits_T_V = model(input_ids=ids, use_cache=False, **arguments).logits[0]
    logits_T_V = logits_T_V.to(torch.promote_types(logits_T_V.dtype, torch.float32)) / temperature
    forbidden = torch.zeros(logits_T_V.shape[1], dtype=torch.bool)
    forbidden[list(tokens.never_sampled)] = True
    at = torch.arange(prompt.length - 1, prompt.length - 1 + len(completion))
    return logits_T_V.masked_fill(forbidden, -torch.inf)[at]
