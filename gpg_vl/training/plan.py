"""What a run will do, said before anything heavy is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, prod
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from torch import nn

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config
from gpg_vl.console import plain
from gpg_vl.models.adapter_layers import PARTS
from gpg_vl.models.attention import Kernel, choose_kernel
from gpg_vl.models.families import Family
from gpg_vl.models.held import is_matrix
from gpg_vl.models.load import read_config
from gpg_vl.training.adamw import takes_codes
from gpg_vl.training.cost import Cost, VisionMode, group_cost
from gpg_vl.training.eight_bit import scale_shape
from gpg_vl.training.estimate import estimate_memory
from gpg_vl.training.fit import Fit, fit_choices
from gpg_vl.training.memory import (
    MicroBatch,
    Sizes,
    activation_bytes,
    compute_dtype,
    widths,
)
from gpg_vl.training.outline import make_outline
from gpg_vl.training.sharding import shardings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of a run, before it starts."""

    examples: int
    steps: int
    epochs: float
    prompts_per_step: int
    group_size: int
    processes: int
    prompt_tokens_median: float
    prompt_tokens_max: int
    image_tokens_median: float
    parameters: int
    trained_parameters: int
    passes_per_step: int
    """Per process, if every group is valid and every answer as long as it may be."""
    kernel: Kernel
    """How attention over shared prompts is computed here."""
    kernel_note: str
    """Why it is not the one that was asked for, or ""."""
    cost: Cost
    """Of one group of median prompt whose answers are as long as they may be."""
    naive_cost: Cost
    """The same with image and prompt computed for every answer."""
    memory_bytes: Mapping[str, float]
    """By what takes it."""
    group_activations: float
    """Bytes of activations of one such group in one micro-batch."""
    naive_activations: float
    first_prompt: str
    fits: tuple[Fit, ...] = ()
    """What other settings would take, where the size of a device is known."""
    warnings: tuple[str, ...] = ()
    """What is allowed and probably not meant."""


def count_parameters(config: Config, family: Family) -> Sizes:
    """The sizes of the model that is trained, from the checkpoint's config alone: nothing is read, nothing allocated."""
    model = make_outline(config, family)
    tower = family.vision_tower(model)
    trained_vision = _count(tower, trained=True) if tower else 0
    blocks = family.vision_blocks(model) if trained_vision else []
    coded = [p for p in model.parameters() if p.requires_grad and takes_codes(p)]
    return Sizes(
        parameters=_count(model),
        trained=_count(model, trained=True),
        vision=_count(tower) if tower else 0,
        trained_vision=trained_vision,
        layers=tuple(_count(layer) for layer in [*family.layers(model), *blocks]),
        vectors=_count(model, vectors=True),
        trained_vectors=_count(model, trained=True, vectors=True),
        coded=sum(p.numel() for p in coded),
        blocks=sum(prod(scale_shape(p.shape)) for p in coded),
    )


def _count(module: nn.Module, *, trained: bool = False, vectors: bool = False) -> int:
    """Numbers of all weights of a module; of those that are trained alone, or of those that are no matrices."""
    return sum(
        p.numel()
        for p in module.parameters()
        if (p.requires_grad or not trained) and not (vectors and is_matrix(p))
    )


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
    device_bytes: float | None = None,
    devices: int | None = None,
    warnings: Sequence[str] = (),
) -> Plan:
    """The plan for a checked data set. `prompt_tokens` and `image_tokens` are per example.

    device_bytes: memory of the device that other settings are tried on; None tries none.
    devices: how many of them there are, one for a process; None: as many as processes.
    """
    longest, median = max(prompt_tokens), _median(prompt_tokens)
    image_median = _median(image_tokens)

    @cache
    def count(lora_rank: int) -> Sizes:
        model = config.model.model_copy(update={"lora_rank": lora_rank})
        return count_parameters(config.model_copy(update={"model": model}), family)

    sizes = count(config.model.lora_rank)

    costs = {}
    for shared in (True, False):
        costs[shared] = _group_cost(config, algorithm, family, median, image_median, shared=shared)
    here, naive = costs[config.train.shared_prefix], costs[False]

    # a group is not spread over micro-batches: one that is too large has one to itself
    groups = ceil(config.train.prompts_per_step / processes)
    devices = devices or processes
    groups_per_micro_batch = max(1, config.train.tokens_per_pass // here.tokens)

    def of_group(config: Config) -> MicroBatch:
        shared = config.train.shared_prefix
        return _micro_batch(config, algorithm, family, here, image_median, shared=shared)

    def estimate(config: Config, processes: int = devices) -> dict[str, float]:
        return estimate_memory(
            config,
            algorithm,
            family,
            replace(count(config.model.lora_rank), widths=widths(config)),
            ceil(config.train.prompts_per_step / processes),
            processes=processes,
            group=of_group(config),
            prompt_tokens=longest,
            image_tokens=sum(image_tokens),
            vision=vision_mode(config, family),
        )

    shape = family.shape_of(read_config(config.model.path, config.model.revision))
    unshared = _micro_batch(config, algorithm, family, naive, image_median, shared=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernel, why = choose_kernel(config.train.attention, device, compute_dtype(config))
    return Plan(
        examples=len(prompt_tokens),
        steps=steps,
        epochs=steps * config.train.prompts_per_step / len(prompt_tokens),
        prompts_per_step=config.train.prompts_per_step,
        group_size=_group_size(config, algorithm),
        processes=processes,
        prompt_tokens_median=median,
        prompt_tokens_max=longest,
        image_tokens_median=image_median,
        parameters=sizes.parameters,
        trained_parameters=sizes.trained,
        passes_per_step=ceil(groups / groups_per_micro_batch),
        kernel=kernel,
        kernel_note=why,
        cost=here,
        naive_cost=naive,
        memory_bytes=estimate(config, processes),
        naive_activations=activation_bytes(config, shape, unshared),
        group_activations=activation_bytes(config, shape, of_group(config)),
        first_prompt=first_prompt,
        fits=fit_choices(config, estimate, device_bytes, _offered_shardings(devices))
        if device_bytes
        else (),
        warnings=tuple(warnings),
    )


def _offered_shardings(devices: int) -> list[str]:
    """Those that say what they hold: one process has nobody to share with."""
    others = [name for name in shardings.names() if name != "none"] if devices > 1 else []
    return [
        "none",
        *(name for name in others if getattr(shardings.get(name), "memory", None) is not None),
    ]


def _median(values: Sequence[int]) -> int:
    """A value that occurs: of an even number the upper one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def vision_mode(config: Config, family: Family) -> VisionMode:
    """What becomes of the vision tower in a run with these settings."""
    model = config.model
    trained = set(model.lora_on if model.lora_rank else PARTS) - set(model.freeze)
    if not family.has_vision or not trained & {"vision", "merger"}:
        return "kept" if model.vision_cache_mb else "frozen"
    return "trained" if "vision" in trained else "frozen"


def _group_size(config: Config, algorithm: Algorithm) -> int:
    """Answers per group: those that are sampled, or the gold one."""
    return config.rollout.group_size if algorithm.samples else 1


def _group_cost(
    config: Config,
    algorithm: Algorithm,
    family: Family,
    prompt: int,
    image_tokens: int,
    *,
    shared: bool,
) -> Cost:
    """Of one group of median prompt, every answer as long as it may be."""
    mode = vision_mode(config, family)
    cost = group_cost(
        family.shape_of(read_config(config.model.path, config.model.revision)),
        prompt=prompt,
        image_tokens=image_tokens,
        completion=config.rollout.max_new_tokens,
        group_size=_group_size(config, algorithm),
        shared=shared,
        recompute=config.model.gradient_checkpointing,
        # the naive way has nowhere to keep features
        vision="frozen" if mode == "kept" and not shared else mode,
    )

    # scoring by the reference is one forward pass: what prompt and answers cost in a rollout
    forward = cost.prefill + cost.decode
    train = algorithm.updates * cost.train
    if "reference_logp" in algorithm.needs:
        train += forward

    if not algorithm.samples:
        return replace(cost, prefill=0.0, decode=0.0, train=train, patches=cost.patches // 2)
    if shared and config.train.reuse_prefill:
        return replace(cost, train=train - cost.prefill, patches=cost.patches // 2)
    return replace(cost, train=train)


def _micro_batch(
    config: Config,
    algorithm: Algorithm,
    family: Family,
    cost: Cost,
    image_tokens: int,
    *,
    shared: bool,
) -> MicroBatch:
    """One group in a micro-batch of its own, every answer as long as it may be."""
    size = _group_size(config, algorithm)
    is_trained = vision_mode(config, family) == "trained"
    merge = family.shape_of(read_config(config.model.path, config.model.revision)).merge
    patches = image_tokens * merge * (1 if shared else size)
    return MicroBatch(
        tokens=cost.tokens,
        completion_tokens=size * config.rollout.max_new_tokens,
        patches=patches if is_trained else 0,
    )


def render_plan(plan: Plan, config: Config, console: Console) -> None:
    """Print the plan and the rendered prompt of row 0."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _describe(plan, config).items():
        table.add_row(name, plain(value))
    console.print(Panel(table, title="plan", title_align="left"))

    prompt = plain(plan.first_prompt)
    console.print(Panel(prompt, title="prompt of row 0, as the model reads it", title_align="left"))


def _describe(plan: Plan, config: Config) -> dict[str, str]:
    """The rows of the table."""
    answers = plan.prompts_per_step * plan.group_size
    share = 100 * plan.trained_parameters / plan.parameters
    return {
        "model": f"{config.model.path}, {plan.parameters:,} parameters, "
        f"{plan.trained_parameters:,} trained ({share:.1f} %{_describe_adapters(config)}), {_describe_numbers(config)}",
        "data": f"{config.data.train}: prompts of {plan.prompt_tokens_median:g} tokens (median; "
        f"{plan.prompt_tokens_max} at most), {plan.image_tokens_median:g} of them image",
        "run": f"{plan.steps} steps, {plan.epochs:.2f} epochs of {plan.examples} examples",
        "step": f"{plan.prompts_per_step} groups x {plan.group_size} answers = {answers} answers, "
        f"on {plan.processes} process(es) in at most {plan.passes_per_step} micro-batch(es) each",
        "sampling": f"temperature {config.rollout.temperature}, top_p 1, top_k off, no penalty, "
        f"at most {config.rollout.max_new_tokens} tokens",
        "rewards": ", ".join(f"{name} x {w:g}" for name, w in config.rewards.weights.items()),
        "algorithm": _describe_algorithm(config),
        "attention": f"{plan.kernel} ({plan.kernel_note})" if plan.kernel_note else plan.kernel,
        "work": _describe_work(plan),
        "memory": _describe_memory(plan),
        "output": str(Path(config.output.folder)),
        **({"warning": "\n".join(plan.warnings)} if plan.warnings else {}),
    }


def _describe_adapters(config: Config) -> str:
    if not config.model.lora_rank:
        return ""
    parts = " and ".join(config.model.lora_on)
    return f", adapters of rank {config.model.lora_rank} on {parts}"


def _describe_numbers(config: Config) -> str:
    """What is computed in, and what is held in fewer bits than usual."""
    described = str(config.model.dtype)
    if config.model.weights != "float32":
        described += f", trained weights {config.model.weights}"
    if config.train.optimizer != "adamw":
        described += f", {config.train.optimizer}"
    return described


def _describe_algorithm(config: Config) -> str:
    """Its keys, and the learning rates."""
    keys = config.algorithm.model_dump()
    name = keys.pop("name")
    settings = ", ".join(f"{key} {value}" for key, value in keys.items())
    rates = f"learning rate {config.train.learning_rate:g} {config.train.schedule}"
    for part, rate in config.train.learning_rates.items():
        rates += f", {part} {rate:g}"
    described = f"{name} ({settings})" if settings else name
    return f"{described}, {rates}"


def _describe_memory(plan: Plan) -> str:
    total = _size(sum(plan.memory_bytes.values()))
    parts = ", ".join(f"{name} {_size(n)}" for name, n in plan.memory_bytes.items())
    return f"about {total} per process: {parts}"


def _describe_work(plan: Plan) -> str:
    """Predicted operations of a step, beside what they would be without sharing."""
    ours, naive = plan.cost, plan.naive_cost
    groups = plan.prompts_per_step
    text = (
        f"{_operations(groups * ours.total)} per step at most: prefill {_operations(groups * ours.prefill)}, "
        f"decode {_operations(groups * ours.decode)}, train {_operations(groups * ours.train)}; "
        f"{ours.tokens} tokens and {ours.patches} patches per group"
    )
    if ours == naive:
        return (
            f"{text}; image and prompt are computed for every answer (train.shared_prefix is false)"
        )

    prefill = f", prefill {naive.prefill / ours.prefill:.1f}" if ours.prefill else ""
    activations = plan.naive_activations / plan.group_activations
    ratios = (
        f"{naive.total / ours.total:.1f} times the operations (train {naive.train / ours.train:.1f}{prefill}) and "
        f"{activations:.1f} times the activations"
    )
    return f"{text}. Computing image and prompt for every answer would take {ratios}"


def _operations(number: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.1f} {unit}FLOP"
    return f"{number / 1e6:.0f} MFLOP"


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
