"""How vLLM is started: what it must do so that it samples from the policy that is trained, and what a user may choose."""

from typing import Any

import torch

from gpg_vl.models.load import read_config
from gpg_vl.rollout.engine import EngineOptions

BLOCK = {"cpu": 32, "cuda": 16}
"""Tokens of a block of keys and values. Members of a group share the full blocks of their prompt, and each computes the rest
again; the CPU's own default of 128 would share nothing of a shorter prompt."""
LEAST_BATCH = 8192
"""Tokens that a CPU may compute in one call at least; no fewer than the longest prompt."""
MOST_IMAGES = 64
"""Images of one prompt, and of nothing else: no video is ever given."""


def engine_arguments(
    options: EngineOptions,
    *,
    path: str,
    revision: str | None,
    dtype: torch.dtype | None,
    empty: bool = False,
) -> dict[str, Any]:
    """Arguments of vLLM's engine, the same in this process and as a server.

    dtype: of the forward pass as the trainer has it; None is float32.
    empty: the checkpoint's weights are not read, because others come before the first answer.
    """
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": "float32" if dtype is None else str(dtype).removeprefix("torch."),
        "seed": 0,
        # what is sampled: log-probs of the distribution after temperature and bias, no settings of the checkpoint's own
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        # what goes in: patches that are normalised already, and nothing for a processor to do or to keep
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
        # each part has the whole tower and encodes some of the images: it is small, and its heads need not divide
        arguments["mm_encoder_tp_mode"] = "data"
    if revision is not None:
        arguments["revision"] = revision
    if options.images == "features":
        # no image is encoded there, so the vision tower is not even loaded
        arguments["enable_mm_embeds"] = True
        arguments["limit_mm_per_prompt"] = {"image": 0, "video": 0}
    if cuda:
        arguments["gpu_memory_utilization"] = options.vllm_memory
    else:
        arguments |= on_a_cpu(path, revision)
    return arguments


def on_a_cpu(path: str, revision: str | None) -> dict[str, Any]:
    """Prompts are computed whole, however many wait: after a part of one, vLLM turns a request's generator back, which a
    generator on a CPU cannot do (0.32 ends there with "CPU Generator does not use offset").
    """
    longest: int = read_config(path, revision).get_text_config().max_position_embeddings
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, LEAST_BATCH),
    }
