"""How much memory a process takes, by what takes it, in bytes.

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

PAGE_ELEMENTS = 2**26
"""Weights whose moments are on the device together under `train.offload`: 512 MB of moments in float32. A larger weight is a
page alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Bytes that each number of a matrix takes. Those of vectors take 4, and so do all gradients."""

    frozen: float = 4.0
    trained: float = 4.0
    """While it is computed with. A sharding may hold its parts of what is trained in float32."""
    codes: bool = False
    """Whether both of AdamW's moments take a byte each and a scale for every block, instead of 4 bytes each."""
    waiting: float = 0.0
    """Of gradients that wait to be summed over processes, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many numbers the parts of a model have.

    Example: of a Qwen2-VL-2B `parameters` is 2_208_985_600, of which the vision tower with its merger has 665_272_320.
    """

    parameters: int
    trained: int
    vision: int
    """Of the vision tower with its merger."""
    trained_vision: int
    layers: tuple[int, ...]
    """Of each decoder layer, and of each block of the vision tower if it is trained."""
    vectors: int = 0
    """Numbers that are in norms and biases."""
    trained_vectors: int = 0
    coded: int = 0
    """Of what is trained, numbers whose moments may be codes; see `adamw.takes_codes`."""
    blocks: int = 0
    """Blocks of such codes, each with a scale of 4 bytes."""
    widths: Widths = Widths()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What goes through the model at once.

    Example: `MicroBatch(tokens=6200, completion_tokens=5600, patches=2400)`
    """

    tokens: int
    """Of prompts and completions."""
    completion_tokens: int
    patches: int
    """Those that the vision tower computes with a graph; none if it is not trained."""


def weight_memory(sizes: Sizes) -> dict[str, float]:
    """Of weights, and of gradients and AdamW's two moments of those that are trained, where a process holds all of them."""
    matrices = sizes.trained - sizes.trained_vectors
    trained = sizes.widths.trained * matrices + 4.0 * sizes.trained_vectors
    return {
        "weights": trained + frozen_bytes(sizes),
        "gradients": 4.0 * sizes.trained,
        "optimizer": moment_bytes(sizes),
    }


def frozen_bytes(sizes: Sizes) -> float:
    """Of all weights that are not trained."""
    vectors = sizes.vectors - sizes.trained_vectors
    matrices = sizes.parameters - sizes.trained - vectors
    return sizes.widths.frozen * matrices + 4.0 * vectors


def moment_bytes(sizes: Sizes) -> float:
    """Of both moments of all weights that are trained."""
    if not sizes.widths.codes:
        return 8.0 * sizes.trained
    return 8.0 * (sizes.trained - sizes.coded) + 2.0 * (sizes.coded + 4.0 * sizes.blocks)


def widths(config: Config) -> Widths:
    """What the numbers of a run take."""
    return Widths(
        frozen=float(compute_dtype(config).itemsize),
        trained=2.0 if _has_narrow_weights(config) else 4.0,
        codes=config.train.optimizer == "adamw_8bit",
        waiting=4.0 if config.train.defer_reduction else 0.0,
    )


def copy_memory(config: Config, parameters: int) -> dict[str, float]:
    """Of a copy that answers: matrices in the dtype of the forward pass, embeddings in that of trained weights."""
    text = _read_text_config(config)
    itemsize = compute_dtype(config).itemsize
    embeddings = 0 if _has_narrow_weights(config) else text.hidden_size * text.vocab_size
    return {"copy that answers": float(parameters * itemsize + embeddings * (4 - itemsize))}


def micro_batch_memory(
    config: Config, shape: Shape, batch: MicroBatch, trained: int
) -> dict[str, float]:
    """What a micro-batch needs for itself."""
    return {
        "activations": activation_bytes(config, shape, batch),
        "work space": _work_space_bytes(config, shape, batch, trained),
    }


def rollout_memory(
    config: Config, groups: int, prompt_tokens: int, shape: Shape, *, greedy: bool = False
) -> dict[str, float]:
    """Of the slots of the rollout, and of the prompts that wait for one.

    prompt_tokens: those of the longest prompt. greedy: one answer more in each group, to compare with.
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
        # once for each group that is being answered, and the one whose last answers are
        held = min(groups, ceil(answers / size) + 1)

    cached = answers * config.rollout.max_new_tokens + held * prompt_tokens
    cached += config.rollout.prompts_per_batch * prompt_tokens
    return {"key-value cache": float(cached * token_bytes)}


def feature_memory(config: Config, image_tokens: int) -> dict[str, float]:
    """Of the features that are kept of a data set with so many image tokens."""
    hidden = _read_text_config(config).hidden_size
    every = float(image_tokens * hidden * compute_dtype(config).itemsize)
    return {"image features": min(every, config.model.vision_cache_mb * 2.0**20)}


def _has_narrow_weights(config: Config) -> bool:
    """Whether what is trained is computed with in bfloat16: such weights go with such a forward pass alone."""
    return config.model.weights == "bfloat16" and config.model.dtype == "bfloat16"


def compute_dtype(config: Config) -> torch.dtype:
    """What a forward pass computes in."""
    return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32


def activation_bytes(config: Config, shape: Shape, batch: MicroBatch) -> float:
    """What the forward pass keeps for the backward pass.

    Without checkpointing, of every layer what `Shape.kept` counts. With it, what each layer was
    given, and all of one layer, which is computed again.
    """
    itemsize = compute_dtype(config).itemsize
    of_token, of_patch = shape.kept.bytes(itemsize), shape.vision_kept.bytes(itemsize)
    if not config.model.gradient_checkpointing:
        text = batch.tokens * shape.layers * of_token
        return text + batch.patches * shape.vision_depth * of_patch

    # sums over layers begin with embeddings in float32, those over blocks with a product
    given = batch.tokens * shape.layers * shape.hidden * 4.0
    given += batch.patches * shape.vision_depth * shape.vision_width * float(itemsize)
    return given + max(batch.tokens * of_token, batch.patches * of_patch)


def _work_space_bytes(config: Config, shape: Shape, batch: MicroBatch, trained: int) -> float:
    """What comes and goes: the gradient of the head before it is added to that of the embedding, two
    tiles of logits, the casts of autocast.
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
    """Bytes as a person reads them.

    Example: `size(3 * 2**30)` is `3.0 GiB`.
    """
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
