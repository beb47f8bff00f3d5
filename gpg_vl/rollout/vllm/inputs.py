"""Converts prompts to vLLM's inputs and its outputs to completions, both for an engine in this process and for a server.

vLLM gets expanded token ids, and the patches from our encoder or the features of our own vision tower. It tokenizes and resizes
nothing, so its preprocessing cannot differ from the trainer's. A start option keeps it from normalising the patches a second
time (`options.engine_arguments`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpg_vl.errors import RunError
from gpg_vl.models.load import Processing, Tokens
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Completion, FinishReason, Prompt

FORBIDDEN_BIAS = -100.0
"""Added to the logits of vision ids. It is the lowest value that vLLM allows, so completions are checked for vision ids
too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The cache keys of an engine for what it computes from a prompt.

    Example: after step 3 of a run that trains its vision tower, an image is known as `3:<digest>`, and keys and values of
    text are shared only among prompts with the salt `3`.
    """

    version: int
    """The version of the weights. Keys and values of a prompt are valid for one version only."""
    features_change: bool
    """Whether image features depend on the version; features of a frozen tower are valid for all versions."""

    @property
    def salt(self) -> str:
        return str(self.version)

    def of_images(self, prompt: Prompt) -> list[str]:
        """One name for each image of the prompt."""
        if not self.features_change:
            return list(prompt.image_keys)
        return [f"{self.version}:{key}" for key in prompt.image_keys]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """The position of one image's tokens in a prompt."""

    offset: int
    length: int


def image_spans(prompt: Prompt) -> list[ImageSpan]:
    """The tokens of each image, in order."""
    if prompt.grid_thw_I_3 is None:
        return []

    # all families merge the same number of patches into each token of an image
    patches_I = prompt.grid_thw_I_3.prod(dim=1)
    merged = int(patches_I.sum()) // int(prompt.image_mask_T.sum())

    places = prompt.image_mask_T.nonzero()[:, 0].tolist()
    spans: list[ImageSpan] = []
    at = 0
    for length in (patches_I // merged).tolist():
        spans.append(ImageSpan(offset=places[at], length=length))
        assert places[at + length - 1] == places[at] + length - 1, (
            "the tokens of an image are not consecutive"
        )
        at += length
    return spans


def image_items(prompt: Prompt, features: Sequence[Tensor] | None = None) -> Any:
    """The prompt's images as vLLM's items: patches, or the features of our own tower ([image tokens, H] each)."""
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    assert prompt.pixel_values_N is not None
    assert prompt.grid_thw_I_3 is not None
    grid = prompt.grid_thw_I_3
    fields = {"image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    if features is None:
        sizes_I = grid.prod(-1)
        name, tensor = "pixel_values", prompt.pixel_values_N
    else:
        sizes_I = torch.tensor([len(of_image) for of_image in features])
        name, tensor = "image_embeds", torch.cat(list(features)).cpu()
    fields[name] = MultiModalFieldConfig.flat_from_sizes("image", sizes_I)

    return MultiModalKwargsItems.from_hf_inputs(
        BatchFeature({name: tensor, "image_grid_thw": grid}), fields
    )


def engine_input(prompt: Prompt, keys: Keys, features: Sequence[Tensor] | None = None) -> Any:
    """A prompt for an engine in this process."""
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import PlaceholderRange

    ids = prompt.input_ids_T.tolist()
    if prompt.pixel_values_N is None:
        return tokens_input(ids, cache_salt=keys.salt)

    places = [
        PlaceholderRange(offset=span.offset, length=span.length) for span in image_spans(prompt)
    ]
    return mm_input(
        ids,
        image_items(prompt, features),
        {"image": keys.of_images(prompt)},
        {"image": places},
        cache_salt=keys.salt,
    )


def request_body(
    prompt: Prompt,
    keys: Keys,
    settings: Mapping[str, Any],
    features: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """A prompt for a server, with `sampling_settings`: the same ids, items and keys as in this process."""
    body: dict[str, Any] = {
        "token_ids": prompt.input_ids_T.tolist(),
        "sampling_params": dict(settings),
        "cache_salt": keys.salt,
    }
    if prompt.pixel_values_N is None:
        return body

    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

    spans = [{"offset": span.offset, "length": span.length} for span in image_spans(prompt)]
    items = image_items(prompt, features)["image"]
    body["features"] = {
        "mm_hashes": {"image": keys.of_images(prompt)},
        "mm_placeholders": {"image": spans},
        "kwargs_data": {"image": [encode_mm_kwargs_item(item) for item in items]},
    }
    return body


def sampling_settings(sampling: Sampling, tokens: Tokens, draw: int) -> list[dict[str, Any]]:
    """Arguments of vLLM's SamplingParams for each vLLM request of a prompt, as JSON values, so they can be sent to a
    server.

    One request samples the group. The greedy answer needs a second request, because all members of a request are sampled in
    the same way. Both share the computed prompt.
    """
    group: dict[str, Any] = {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if sampling.top_k > 0 else -1,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed_of(sampling.seed, draw),
        "logprobs": 0,
        # our end tokens are complete, so the checkpoint's own is ignored
        "stop_token_ids": list(tokens.ends),
        "ignore_eos": True,
        "logit_bias": {str(token): FORBIDDEN_BIAS for token in tokens.never_sampled},
        "detokenize": False,
    }
    if not sampling.with_greedy:
        return [group]
    return [group, {**group, "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1}]


def seed_of(seed: int, draw: int) -> int:
    """A request's seed, 62 bits of a hash: vLLM seeds the members of a group with the numbers that follow it, so
    neighbouring draws must not have neighbouring seeds.
    """
    digest = hashlib.blake2b(f"{seed}:{draw}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One output of an engine for a prompt."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


def make_completion(
    answer: Answer, prompt: Prompt, processing: Processing, version: int
) -> Completion:
    """Convert an engine's output to a completion. Raises RunError if it has a vision id or a log-prob that is not
    finite."""
    tokens = processing.tokens
    refuse_vision_ids(answer.token_ids, tokens, prompt.example_id)

    reason: FinishReason = "stop" if answer.token_ids[-1] in tokens.ends else "length"
    return Completion(
        token_ids=tuple(answer.token_ids),
        logprobs=tuple(answer.logprobs),
        finish_reason=reason,
        prefill=prompt.prefill,
        text=processing.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True),
        version=version,
    )


def refuse_vision_ids(token_ids: Sequence[int], tokens: Tokens, example_id: str) -> None:
    sampled = sorted(set(token_ids) & set(tokens.never_sampled))
    if sampled:
        raise RunError(
            f"vLLM answered example {example_id} with the vision ids {sampled}, which would stand for images that do not "
            f"exist. Their logits are lowered by {-FORBIDDEN_BIAS:.0f}, the most that vLLM allows, so the model gives "
            f"them unusually high logits. Check the checkpoint, or sample with rollout.engine=native, which never samples "
            f"them."
        )
