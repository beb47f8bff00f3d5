"""How much memory a process takes, by what takes it, in bytes.

Weights, gradients and moments are exact; activations are estimated for a full micro-batch.
"""

from dataclasses import dataclass
from typing import Any

import torch

from gpg_vl.config import Config
from gpg_vl.models.head import TILE_ELEMENTS
from gpg_vl.models.load import read_config


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
    """Numbers that stand in norms and biases."""
    trained_vectors: int = 0
    coded: int = 0
    """Of what is trained, numbers whose moments may be codes; see `adamw.takes_codes`."""
    blocks: int = 0
    """Blocks of such codes, each with a scale of 4 bytes."""
    widths: Widths = Widths()


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


def micro_batch_memory(config: Config, tokens: int, trained: int) -> dict[str, float]:
    """What a micro-batch of so many tokens needs for itself."""
    return {
        "activations": activation_bytes(config, tokens),
        "work space": _work_space_bytes(config, trained),
    }


def rollout_memory(
    config: Config, groups: int, prompt_tokens: int, key_values: int
) -> dict[str, float]:
    """Of the slots of the rollout, and of the prompts that wait for one.

    prompt_tokens: those of the longest prompt. key_values: numbers per token, all layers together.
    """
    answers = min(config.rollout.slots, groups * config.rollout.group_size)
    cached = answers * (prompt_tokens + config.rollout.max_new_tokens)
    cached += config.rollout.prompts_per_batch * prompt_tokens
    return {"key-value cache": float(cached * key_values * compute_dtype(config).itemsize)}


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


def activation_bytes(config: Config, tokens: int) -> float:
    """By the usual counting: 34 numbers of hidden size per token and layer, of which checkpointing
    keeps two.
    """
    text = _read_text_config(config)
    kept = 2 if config.model.gradient_checkpointing else 34
    itemsize = compute_dtype(config).itemsize
    return float(tokens * text.hidden_size * text.num_hidden_layers * kept * itemsize)


def _work_space_bytes(config: Config, trained: int) -> float:
    """What comes and goes: the gradient of the head, one tile of it, the casts of autocast."""
    text = _read_text_config(config)
    tile = 4.0 * TILE_ELEMENTS["cuda" if torch.cuda.is_available() else "cpu"]
    head: float = 4.0 * text.hidden_size * text.vocab_size + tile
    is_cast = config.model.dtype == "bfloat16" and not _has_narrow_weights(config)
    casts = 2.0 * trained if is_cast else 0.0
    return head + casts


def _read_text_config(config: Config) -> Any:
    return read_config(config.model.path, config.model.revision).get_text_config()
