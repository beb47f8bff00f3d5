"""The policy: one module that scores completions, computes prompts, and decodes.

Every use of a parameter is a request through `forward` (`models.requests`), so that wrappers which gather, shard or copy
weights see ordinary module calls, each with an ordinary backward. How a micro-batch that is too large for one call is
computed with such calls is in `models.phases`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.models import attention, patch_embedding
from gpg_vl.models.attention import Kernel, LayerAttention, Segments, SharedPrefix
from gpg_vl.models.blocked import BlockedLayers, block
from gpg_vl.models.families import Family
from gpg_vl.models.families.family import Patches
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.head import (
    Objective,
    compute_dtype,
    fused_head,
    sampling_logits,
    score_tokens,
)
from gpg_vl.models.images import ImageEncoder
from gpg_vl.models.layout import Chunk, Packed
from gpg_vl.models.load import Tokens
from gpg_vl.models.requests import (
    BlockLayers,
    CastHead,
    CastMatrices,
    Decode,
    Features,
    Predict,
    Prefill,
    Prefix,
    Request,
    Score,
    ScoreOutput,
)
from gpg_vl.models.unsupported import refuse_unsupported
from gpg_vl.models.value_head import ValueHead, sum_value_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a policy has computed so far, counted where it is done."""

    vision_patches: int
    tower_tokens: int


class Policy(nn.Module):
    """A vision-language model that scores completions and continues prompts.

    model: the transformers model, with or without adapters in it.
    temperature: divides the logits, as it does in sampling.
    kernel: how attention over shared prefixes is computed, see `models.attention`.
    features: kept image features; None computes every image of every micro-batch.

    Raises UserError if the model cannot be trained exactly (`models.unsupported`).
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        tokens: Tokens,
        *,
        temperature: float = 1.0,
        kernel: Kernel = "split",
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(model)
        attention.install(model, has_vision=family.has_vision)
        patch_embedding.install(model, family)
        self.model: Any = model
        self.family = family
        self.temperature = temperature
        self.kernel = kernel
        self.images = ImageEncoder(model, family, features)
        self.critic: ValueHead | None = None
        """Only in training, and only for an algorithm that has one: see `add_critic`."""
        self._tower_tokens = 0

        never = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
        never[list(tokens.never_sampled)] = True
        self.never_sampled_V: Tensor
        self.register_buffer("never_sampled_V", never, persistent=False)

    def forward(self, request: Request) -> Any:
        """Answer a request; the answer is described with each request."""
        match request:
            case Score():
                return self._score(request)
            case Prefill(packed=packed):
                return self._prefill(packed)
            case Decode():
                return self._decode(request)
            case Predict(hidden_B_H=hidden_B_H, head_V_H=head_V_H, temperature=temperature):
                return sampling_logits(
                    hidden_B_H, head_V_H, self.never_sampled_V, temperature=temperature
                )
            case Features(packed=packed):
                return self.images.features(packed)
            case CastMatrices(dtype=dtype):
                return self._cast_matrices(dtype)
            case CastHead(rows=rows):
                weight_V_H = self._head_weight.detach()
                cast_V_H = weight_V_H.to(compute_dtype(weight_V_H))
                return block(cast_V_H, rows) if rows else cast_V_H
            case BlockLayers(rows=rows):
                dtype = compute_dtype(self._head_weight)
                return BlockedLayers(self.family.language_model(self.model), dtype, rows)

    @property
    def device(self) -> torch.device:
        return self.never_sampled_V.device

    @property
    def work(self) -> Work:
        return Work(vision_patches=self.images.patches, tower_tokens=self._tower_tokens)

    def add_critic(self) -> None:
        """Score values beside log-probs from now on."""
        self.critic = ValueHead(self._head_weight.shape[1], self.device)

    def blank_image(self) -> Patches | None:
        """An image to show where there is none. None where the vision tower is frozen, or missing: nothing depends on it."""
        return self.family.blank_image(self.model.config, 1) if self.images.is_trained else None

    # ---- scoring

    def _score(self, request: Score) -> ScoreOutput:
        packed, objective = request.packed, request.objective
        if request.prefix is not None:
            chunk = packed.chunks[request.chunk]
            return self._score_chunk(packed, chunk, request.prefix, objective)
        if len(packed.chunks) == 1:
            return self._score_joined(packed, objective)

        # with gradients, all chunks in one graph would hold the activations that chunks are there to avoid
        assert not torch.is_grad_enabled(), "a micro-batch in chunks is trained by models.phases"
        prefix = self._prefill(packed)
        outputs: list[ScoreOutput] = []
        at = 0
        for chunk in packed.chunks:
            part = slice(at, at + len(chunk.targets_K))
            chosen = objective.select(part) if objective else None
            outputs.append(self._score_chunk(packed, chunk, prefix, chosen))
            at = part.stop
        return join_outputs(outputs)

    def _score_joined(self, packed: Packed, objective: Objective | None) -> ScoreOutput:
        """Prefixes and suffixes in one call of the tower."""
        (chunk,) = packed.chunks
        segments = Segments(
            prefix_lengths=packed.prefix_lengths,
            suffix_lengths=chunk.lengths,
            prefixes=chunk.prefixes,
        )
        embeddings_T_H, deep = self._embed(packed, _append(packed.ids_S, chunk.ids_U))
        positions_3_T = _append(packed.positions_3_S, chunk.positions_3_U)
        states_T_H = self._run_tower(embeddings_T_H, positions_3_T, self._attend(segments), deep)
        return self._read_head(states_T_H[chunk.source_K], chunk, objective)

    def _score_chunk(
        self, packed: Packed, chunk: Chunk, prefix: Prefix, objective: Objective | None
    ) -> ScoreOutput:
        """The suffixes of one chunk against prefixes that are computed already."""
        states_T_H = prefix.states_S_H
        if len(chunk.ids_U):
            segments = Segments(
                prefix_lengths=packed.prefix_lengths,
                suffix_lengths=chunk.lengths,
                prefixes=chunk.prefixes,
                prefix_queries=False,
            )
            shared = self._attend(segments, given=prefix.keys)
            embeddings_U_H = self._embed_tokens(chunk.ids_U)
            states_U_H = self._run_tower(embeddings_U_H, chunk.positions_3_U, shared)
            states_T_H = torch.cat([states_T_H, states_U_H])
        return self._read_head(states_T_H[chunk.source_K], chunk, objective)

    def _read_head(
        self, hidden_K_H: Tensor, chunk: Chunk, objective: Objective | None
    ) -> ScoreOutput:
        given = (hidden_K_H, self._head_weight, chunk.targets_K)
        if objective is None:
            scores = score_tokens(*given, self.never_sampled_V, temperature=self.temperature)
            loss, logp_K, entropy_K = scores.logp_K.new_zeros(()), *scores
        else:
            loss, logp_K, entropy_K = fused_head(
                *given, objective, self.never_sampled_V, temperature=self.temperature
            )
        if self.critic is None:
            return ScoreOutput(loss, logp_K, entropy_K)

        value_K = self.critic(hidden_K_H)
        if objective is not None:
            loss = loss + sum_value_losses(value_K, objective)
        return ScoreOutput(loss, logp_K, entropy_K, value_K.detach())

    # ---- prompts and decoding

    def _prefill(self, packed: Packed) -> Prefix:
        segments = Segments(prefix_lengths=packed.prefix_lengths)
        embeddings_S_H, deep = self._embed(packed, packed.ids_S)
        with attention.keep_keys(self.family.attentions(self.model)) as keys:
            states_S_H = self._run_tower(
                embeddings_S_H, packed.positions_3_S, self._attend(segments), deep
            )
        # a wrapper cannot watch a view that leaves it
        return Prefix(states_S_H.clone(), keys)

    def _decode(self, request: Decode) -> Tensor:
        positions_3_S_1 = request.position_S[None, :, None].expand(3, -1, -1)
        embeddings_S_1_H = self._embed_tokens(request.token_S[:, None])
        return self._run_tower(embeddings_S_1_H, positions_3_S_1, request.attention)[:, 0]

    def _cast_matrices(self, dtype: torch.dtype) -> dict[str, Tensor]:
        tower = self.family.language_model(self.model)
        inside = {id(module) for module in tower.modules()}

        cast: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and id(module) in inside:
                for kind, parameter in module.named_parameters(recurse=False):
                    cast[f"{name}.{kind}"] = parameter.detach().to(dtype)
        return cast

    # ---- the parts of the model

    def _run_tower(
        self,
        embeddings: Tensor,
        positions: Tensor,
        shared: LayerAttention,
        deep: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The text tower alone: [T, H] or, for S rows of one token, [S, 1, H]. Positions and attention are given.

        deep: what enters behind its first layers, see `Family.deep_features`.
        """
        is_one_row = embeddings.dim() == 2
        embeddings_B_T_H = embeddings[None] if is_one_row else embeddings
        positions_3_B_T = positions[:, None] if is_one_row else positions
        self._tower_tokens += embeddings_B_T_H.shape[0] * embeddings_B_T_H.shape[1]

        states_B_T_H: Tensor = self.family.language_model(self.model)(
            inputs_embeds=embeddings_B_T_H,
            position_ids=self.family.tower_positions(positions_3_B_T),
            # one of four axes is handed on as it is, and `shared` looks at none
            attention_mask=embeddings.new_empty(1, 1, 0, 0),
            use_cache=False,
            shared=shared,
            **(deep or {}),
        ).last_hidden_state
        return states_B_T_H[0] if is_one_row else states_B_T_H

    def _attend(
        self, segments: Segments, given: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> SharedPrefix:
        return SharedPrefix(attention.make_attend(self.kernel, segments, self.device), given)

    def _embed(self, packed: Packed, ids_T: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """[T, H]: embeddings of the prefixes' ids, image features in their places, and of what follows them in `ids_T`.

        And what `_run_tower` takes as `deep`.
        """
        embeddings_T_H = self._embed_tokens(ids_T)
        if packed.pixel_values_N is None:
            return embeddings_T_H, {}

        features = self.images.features(packed)
        if not packed.image_places:
            # computed to be in step with other processes: adds exactly nothing, in both passes
            return embeddings_T_H + 0.0 * torch.cat(features).sum(), {}

        in_order = [features[number] for number in packed.image_places]
        following = len(ids_T) - len(packed.ids_S)
        mask_T = nn.functional.pad(packed.image_mask_S, (0, following))
        placed_T_H = self.family.place_features(embeddings_T_H, in_order, mask_T)
        return placed_T_H, self.family.deep_features(self.model, in_order, mask_T)

    def _embed_tokens(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        if not torch.is_autocast_enabled(embedded.device.type):
            return embedded
        # the layers add to these: in bfloat16 every sum would be rounded
        return embedded.to(torch.promote_types(embedded.dtype, torch.float32))

    @property
    def _head_weight(self) -> Tensor:
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight


def join_outputs(outputs: Sequence[ScoreOutput]) -> ScoreOutput:
    """The output of a micro-batch from those of its chunks, in order."""
    if len(outputs) == 1:
        return outputs[0]
    losses, logps, entropies, values = zip(*outputs, strict=True)
    return ScoreOutput(
        torch.stack(losses).sum(),
        torch.cat(logps),
        torch.cat(entropies),
        None if values[0] is None else torch.cat(values),
    )


def _append(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], dim=-1) if b.shape[-1] else a
