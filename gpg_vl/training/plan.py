"""The plan of a run, computed before anything heavy is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, prod

import psutil
import torch
from torch import nn

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config
from gpg_vl.models.adapter_layers import PARTS
from gpg_vl.models.attention import Kernel, choose_kernel
from gpg_vl.models.families import Family
from gpg_vl.models.load import read_config
from gpg_vl.models.shape import Shape
from gpg_vl.models.weight_precision import is_matrix
from gpg_vl.rollout import DEFAULT
from gpg_vl.training.adamw import takes_codes
from gpg_vl.training.disk import Disk, describe_little_disk, plan_disk
from gpg_vl.training.eight_bit import scale_shape
from gpg_vl.training.flops import Cost, VisionMode, add_greedy, group_cost
from gpg_vl.training.memory import (
    MicroBatch,
    Sizes,
    activation_bytes,
    compute_dtype,
    widths,
)
from gpg_vl.training.memory_estimate import estimate_memory
from gpg_vl.training.memory_fit import Fit, describe_little_memory, fit_choices
from gpg_vl.training.meta_model import make_meta_model
from gpg_vl.training.sharding import shardings
from gpg_vl.training.speed import Pass, StepSeconds, Work
from gpg_vl.training.training_sets import SourceShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of a run, before it starts."""

    examples: int
    steps: int
    epochs: float
    prompts_per_step: int
    group_size: int
    has_greedy: bool
    """Whether each prompt also gets a greedy answer."""
    processes: int
    prompt_tokens_median: float
    prompt_tokens_max: int
    image_tokens_median: float
    parameters: int
    trained_parameters: int
    passes_per_step: int
    """Per process, if every group has a signal and every answer has the maximum length."""
    kernel: Kernel
    """How attention over shared prompts is computed here."""
    kernel_note: str
    """Why it is not the configured one, or ""."""
    cost: Cost
    """The cost of one group with a median prompt and answers of maximum length."""
    naive_cost: Cost
    """The same cost if image and prompt were computed for every answer."""
    memory_bytes: Mapping[str, float]
    """Bytes by use."""
    group_activations: float
    """Bytes of activations of one such group in one micro-batch."""
    naive_activations: float
    first_prompt: str
    disk: Disk
    work: Work
    """The work of one process in a step."""
    seconds: StepSeconds | None = None
    """Seconds of a step; None before the device was timed."""
    fits: tuple[Fit, ...] = ()
    """The memory needs of other settings, if the size of a device is known."""
    shares: tuple[SourceShare, ...] = ()
    """The share of each source, if there are several."""
    left_out: int = 0
    """Rows that `data.order` does not list."""
    warnings: tuple[str, ...] = ()
    """Settings that are allowed but probably not intended."""
    rows_note: str = ""
    """Which rows are drawn, if not all of them."""
    boxes_note: str = ""
    """What the numbers of boxes count, if answers are boxes."""


def count_parameters(config: Config, family: Family) -> Sizes:
    """The sizes of the trained model, from the checkpoint's config only; no weights are read or allocated."""
    model = make_meta_model(config, family)
    vision = family.vision_modules(model)
    trained_vision = sum(_count(module, trained=True) for module in vision)
    blocks = family.vision_blocks(model) if trained_vision else []
    coded = [p for p in model.parameters() if p.requires_grad and takes_codes(p)]
    return Sizes(
        parameters=_count(model),
        trained=_count(model, trained=True),
        vision=sum(map(_count, vision)),
        trained_vision=trained_vision,
        layers=tuple(_count(layer) for layer in [*family.layers(model), *blocks]),
        vectors=_count(model, vectors=True),
        trained_vectors=_count(model, trained=True, vectors=True),
        coded=sum(p.numel() for p in coded),
        blocks=sum(prod(scale_shape(p.shape)) for p in coded),
    )


def _count(module: nn.Module, *, trained: bool = False, vectors: bool = False) -> int:
    """The number of weights of a module: all, only the trained ones, or only those in vectors."""
    return sum(
        p.numel()
        for p in module.parameters()
        if (p.requires_grad or not trained) and not (vectors and is_matrix(p))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """The data of a plan, in addition to the config."""

    algorithm: Algorithm
    family: Family
    prompt: int
    """Tokens of the median prompt."""
    longest: int
    """Tokens of the longest prompt."""
    image: int
    """Image tokens of the median prompt."""
    all_images: int
    """Image tokens of the whole data set."""


def make_plan(
    config: Config,
    *,
    algorithm: Algorithm,
    family: Family,
    prompt_tokens: Sequence[int],
    image_tokens: Sequence[int],
    processes: int,
    steps: int,
    first_prompt: str,
    epoch: int | None = None,
    shares: tuple[SourceShare, ...] = (),
    device_bytes: float | None = None,
    devices: int | None = None,
    warnings: Sequence[str] = (),
    rows_note: str = "",
) -> Plan:
    """The plan for a checked data set. `prompt_tokens` and `image_tokens` are per example that is drawn.

    epoch: draws in one pass over the data; None: the number of examples.
    device_bytes: memory of the device for which other settings are tried; None tries none.
    devices: the number of such devices, one per process; None: the number of processes.
    """
    subject = _Subject(
        algorithm=algorithm,
        family=family,
        prompt=_median(prompt_tokens),
        longest=max(prompt_tokens),
        image=_median(image_tokens),
        all_images=sum(image_tokens),
    )

    # the cost of a group, shared and naive, and the memory of the run
    here, naive = (
        _group_cost(config, subject, shared=shared)
        for shared in (config.train.shared_prefix, False)
    )
    sizes_of = _count_by_rank(config, family)
    sizes = sizes_of(config.model.lora_rank)
    estimate = _make_estimate(subject, here, sizes_of)
    devices = devices or processes
    epoch = epoch or len(prompt_tokens)

    memory = estimate(config, processes)
    disk = plan_disk(config, family, sizes, steps)
    kernel, why = _choose_kernel(config)
    return Plan(
        examples=len(prompt_tokens),
        steps=steps,
        epochs=steps * config.train.prompts_per_step / epoch,
        shares=shares,
        left_out=len(prompt_tokens) - epoch,
        prompts_per_step=config.train.prompts_per_step,
        group_size=_group_size(config, algorithm),
        has_greedy=_has_greedy(algorithm),
        processes=processes,
        prompt_tokens_median=subject.prompt,
        prompt_tokens_max=subject.longest,
        image_tokens_median=subject.image,
        parameters=sizes.parameters,
        trained_parameters=sizes.trained,
        passes_per_step=_count_passes(config, here, processes),
        kernel=kernel,
        kernel_note=why,
        cost=here,
        naive_cost=naive,
        memory_bytes=memory,
        naive_activations=_group_activations(config, subject, naive, shared=False),
        group_activations=_group_activations(
            config, subject, here, shared=config.train.shared_prefix
        ),
        first_prompt=first_prompt,
        disk=disk,
        work=_make_work(config, subject, here, sizes, processes),
        fits=fit_choices(
            config,
            lambda choice: estimate(choice, devices),
            device_bytes,
            _offered_shardings(devices),
        )
        if device_bytes
        else (),
        warnings=tuple(
            text for text in (*warnings, *_describe_little_room(memory, processes, disk)) if text
        ),
        rows_note=rows_note,
    )


def _describe_little_room(memory: Mapping[str, float], processes: int, disk: Disk) -> Iterator[str]:
    """Warnings about too little memory or disk space. For a GPU there is a table instead."""
    yield describe_little_disk(disk)
    if not torch.cuda.is_available():
        needed = processes * sum(memory.values())
        yield describe_little_memory(needed, float(psutil.virtual_memory().available))


def _count_by_rank(config: Config, family: Family) -> Callable[[int], Sizes]:
    """The sizes of the model with adapters of a rank, counted once for each rank."""

    @cache
    def count(lora_rank: int) -> Sizes:
        model = config.model.model_copy(update={"lora_rank": lora_rank})
        return count_parameters(config.model_copy(update={"model": model}), family)

    return count


def _make_estimate(
    subject: _Subject, cost: Cost, sizes_of: Callable[[int], Sizes]
) -> Callable[[Config, int], dict[str, float]]:
    """A function from a config and a number of processes to bytes per process, by use. cost: the cost of one group."""

    def estimate(config: Config, processes: int) -> dict[str, float]:
        return estimate_memory(
            config,
            subject.algorithm,
            subject.family,
            replace(sizes_of(config.model.lora_rank), widths=widths(config)),
            ceil(config.train.prompts_per_step / processes),
            processes=processes,
            group=_micro_batch(config, subject, cost, shared=config.train.shared_prefix),
            prompt_tokens=subject.longest,
            image_tokens=subject.all_images,
            vision=vision_mode(config, subject.family),
        )

    return estimate


def _choose_kernel(config: Config) -> tuple[Kernel, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return choose_kernel(config.train.attention, device, compute_dtype(config))


def _make_work(config: Config, subject: _Subject, cost: Cost, sizes: Sizes, processes: int) -> Work:
    """The work of one process in a step, if every group has a signal and every answer has the maximum length."""
    groups = ceil(config.train.prompts_per_step / processes)
    longest, size = config.rollout.max_new_tokens, _group_size(config, subject.algorithm)
    spreads = getattr(shardings.get(config.train.sharding), "memory", None) is not None

    # only the policy itself is timed as an engine
    is_own = subject.algorithm.samples and config.rollout.engine == DEFAULT
    sampled = config.rollout.group_size + _has_greedy(subject.algorithm)
    answers = groups * sampled if is_own else 0
    return Work(
        prefill=groups * cost.prefill if is_own else 0.0,
        train=groups * cost.train,
        samples=subject.algorithm.samples,
        answers=answers,
        rows=max(1, min(answers, config.rollout.slots)),
        longest=longest,
        context=subject.prompt + longest // 2,
        # prompts that training reuses are computed one by one
        together=1 if config.train.reuse_prefill else min(groups, config.rollout.prompts_per_batch),
        micro_batch=Pass(
            groups=min(groups, _groups_per_pass(config, cost)),
            members=size,
            prompt=subject.prompt,
            image=subject.image,
            completion=longest,
        ),
        trained=ceil(sizes.trained / processes) if spreads else sizes.trained,
    )


def _groups_per_pass(config: Config, cost: Cost) -> int:
    """Groups per micro-batch. A group is never split over micro-batches; one that is too large has its own."""
    return max(1, config.train.tokens_per_pass // cost.tokens)


def _count_passes(config: Config, cost: Cost, processes: int) -> int:
    """Micro-batches of a step on one process."""
    groups = ceil(config.train.prompts_per_step / processes)
    return ceil(groups / _groups_per_pass(config, cost))


def _group_activations(config: Config, subject: _Subject, cost: Cost, *, shared: bool) -> float:
    batch = _micro_batch(config, subject, cost, shared=shared)
    return activation_bytes(config, _shape(config, subject.family), batch)


def _shape(config: Config, family: Family) -> Shape:
    return family.shape_of(read_config(config.model.path, config.model.revision))


def _offered_shardings(devices: int) -> list[str]:
    """The shardings that can estimate their memory; with one process only `none`."""
    others = [name for name in shardings.names() if name != "none"] if devices > 1 else []
    return [
        "none",
        *(name for name in others if getattr(shardings.get(name), "memory", None) is not None),
    ]


def _median(values: Sequence[int]) -> int:
    """The median as a value that occurs: of the two in the middle the upper one."""
    return sorted(values)[len(values) // 2]


def vision_mode(config: Config, family: Family) -> VisionMode:
    """Whether and how the vision tower is trained with these settings."""
    model = config.model
    trained = set(model.lora_on if model.lora_rank else PARTS) - set(model.freeze)
    if not family.has_vision or not trained & {"vision", "merger"}:
        return "kept" if model.vision_cache_mb else "frozen"
    return "trained" if "vision" in trained else "frozen"


def _group_size(config: Config, algorithm: Algorithm) -> int:
    """Answers per group: those that are sampled, or the gold one."""
    return config.rollout.group_size if algorithm.samples else 1


def _has_greedy(algorithm: Algorithm) -> bool:
    return "greedy_reward" in algorithm.needs


def _group_cost(config: Config, subject: _Subject, *, shared: bool) -> Cost:
    """The cost of one group with a median prompt and answers of maximum length."""
    algorithm, mode = subject.algorithm, vision_mode(config, subject.family)
    cost = group_cost(
        _shape(config, subject.family),
        prompt=subject.prompt,
        image_tokens=subject.image,
        completion=config.rollout.max_new_tokens,
        group_size=_group_size(config, algorithm),
        shared=shared,
        recompute=config.model.gradient_checkpointing,
        # the naive way cannot cache features
        vision="frozen" if mode == "kept" and not shared else mode,
    )

    # scoring by reference or critic is one forward pass: what prompt and answers cost in a rollout
    forward = cost.prefill + cost.decode
    train = algorithm.updates * cost.train
    if "reference_logp" in algorithm.needs:
        train += forward
    if algorithm.critic is not None:
        train += forward

    if _has_greedy(algorithm):
        cost = add_greedy(cost, _group_size(config, algorithm), shared=shared)
    if not algorithm.samples:
        return replace(cost, prefill=0.0, decode=0.0, train=train, patches=cost.patches // 2)
    if shared and config.train.reuse_prefill:
        return replace(cost, train=train - cost.prefill, patches=cost.patches // 2)
    return replace(cost, train=train)


def _micro_batch(config: Config, subject: _Subject, cost: Cost, *, shared: bool) -> MicroBatch:
    """A micro-batch of one group with answers of maximum length."""
    size = _group_size(config, subject.algorithm)
    is_trained = vision_mode(config, subject.family) == "trained"
    merge = _shape(config, subject.family).merge
    patches = subject.image * merge * (1 if shared else size)
    return MicroBatch(
        tokens=cost.tokens,
        completion_tokens=size * config.rollout.max_new_tokens,
        patches=patches if is_trained else 0,
    )
