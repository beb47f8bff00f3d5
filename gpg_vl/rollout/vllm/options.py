"""The start options of vLLM: those needed so that it samples from the trained policy, and those that a user may choose."""

from typing import Any

import torch

from gpg_vl.models.load import read_config
from gpg_vl.rollout.engine import EngineOptions

BLOCK = {"cpu": 32, "cuda": 16}
"""Tokens per block of the KV cache. Members of a group share the full blocks of their prompt, and each computes the rest again.
vLLM's CPU default of 128 would share nothing for shorter prompts."""
LEAST_BATCH = 8192
"""Minimum for the number of tokens that a CPU may compute in one call; it must not be below the longest prompt."""
MOST_IMAGES = 64
"""Maximum number of images per prompt. Videos are never used."""


def engine_arguments(
    options: EngineOptions,
    *,
    path: str,
    revision: str | None,
    dtype: torch.dtype | None,
    empty: bool = False,
) -> dict[str, Any]:
    """Arguments of vLLM's engine, the same in this process and as a server.

    dtype: the trainer's dtype of the forward pass; None is float32.
    empty: True to not read the checkpoint's weights, because a sync brings weights before the first answer.
    """
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": "float32" if dtype is None else str(dtype).removeprefix("torch."),
        "seed": 0,
        # sampling: log-probs after temperature and bias; the checkpoint's own generation settings are not used
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        # inputs: patches that are already normalised, so the processor has nothing to do or to cache
        "mm_device_do_normalize": False,
        "mm_processor_cache_gb": 0,
        "skip_mm_profiling": True,
        "limit_mm_per_prompt": {"image": MOST_IMAGES, "video": 0},
        # once per group
        "enable_prefix_caching": True,
        "block_size": BLOCK["cuda" if cuda else "cpu"],
        "max_num_seqs": options.slots,
        "tensor_parallel_size": options.vllm_tensor_parallel,
    }
    if empty:
        arguments["load_format"] = "dummy"
    if options.vllm_tensor_parallel > 1:
        # each process has the whole vision tower and encodes some of the images: the tower is small, and its heads may not
        # be divisible
        arguments["mm_encoder_tp_mode"] = "data"
    if revision is not None:
        arguments["revision"] = revision
    if options.images == "features":
        # vLLM encodes no images, so it does not load the vision tower
        arguments["enable_mm_embeds"] = True
        arguments["limit_mm_per_prompt"] = {"image": 0, "video": 0}
    if cuda:
        arguments["gpu_memory_utilization"] = options.vllm_memory
    else:
        arguments |= on_a_cpu(path, revision)
    return arguments


def on_a_cpu(path: str, revision: str | None) -> dict[str, Any]:
    """Disable chunked prefill on a CPU: after a part of a prompt vLLM resets the offset of a request's random generator,
    which a CPU generator does not support (vLLM 0.32 fails with "CPU Generator does not use offset").
    """
    longest: int = read_config(path, revision).get_text_config().max_position_embeddings
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, LEAST_BATCH),
    }
