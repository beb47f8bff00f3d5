"""What a run will do, said before anything heavy is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config
from gpg_vl.models.attention import Kernel, choose_kernel
from gpg_vl.models.families import Family
from gpg_vl.models.head import TILE_ELEMENTS
from gpg_vl.models.load import read_config
from gpg_vl.training.cost import Cost, VisionMode, group_cost


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
    """Bytes of activations of one such group in one pass."""
    naive_activations: float
    first_prompt: str


def count_parameters(config: Config, family: Family) -> tuple[int, int]:
    """(all, trained) parameters, from the checkpoint's config alone: nothing is read, nothing allocated."""
    import transformers

    from gpg_vl.models.adapters import add_adapters
    from gpg_vl.training.optimizer import freeze

    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(
            read_config(config.model.path, config.model.revision)
        )
        if config.model.lora_rank:
            add_adapters(
                model,
                family,
                rank=config.model.lora_rank,
                alpha=config.model.lora_alpha,
                targets=config.model.lora_targets,
                seed=0,
            )
    freeze(model, family, config.model.freeze)
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


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
) -> Plan:
    """The plan for a checked data set. `prompt_tokens` and `image_tokens` are per example."""
    ordered = sorted(prompt_tokens)
    median, image_median = ordered[len(ordered) // 2], sorted(image_tokens)[len(image_tokens) // 2]
    parameters, trained = count_parameters(config, family)
    costs = {
        shared: _cost(config, algorithm, family, median, image_median, shared=shared)
        for shared in (True, False)
    }
    here = costs[config.train.shared_prefix]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernel, why = choose_kernel(config.train.attention, device, _dtype(config))
    return Plan(
        examples=len(prompt_tokens),
        steps=steps,
        epochs=steps * config.train.prompts_per_step / len(prompt_tokens),
        prompts_per_step=config.train.prompts_per_step,
        group_size=_group_size(config, algorithm),
        processes=processes,
        prompt_tokens_median=median,
        prompt_tokens_max=ordered[-1],
        image_tokens_median=image_median,
        parameters=parameters,
        trained_parameters=trained,
        passes_per_step=ceil(
            ceil(config.train.prompts_per_step / processes)
            / max(1, config.train.tokens_per_pass // here.tokens)
        ),
        kernel=kernel,
        kernel_note=why,
        cost=here,
        naive_cost=costs[False],
        memory_bytes=_memory(
            config,
            algorithm,
            family,
            parameters,
            trained,
            here.tokens,
            processes=processes,
            prompt_tokens_max=ordered[-1],
            image_tokens_total=sum(image_tokens),
        ),
        naive_activations=_activations(config, costs[False].tokens),
        group_activations=_activations(config, here.tokens),
        first_prompt=first_prompt,
    )


def vision_mode(config: Config, family: Family) -> VisionMode:
    """What becomes of the vision tower in a run with these settings."""
    if (
        not family.has_vision
        or config.model.lora_rank
        or {"vision", "merger"} <= set(config.model.freeze)
    ):
        return "kept" if config.model.vision_cache_mb else "frozen"
    return "frozen" if "vision" in config.model.freeze else "trained"


def _group_size(config: Config, algorithm: Algorithm) -> int:
    """Answers per group: those that are sampled, or the gold one."""
    return config.rollout.group_size if algorithm.samples else 1


def _cost(
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


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32


def _activations(config: Config, tokens: int) -> float:
    """Bytes, by the usual counting: 34 numbers of hidden size per token and layer, of which checkpointing keeps two."""
    text = read_config(config.model.path, config.model.revision).get_text_config()
    kept = 2 if config.model.gradient_checkpointing else 34
    return float(
        tokens * text.hidden_size * text.num_hidden_layers * kept * _dtype(config).itemsize
    )


def _work_space(config: Config, trained: int) -> float:
    """Bytes that come and go: the gradient of the head and one tile of it, and the casts of autocast."""
    text = read_config(config.model.path, config.model.revision).get_text_config()
    tile = 4.0 * TILE_ELEMENTS["cuda" if torch.cuda.is_available() else "cpu"]
    head: float = 4.0 * text.hidden_size * text.vocab_size + tile
    casts = 2.0 * trained if config.model.dtype == "bfloat16" else 0.0
    return head + casts


def _memory(
    config: Config,
    algorithm: Algorithm,
    family: Family,
    parameters: int,
    trained: int,
    tokens_of_group: int,
    *,
    processes: int,
    prompt_tokens_max: int,
    image_tokens_total: int,
) -> dict[str, float]:
    """Bytes per process. Weights, gradients and moments are exact, activations estimated for a full micro-batch."""
    checkpoint = read_config(config.model.path, config.model.revision)
    itemsize = _dtype(config).itemsize
    groups = ceil(config.train.prompts_per_step / processes)
    tokens = min(config.train.tokens_per_pass, groups * tokens_of_group)

    memory = {
        "weights": 4.0 * parameters,
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "activations": _activations(config, tokens),
        "work space": _work_space(config, trained),
    }

    # the slots of the rollout, and the prompts that wait for one
    if algorithm.samples:
        answers = min(config.rollout.slots, groups * config.rollout.group_size)
        cached = answers * (prompt_tokens_max + config.rollout.max_new_tokens)
        cached += config.rollout.prompts_per_batch * prompt_tokens_max
        key_values = family.shape_of(checkpoint).key_values
        memory["key-value cache"] = float(cached * key_values * itemsize)

    if vision_mode(config, family) == "kept" and image_tokens_total:
        hidden = checkpoint.get_text_config().hidden_size
        every = float(image_tokens_total * hidden * itemsize)
        memory["image features"] = min(every, config.model.vision_cache_mb * 2.0**20)
    if config.train.reuse_prefill:
        memory["kept prompts"] = _activations(config, groups * prompt_tokens_max)
    if "reference_logp" in algorithm.needs and not config.model.lora_rank:
        memory["reference"] = float(parameters * itemsize)
    return memory


def render_plan(plan: Plan, config: Config, console: Console) -> None:
    """Print the plan and the rendered prompt of row 0."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    share = 100 * plan.trained_parameters / plan.parameters
    steps = f"{plan.steps} steps, {plan.epochs:.2f} epochs of {plan.examples} examples"
    per_step = f"{plan.prompts_per_step} groups x {plan.group_size} answers = {plan.prompts_per_step * plan.group_size} answers"
    rows = {
        "model": f"{config.model.path}, {plan.parameters:,} parameters, {plan.trained_parameters:,} trained ({share:.1f} %), "
        f"{config.model.dtype}",
        "data": f"{config.data.train}: prompts of {plan.prompt_tokens_median:g} tokens (median; {plan.prompt_tokens_max} at "
        f"most), "
        f"{plan.image_tokens_median:g} of them image",
        "run": steps,
        "step": f"{per_step}, on {plan.processes} process(es) in at most {plan.passes_per_step} micro-batch(es) each",
        "sampling": f"temperature {config.rollout.temperature}, top_p 1, top_k off, no penalty, "
        f"at most {config.rollout.max_new_tokens} tokens",
        "rewards": ", ".join(
            f"{name} x {weight:g}" for name, weight in config.rewards.weights.items()
        ),
        "algorithm": _describe_algorithm(config),
        "attention": f"{plan.kernel}{f' ({plan.kernel_note})' if plan.kernel_note else ''}",
        "work": _work(plan),
        "memory": f"about {_size(sum(plan.memory_bytes.values()))} per process: "
        + ", ".join(f"{k} {_size(v)}" for k, v in plan.memory_bytes.items()),
        "output": str(Path(config.output.folder)),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(Panel(table, title="plan", title_align="left"))
    console.print(
        Panel(
            Text(plan.first_prompt),
            title="prompt of row 0, as the model reads it",
            title_align="left",
        )
    )


def _describe_algorithm(config: Config) -> str:
    """Its keys, and the learning rates."""
    keys = config.algorithm.model_dump()
    name = keys.pop("name")
    settings = ", ".join(f"{key} {value}" for key, value in keys.items())
    rates = f"learning rate {config.train.learning_rate:g} {config.train.schedule}"
    for part, rate in config.train.learning_rates.items():
        rates += f", {part} {rate:g}"
    return f"{name}{f' ({settings})' if settings else ''}, {rates}"


def _work(plan: Plan) -> str:
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
