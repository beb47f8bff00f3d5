"""The policy: one module whose forward turns a packed pass into a loss, or into log-probs.

Everything that touches a parameter happens inside `forward`, so distributed wrappers see ordinary module calls.

A pass is computed in one piece, or in two phases: the prefixes once, with their graph; then the suffixes piece by piece
against the prefixes' keys and values, each piece forward and backward; the gradients that the pieces leave in those keys and
values go through the prefixes once. Both ways give the same gradient; the second holds one piece's activations at a time.

The prefixes of a rollout can be kept with their graph: training then goes on from them, and image and prompt are computed
once in the whole step.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpg_vl.models import attention
from gpg_vl.models.attention import Branches, Kernel, LayerAttention, SharedPrefix
from gpg_vl.models.families import Family
from gpg_vl.models.features import FeatureCache
from gpg_vl.models.head import compute_dtype, gpg_head, sampling_logits, token_scores, with_gradient
from gpg_vl.models.layout import Packed, Suffixes
from gpg_vl.models.load import Tokens
from gpg_vl.models.refusal import refuse_unsupported

ROLLOUT_FEATURE_BYTES = 2**30
"""Most memory for the features of images that several prompts of one rollout show."""


Keys = list[tuple[Tensor, Tensor]]
"""Keys and values [1, Hkv, S, D] of each layer."""


class PolicyOutput(NamedTuple):
    """What one pass returns. `_K` are the completion tokens of the pass, in the order of its completions."""

    loss: Tensor
    """- sum of coefficients_K * logp_K, to differentiate; 0 without coefficients."""
    logp_K: Tensor
    """log pi of every completion token. Differentiable only if no coefficients were given."""
    entropy_K: Tensor
    """Entropy in nats of the distribution each token was drawn from, without gradient."""


@dataclass(slots=True, kw_only=True)
class Work:
    """What the policy has computed so far, counted where it is done."""

    vision_patches: int = 0
    tower_tokens: int = 0


class Policy(nn.Module):
    """A vision-language model that scores completions.

    model: the transformers model, with or without adapters in it.
    temperature: divides the logits, as it does in sampling.
    kernel: how attention over shared prefixes is computed, see `models.attention`.
    features: kept image features; None computes every image of every pass.
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
        self.model: Any = model
        self.family = family
        self.temperature = temperature
        self.kernel = kernel
        self.work = Work()
        self._features = features
        self._again: FeatureCache | None = None
        self._kept: dict[str, tuple[Tensor, Keys]] | None = None
        never = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
        never[list(tokens.never_sampled)] = True
        self.never_sampled_V: Tensor
        self.register_buffer("never_sampled_V", never, persistent=False)

    def forward(self, packed: Packed, coefficients_K: Tensor | None = None) -> PolicyOutput:
        """Score the completions of `packed`; `coefficients_K` weighs each token's log-prob in the loss."""
        if coefficients_K is None:
            return self._log_probs(packed)
        if torch.is_grad_enabled() and (kept := self._taken(packed)):
            return self._two_phases(packed, coefficients_K, *kept)
        if torch.is_grad_enabled() and len(packed.suffixes) > 1:
            return self._two_phases(packed, coefficients_K, *self._prefixes(packed))
        weights = coefficients_K.split([len(part.targets_K) for part in packed.suffixes])
        pieces = zip(self._pieces(packed), weights, strict=True)
        return _added(
            [self._loss(hidden_K_H, part, weights_K) for (hidden_K_H, part), weights_K in pieces]
        )

    def _log_probs(self, packed: Packed) -> PolicyOutput:
        scores = [
            token_scores(
                hidden,
                self._head_weight,
                part.targets_K,
                self.never_sampled_V,
                temperature=self.temperature,
            )
            for hidden, part in self._pieces(packed)
        ]
        logp_K, entropy_K = (torch.cat(column) for column in zip(*scores, strict=True))
        return PolicyOutput(logp_K.new_zeros(()), logp_K, entropy_K)

    def _pieces(self, packed: Packed) -> Iterator[tuple[Tensor, Suffixes]]:
        """Hidden states before each completion token, for each piece of the pass."""
        if len(packed.suffixes) == 1:
            (part,) = packed.suffixes
            ids, positions = (
                _joined(packed.ids_S, part.ids_U),
                _joined(packed.positions_3_S, part.positions_3_U),
            )
            shared = self._shared(packed, part)
            states_T_H = self.tower(self.embed(packed, ids), positions, shared)
            yield states_T_H[part.source_K], part
            return
        states_S_H, keys = self._prefixes(packed)
        for part in packed.suffixes:
            states_T_H = torch.cat([states_S_H, self._suffix_states(packed, part, keys)])
            yield states_T_H[part.source_K], part

    def _two_phases(
        self, packed: Packed, coefficients_K: Tensor, states_S_H: Tensor, keys: Keys
    ) -> PolicyOutput:
        crossing = [states_S_H, *(x for pair in keys for x in pair)]
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in crossing]
        leaf_keys = list(zip(leaves[1::2], leaves[2::2], strict=True))
        parameters = [p for p in self._language_parameters() if p.requires_grad]
        wanted = [x for x in leaves if x.requires_grad] + parameters
        gradients: list[Tensor | None] = [None] * len(wanted)
        outputs, at = [], 0
        for part in packed.suffixes:
            end = at + len(part.targets_K)
            states_T_H = torch.cat([leaves[0], self._suffix_states(packed, part, leaf_keys)])
            output = self._loss(states_T_H[part.source_K], part, coefficients_K[at:end])
            with torch.autocast(states_T_H.device.type, enabled=False):
                fresh = torch.autograd.grad(output.loss, wanted, allow_unused=True)
            gradients = [_sum(held, more) for held, more in zip(gradients, fresh, strict=True)]
            outputs.append(PolicyOutput(output.loss.detach(), output.logp_K, output.entropy_K))
            at = end
            del states_T_H, output, fresh  # the next piece must not stand beside this one
        total = _added(outputs)
        inputs = [x for x in crossing if x.requires_grad] + parameters
        formed = [
            None if g is None else g.to(x.dtype) for x, g in zip(inputs, gradients, strict=True)
        ]
        return total._replace(loss=with_gradient(total.loss, inputs, formed))

    @contextmanager
    def keeping_prefixes(self) -> Iterator[None]:
        """Within, weights do not change, and what `prefixes` computes of a single prompt is kept until it is trained on.

        The activations of all those prompts are held meanwhile. A picture that several prompts show is computed for each.
        """
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def prefixes(self, packed: Packed) -> tuple[Tensor, Keys]:
        """Final hidden states [S, H] of the prefixes, and each layer's keys and values, for a rollout: without gradient."""
        if self._kept is None:
            return self._prefixes(packed)
        # every prompt with gradient, kept or not: autocast's copies of the weights are made once, and must have theirs
        with torch.enable_grad():
            states_S_H, keys = self._prefixes(packed)
        if len(packed.prompt_keys) == 1:
            self._kept[packed.prompt_keys[0]] = (states_S_H, keys)
        return states_S_H.detach(), [(k.detach(), v.detach()) for k, v in keys]

    def _taken(self, packed: Packed) -> tuple[Tensor, Keys] | None:
        """What was kept of the prefixes of a pass, if it was of all of them. It can be used once: backward frees it."""
        wanted = set(packed.prompt_keys)
        if (
            not self._kept
            or len(wanted) != len(packed.prompt_keys)
            or not wanted <= self._kept.keys()
        ):
            return None
        kept = [self._kept.pop(key) for key in packed.prompt_keys]
        layers = zip(*(keys for _, keys in kept), strict=True)
        joined = [
            (torch.cat([k for k, _ in pairs], dim=2), torch.cat([v for _, v in pairs], dim=2))
            for pairs in layers
        ]
        return torch.cat([states for states, _ in kept]), joined

    def _prefixes(self, packed: Packed) -> tuple[Tensor, Keys]:
        device = packed.ids_S.device
        branches = Branches(prefix_lengths=packed.prefix_lengths)
        keys: Keys = []
        shared = SharedPrefix(
            attend=attention.make_attend(self.kernel, branches, device), kept=keys
        )
        return self.tower(self.embed(packed, packed.ids_S), packed.positions_3_S, shared), keys

    def _suffix_states(
        self, packed: Packed, part: Suffixes, keys: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """[U, H]"""
        if not len(part.ids_U):
            return keys[0][0].new_zeros(0, self._head_weight.shape[1])
        branches = Branches(
            prefix_lengths=packed.prefix_lengths,
            suffix_lengths=part.lengths,
            prefixes=part.prefixes,
            prefix_queries=False,
        )
        attend = attention.make_attend(self.kernel, branches, part.ids_U.device)
        return self.tower(
            self.embed_tokens(part.ids_U),
            part.positions_3_U,
            SharedPrefix(attend=attend, given=keys),
        )

    def _shared(self, packed: Packed, part: Suffixes) -> SharedPrefix:
        branches = Branches(
            prefix_lengths=packed.prefix_lengths,
            suffix_lengths=part.lengths,
            prefixes=part.prefixes,
        )
        return SharedPrefix(
            attend=attention.make_attend(self.kernel, branches, packed.ids_S.device)
        )

    def _loss(self, hidden_K_H: Tensor, part: Suffixes, coefficients_K: Tensor) -> PolicyOutput:
        output = gpg_head(
            hidden_K_H,
            self._head_weight,
            part.targets_K,
            coefficients_K,
            self.never_sampled_V,
            temperature=self.temperature,
        )
        return PolicyOutput(output.loss, output.logp_K, output.entropy_K)

    def tower(
        self, embeddings_T_H: Tensor, positions_3_T: Tensor, shared: LayerAttention
    ) -> Tensor:
        """The text tower alone: [T, H] or, for T rows of one token, [T, 1, H]. Positions and attention are given, not derived."""
        is_one_row = embeddings_T_H.dim() == 2
        embeddings_B_T_H = embeddings_T_H[None] if is_one_row else embeddings_T_H
        positions_3_B_T = positions_3_T[:, None] if is_one_row else positions_3_T
        self.work.tower_tokens += embeddings_B_T_H.shape[0] * embeddings_B_T_H.shape[1]
        states: Tensor = self.family.language_model(self.model)(
            inputs_embeds=embeddings_B_T_H,
            position_ids=self.family.tower_positions(positions_3_B_T),
            attention_mask={"full_attention": None},
            use_cache=False,
            shared=shared,
        ).last_hidden_state
        return states[0] if is_one_row else states

    def embed(self, packed: Packed, ids_T: Tensor) -> Tensor:
        """[T, H]: embeddings of the prefixes' ids, image features in their places, and of what follows them in `ids_T`."""
        embeddings = self.embed_tokens(ids_T)
        if packed.pixel_values_N is None:
            return (
                embeddings + 0.0 * self._blank_features(embeddings)
                if torch.is_grad_enabled()
                else embeddings
            )
        features = self.image_features(packed)
        where_T = torch.nn.functional.pad(packed.image_mask_S, (0, len(ids_T) - len(packed.ids_S)))
        placed = [features[i] for i in packed.image_places]
        return self.family.place_features(embeddings, placed, where_T)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def image_features(self, packed: Packed) -> list[Tensor]:
        """[image tokens, H] of each distinct image: kept ones where they are valid, else one pass of the vision tower."""
        if packed.pixel_values_N is None or packed.grid_thw_I_3 is None:
            return []
        if not packed.image_keys:
            return self._seen(packed.pixel_values_N, packed.grid_thw_I_3)
        if not self._trains_vision() and self._features is not None:
            # one image at a time, so that features are a function of the image alone and resuming finds the same
            with torch.no_grad():
                return self._remembered(packed, self._features, one_by_one=True)
        if self._again is not None and not torch.is_grad_enabled():
            return self._remembered(packed, self._again, one_by_one=False)
        return self._seen(packed.pixel_values_N, packed.grid_thw_I_3)

    @contextmanager
    def remembering_images(self, keys: Collection[str]) -> Iterator[None]:
        """Within, weights do not change, and these images are not computed again once they were seen without gradient."""
        self._again = FeatureCache(ROLLOUT_FEATURE_BYTES, only=frozenset(keys)) if keys else None
        try:
            yield
        finally:
            self._again = None

    def _remembered(self, packed: Packed, cache: FeatureCache, *, one_by_one: bool) -> list[Tensor]:
        dtype = compute_dtype(self._head_weight)
        kept = {key: cache.get(key, dtype) for key in packed.image_keys}
        known = {key: features for key, features in kept.items() if features is not None}
        missing = [i for i, key in enumerate(packed.image_keys) if key not in known]
        assert packed.pixel_values_N is not None, "asked for the features of no image"
        assert packed.grid_thw_I_3 is not None
        patches = packed.pixel_values_N.split(packed.grid_thw_I_3.prod(dim=1).tolist())
        for chunk in [[i] for i in missing] if one_by_one else [missing] if missing else []:
            seen = self._seen(torch.cat([patches[i] for i in chunk]), packed.grid_thw_I_3[chunk])
            for i, features in zip(chunk, seen, strict=True):
                known[packed.image_keys[i]] = features
                cache.put(packed.image_keys[i], features, dtype)
        return [known[key] for key in packed.image_keys]

    def _seen(self, pixel_values_N: Tensor, grid_thw_I_3: Tensor) -> list[Tensor]:
        self.work.vision_patches += len(pixel_values_N)
        return self.family.image_features(self.model, pixel_values_N, grid_thw_I_3)

    def _trains_vision(self) -> bool:
        tower = self.family.vision_tower(self.model)
        return tower is not None and any(p.requires_grad for p in tower.parameters())

    def _blank_features(self, like: Tensor) -> Tensor | float:
        """The sum of the features of one blank image token, if the vision tower is trained.

        Added with factor 0 to passes without images, it gives every trained weight a gradient: processes that share gradients
        would wait for each other for ever if one of them had images in a pass and another had none.
        """
        if not self._trains_vision():
            return 0.0
        (features,) = self._seen(*self.family.blank_image(self.model, like))
        return features.sum()

    def logits(self, hidden_B_H: Tensor, *, temperature: float) -> Tensor:
        """[B, V] logits of the sampling distribution: over the temperature, vision tokens out of reach."""
        return sampling_logits(
            hidden_B_H, self._head_weight, self.never_sampled_V, temperature=temperature
        )

    @property
    def _head_weight(self) -> Tensor:
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def _language_parameters(self) -> list[nn.Parameter]:
        """All but those of the vision tower, each once."""
        return [
            p
            for name, p in self.model.named_parameters()
            if self.family.part_of(name) == "language"
        ]


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], dim=-1) if b.shape[-1] else a


def _sum(held: Tensor | None, more: Tensor | None) -> Tensor | None:
    """In float32 at least: in bfloat16 the sum over many siblings would lose the last of them."""
    if more is None:
        return held
    return (
        more.to(torch.promote_types(more.dtype, torch.float32)) if held is None else held.add_(more)
    )


def _added(outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    if len(outputs) == 1:
        return outputs[0]
    losses, logps, entropies = zip(*outputs, strict=True)
    return PolicyOutput(torch.stack(losses).sum(), torch.cat(logps), torch.cat(entropies))
