"""Estimates the memory of a process in bytes, by use.

Weights, gradients and moments are exact; activations are estimated for a full micro-batch.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from gpg_vl.config import Config
from gpg_vl.models.head import TILE_ELEMENTS
from gpg_vl.models.key_sharing import shares_prompts
from gpg_vl.models.load import read_config
from gpg_vl.models.shape import Shape
from gpg_vl.rollout import DEFAULT

PAGE_ELEMENTS = 2**26
"""Weights per page under `train.offload`: the moments of one page are on the device together, 512 MB in float32. A larger weight
is a page by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Bytes per number of a matrix. Numbers of vectors and all gradients take 4."""

    frozen: float = 4.0
    trained: float = 4.0
    """Trained weights while they are used for computing. A sharding may store its parts of them in float32."""
    codes: bool = False
    """True if AdamW's moments take one byte each plus a scale per block, instead of 4 bytes each."""
    waiting: float = 0.0
    """Gradients that wait to be summed over several processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The number of weights in the parts of a model.

    Example: of a Qwen2-VL-2B `parameters` is 2_208_985_600, of which the vision tower with its merger has 665_272_320.
    """

    parameters: int
    trained: int
    vision: int
    """Weights of the vision tower with its merger."""
    trained_vision: int
    layers: tuple[int, ...]
    """Weights of each decoder layer, and of each block of the vision tower if it is trained."""
    vectors: int = 0
    """Weights in norms and biases."""
    trained_vectors: int = 0
    coded: int = 0
    """Trained weights whose moments may be stored as codes; see `adamw.takes_codes`."""
    blocks: int = 0
    """Number of blocks of such codes, each with a scale of 4 bytes."""
    widths: Widths = Widths()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The tokens and patches that are computed at once.

    Example: `MicroBatch(tokens=6200, completion_tokens=5600, patches=2400)`
    """

    tokens: int
    """Tokens of prompts and completions."""
    completion_tokens: int
    patches: int
    """Patches that the vision tower computes with a graph; 0 if it is not trained."""


def weight_memory(sizes: Sizes) -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's two moments, if a process holds all of them."""
    matrices = sizes.trained - sizes.trained_vectors
    trained = sizes.widths.trained * matrices + 4.0 * sizes.trained_vectors
    return {
        "weights": trained + frozen_bytes(sizes),
        "gradients": 4.0 * sizes.trained,
        "optimizer": moment_bytes(sizes),
    }


def frozen_bytes(sizes: Sizes) -> float:
    """Bytes of all frozen weights."""
    vectors = sizes.vectors - sizes.trained_vectors
    matrices = sizes.parameters - sizes.trained - vectors
    return sizes.widths.frozen * matrices + 4.0 * vectors


def moment_bytes(sizes: Sizes) -> float:
    """Bytes of both moments of all trained weights."""
    if not sizes.widths.codes:
        return 8.0 * sizes.trained
    return 8.0 * (sizes.trained - sizes.coded) + 2.0 * (sizes.coded + 4.0 * sizes.blocks)


def widths(config: Config) -> Widths:
    """The widths for the settings of a run."""
    return Widths(
        frozen=float(compute_dtype(config).itemsize),
        trained=2.0 if _has_narrow_weights(config) else 4.0,
        codes=config.train.optimizer == "adamw_8bit",
        waiting=4.0 if config.train.defer_reduction else 0.0,
    )


def copy_memory(config: Config, parameters: int) -> dict[str, float]:
    """Bytes of a policy copy for sampling: matrices in the dtype of the forward pass, embeddings in that of trained
    weights."""
    text = _read_text_config(config)
    itemsize = compute_dtype(config).itemsize
    embeddings = 0 if _has_narrow_weights(config) else text.hidden_size * text.vocab_size
    return {"copy that answers": float(parameters * itemsize + embeddings * (4 - itemsize))}


def micro_batch_memory(
    config: Config, shape: Shape, batch: MicroBatch, trained: int
) -> dict[str, float]:
    """Bytes that one micro-batch needs."""
    return {
        "activations": activation_bytes(config, shape, batch),
        "work space": _work_space_bytes(config, shape, batch, trained),
    }


def rollout_memory(
    config: Config, groups: int, prompt_tokens: int, shape: Shape, *, greedy: bool = False
) -> dict[str, float]:
    """Bytes of the rollout's slots and of the prompts that wait for one.

    prompt_tokens: tokens of the longest prompt. greedy: True if each group has an additional greedy answer.
    """
    size = config.rollout.group_size + greedy
    token_bytes = shape.key_values * compute_dtype(config).itemsize
    answers = min(config.rollout.slots, groups * size)

    held = answers
    if shares_prompts(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        key_bytes=token_bytes / shape.layers,
        prompt=prompt_tokens,
        answers=min(size, answers),
    ):
        # one prompt for each group that is being decoded, plus the group whose last answers are still in slots
        held = min(groups, ceil(answers / size) + 1)

    cached = answers * config.rollout.max_new_tokens + held * prompt_tokens
    cached += config.rollout.prompts_per_batch * prompt_tokens
    return {"key-value cache": float(cached * token_bytes)}


def decoding_memory(config: Config, shape: Shape, freed: float) -> dict[str, float]:
    """Bytes of the copies of weights that the default engine decodes with on a CPU (`models.blocked`).

    freed: bytes that training needs and a rollout does not; only what exceeds them adds to the peak.
    """
    if config.rollout.engine != DEFAULT or torch.cuda.is_available():
        return {}
    copies = (shape.body + shape.head) * compute_dtype(config).itemsize
    return {"weights for decoding": copies - freed} if copies > freed else {}


def feature_memory(config: Config, image_tokens: int) -> dict[str, float]:
    """Bytes of the cached features of a data set with this many image tokens."""
    hidden = _read_text_config(config).hidden_size
    every = float(image_tokens * hidden * compute_dtype(config).itemsize)
    return {"image features": min(every, config.model.vision_cache_mb * 2.0**20)}


def _has_narrow_weights(config: Config) -> bool:
    """Whether trained weights are bfloat16, which is allowed only with a bfloat16 forward pass."""
    return config.model.weights == "bfloat16" and config.model.dtype == "bfloat16"


def compute_dtype(config: Config) -> torch.dtype:
    """The dtype of the forward pass."""
    return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32


def activation_bytes(config: Config, shape: Shape, batch: MicroBatch) -> float:
    """Bytes that the forward pass keeps for the backward pass.

    Without checkpointing: what `Shape.kept` counts for every layer. With checkpointing: the input of each
    layer, and everything of the one layer that is being recomputed.
    """
    itemsize = compute_dtype(config).itemsize
    of_token, of_patch = shape.kept.bytes(itemsize), shape.vision_kept.bytes(itemsize)
    if not config.model.gradient_checkpointing:
        text = batch.tokens * shape.layers * of_token
        return text + batch.patches * shape.vision_depth * of_patch

    # the residual stream of the layers starts with float32 embeddings, that of the vision blocks with a product
    given = batch.tokens * shape.layers * shape.hidden * 4.0
    given += batch.patches * shape.vision_depth * shape.vision_width * float(itemsize)
    return given + max(batch.tokens * of_token, batch.patches * of_patch)


def _work_space_bytes(config: Config, shape: Shape, batch: MicroBatch, trained: int) -> float:
    """Bytes of temporary tensors: the gradient of the head before it is added to the embedding's, two tiles of
    logits, the casts of autocast.
    """
    text = _read_text_config(config)
    tile = TILE_ELEMENTS["cuda" if torch.cuda.is_available() else "cpu"]
    tiles: float = 2 * 4.0 * min(tile, batch.completion_tokens * text.vocab_size)
    is_head_trained = not config.model.lora_rank and "language" not in config.model.freeze
    head = 4.0 * shape.head if is_head_trained else 0.0
    is_cast = config.model.dtype == "bfloat16" and not _has_narrow_weights(config)
    casts = 2.0 * trained if is_cast else 0.0
    return head + tiles + casts


def _read_text_config(config: Config) -> Any:
    return read_config(config.model.path, config.model.revision).get_text_config()


def size(number: float) -> str:
    """Format bytes for people.

    Example: `size(3 * 2**30)` is `3.0 GiB`.
    """
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
