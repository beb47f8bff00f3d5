"""The policy: one module whose forward turns rows of groups into a loss, or into log-probs.

Everything that touches a parameter happens inside `forward`, so distributed wrappers see ordinary module calls.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from gpg_vl.algorithms.losses import gpg_loss
from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.models.layout import Rows, sibling_mask
from gpg_vl.models.load import Tokens

HEAD_TILE_ELEMENTS = 2**24
"""Most elements of one [tokens, vocabulary] tile of the head: 64 MB in float32."""


class PolicyOutput(NamedTuple):
    """What one pass returns. `_K` are the completion tokens of the pass, in the order of `Rows.targets_K`."""

    loss: Tensor
    """- sum of coefficients_K * logp_K, to differentiate."""
    logp_K: Tensor
    """log pi of every completion token, without gradient."""
    entropy_K: Tensor
    """Entropy in nats of the distribution each token was drawn from, without gradient."""


class Policy(nn.Module):
    """A vision-language model that scores completions.

    model: the transformers model, with or without adapters in it.
    temperature: divides the logits, as it does in sampling.
    """

    def __init__(self, model: nn.Module, family: Family, tokens: Tokens, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.temperature = temperature
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise UserError(
                f"The model has layers of type {', '.join(sorted(kinds))}; only full_attention is supported. Set "
                f"use_sliding_window to false in the checkpoint's config.json if its prompts are short enough."
            )
        if getattr(config, "attention_dropout", 0.0):
            raise UserError(
                f"The model has attention_dropout {config.attention_dropout}; only 0 is allowed, because the policy that "
                f"samples and the one that trains must be the same. Set it to 0 in the checkpoint's config.json."
            )
        never = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
        never[list(tokens.never_sampled)] = True
        self.register_buffer("never_sampled_V", never, persistent=False)

    def forward(self, rows: Rows, coefficients_K: Tensor | None = None) -> PolicyOutput:
        """Score the completions of `rows`; `coefficients_K` (default 0) weighs each token's log-prob in the loss."""
        hidden = self.hidden_states(rows)
        hidden_K_H = hidden[rows.source_row_K, rows.source_column_K]
        coefficients_K = (
            torch.zeros(len(hidden_K_H), device=hidden.device) if coefficients_K is None else coefficients_K
        )
        tile = max(1, HEAD_TILE_ELEMENTS // self.never_sampled_V.shape[0])
        loss = hidden_K_H.new_zeros((), dtype=torch.float32)
        logps, entropies = [], []
        for start in range(0, len(hidden_K_H), tile):
            part = slice(start, start + tile)
            arguments = (hidden_K_H[part], rows.targets_K[part])
            if (
                torch.is_grad_enabled()
            ):  # the tile's logits are computed again in the backward pass instead of being kept
                logp, entropy = checkpoint(self._score, *arguments, use_reentrant=False)
            else:
                logp, entropy = self._score(*arguments)
            loss = loss + gpg_loss(logp, coefficients_K[part]).loss
            logps.append(logp.detach())
            entropies.append(entropy.detach())
        empty = hidden_K_H.new_zeros(0)
        return PolicyOutput(
            loss + 0.0 * hidden.float().sum(), torch.cat(logps or [empty]), torch.cat(entropies or [empty])
        )

    def hidden_states(self, rows: Rows) -> Tensor:
        """Final hidden states [B, S, H] of every token of every row."""
        return self.tower_states(rows.positions_3_B_S, sibling_mask(rows.segments_B_S), embeddings=self.embed(rows))

    def embed(self, rows: Rows) -> Tensor:
        """[B, S, H]: token embeddings with the image features put in their places."""
        embeddings = self.embed_tokens(rows.ids_B_S)
        if rows.pixel_values_N is None:
            return embeddings + 0.0 * self._blank_features(embeddings) if torch.is_grad_enabled() else embeddings
        features = self.image_features(rows.pixel_values_N, rows.grid_thw_I_3)
        where = rows.image_mask_B_S[..., None].expand_as(embeddings)
        return embeddings.masked_scatter(where, features.to(embeddings.dtype))

    def _blank_features(self, like: Tensor) -> Tensor | float:
        """The sum of the features of one blank image token, if the vision tower is trained.

        Added with factor 0 to rows without images, it gives every trained weight a gradient: processes that share gradients
        would wait for each other for ever if one of them had images in a pass and another had none.
        """
        tower = self.family.vision_tower(self.model)
        if tower is None or not any(p.requires_grad for p in tower.parameters()):
            return 0.0
        side = self.family.merge_size
        values = 3 * self.model.config.vision_config.temporal_patch_size * self.family.patch_size**2
        return self.image_features(
            like.new_zeros(side * side, values), torch.tensor([[1, side, side]], device=like.device)
        ).sum()

    def embed_tokens(self, ids_B_S: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids_B_S)

    def tower_states(
        self, positions_3_B_S: Tensor, mask_B_1_S_K: Tensor, *, embeddings: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """The text tower alone. Positions and mask are explicit, so no rule of the library is consulted for them."""
        tower = self.family.language_model(self.model)
        positions = positions_3_B_S if self.family.has_vision else positions_3_B_S[0]
        return tower(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask_B_1_S_K},
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def image_features(self, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> Tensor:
        """[image tokens, H] of all images in order."""
        return torch.cat(list(self.model.model.get_image_features(pixel_values_N, grid_thw_I_3).pooler_output))

    def logits(self, hidden_K_H: Tensor, *, temperature: float) -> Tensor:
        """float32 logits of the sampling distribution: over the temperature, vision tokens at minus infinity."""
        logits_K_V = self.model.get_output_embeddings()(hidden_K_H).float() / temperature
        return logits_K_V.masked_fill(self.never_sampled_V, -torch.inf)

    def _score(self, hidden_K_H: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        logp_K_V = torch.log_softmax(self.logits(hidden_K_H, temperature=self.temperature), dim=-1)
        with torch.no_grad():
            entropy_K = -torch.where(logp_K_V.isneginf(), 0.0, logp_K_V.exp() * logp_K_V).sum(dim=-1)
        return logp_K_V.gather(1, targets_K[:, None])[:, 0], entropy_K
