"""The estimated memory of a process for a config: the sum of the parts in `memory`."""

from collections.abc import Mapping
from math import floor

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config
from gpg_vl.models.families import Family
from gpg_vl.models.load import read_config
from gpg_vl.rollout import DEFAULT
from gpg_vl.training.flops import VisionMode
from gpg_vl.training.memory import (
    PAGE_ELEMENTS,
    MicroBatch,
    Sizes,
    activation_bytes,
    compute_dtype,
    copy_memory,
    decoding_memory,
    feature_memory,
    micro_batch_memory,
    rollout_memory,
    weight_memory,
)
from gpg_vl.training.sharding import shardings


def estimate_memory(
    config: Config,
    algorithm: Algorithm,
    family: Family,
    sizes: Sizes,
    groups: int,
    *,
    processes: int,
    group: MicroBatch,
    prompt_tokens: int,
    image_tokens: int,
    vision: VisionMode,
) -> dict[str, float]:
    """Bytes per process, by use.

    groups: groups of a step on one process. group: the tokens of one of them. prompt_tokens: tokens of the longest prompt.
    image_tokens: image tokens of the whole data set. vision: whether and how the vision tower is trained.
    """
    checkpoint = read_config(config.model.path, config.model.revision)
    shape = family.shape_of(checkpoint)

    # a group that is too large is split into chunks, but its images, and its prompt with one answer, are not
    least = prompt_tokens + config.rollout.max_new_tokens
    held = min(max(config.train.tokens_per_pass, least) / group.tokens, groups)
    batch = MicroBatch(
        tokens=round(held * group.tokens),
        completion_tokens=round(held * group.completion_tokens),
        patches=max(1, floor(held)) * group.patches,
    )

    # a sharding computes itself what each process holds
    sharding = shardings.get(config.train.sharding)
    holds_whole = getattr(sharding, "holds_whole", True)
    says = getattr(sharding, "memory", None)
    held_for_weights = weight_memory(sizes) if says is None else says(sizes, processes)
    memory = _without_offloaded(held_for_weights, config.train.offload)
    memory |= micro_batch_memory(config, shape, batch, sizes.trained)
    # the copy exists for evaluations too, even if the algorithm does not sample
    if not holds_whole and config.rollout.engine == DEFAULT:
        memory |= copy_memory(config, sizes.parameters)
    if algorithm.samples:
        greedy = "greedy_reward" in algorithm.needs
        memory |= rollout_memory(config, groups, prompt_tokens, shape, greedy=greedy)
        memory |= decoding_memory(config, shape, memory["activations"] + memory["work space"])
    if vision == "kept" and image_tokens:
        memory |= feature_memory(config, image_tokens)
    if config.train.reuse_prefill:
        prompts = MicroBatch(
            tokens=groups * prompt_tokens, completion_tokens=0, patches=groups * group.patches
        )
        memory["kept prompts"] = activation_bytes(config, shape, prompts)

    # with adapters the reference is the same model with adapters off
    if "reference_logp" in algorithm.needs and not config.model.lora_rank:
        spread = 0 if holds_whole else sizes.parameters - sizes.vision
        held = sizes.parameters - spread + spread / processes
        memory["reference"] = held * compute_dtype(config).itemsize
    return memory


def _without_offloaded(memory: Mapping[str, float], offload: str) -> dict[str, float]:
    """The part of weights, gradients and moments that stays on the device; see `train.offload`."""
    away = {
        "none": (),
        "optimizer": ("optimizer",),
        "all": ("weights", "gradients", "optimizer"),
    }[offload]
    left = {name: size for name, size in memory.items() if name not in away}
    if offload == "optimizer":
        left["page of moments"] = min(memory["optimizer"], 8.0 * PAGE_ELEMENTS)
    return left
