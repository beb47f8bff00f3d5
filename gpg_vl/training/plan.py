"""What a run will do, said before anything heavy is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpg_vl.config import Config
from gpg_vl.models.families import Family
from gpg_vl.models.load import read_config


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
    memory_bytes: Mapping[str, float]
    """By what takes it."""
    first_prompt: str


def count_parameters(config: Config, family: Family) -> tuple[int, int]:
    """(all, trained) parameters, from the checkpoint's config alone: nothing is read, nothing allocated."""
    import transformers

    from gpg_vl.models.adapters import add_adapters
    from gpg_vl.training.optimizer import freeze

    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(read_config(config.model.path, config.model.revision))
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
    family: Family,
    prompt_tokens: Sequence[int],
    image_tokens: Sequence[int],
    processes: int,
    steps: int,
    first_prompt: str,
) -> Plan:
    """The plan for a checked data set. `prompt_tokens` and `image_tokens` are per example."""
    ordered = sorted(prompt_tokens)
    median = ordered[len(ordered) // 2]
    parameters, trained = count_parameters(config, family)
    groups = config.train.prompts_per_step // processes
    size, longest = config.rollout.group_size, config.rollout.max_new_tokens
    rows, row_tokens = (1, median + size * longest) if config.train.shared_prefix else (size, median + longest)
    per_pass = max(1, config.train.tokens_per_pass // (rows * row_tokens))
    return Plan(
        examples=len(prompt_tokens),
        steps=steps,
        epochs=steps * config.train.prompts_per_step / len(prompt_tokens),
        prompts_per_step=config.train.prompts_per_step,
        group_size=size,
        processes=processes,
        prompt_tokens_median=median,
        prompt_tokens_max=ordered[-1],
        image_tokens_median=sorted(image_tokens)[len(image_tokens) // 2],
        parameters=parameters,
        trained_parameters=trained,
        passes_per_step=ceil(groups / per_pass),
        memory_bytes=_memory(config, parameters, trained, rows * row_tokens, per_pass, prompt_tokens_max=ordered[-1]),
        first_prompt=first_prompt,
    )


def _memory(
    config: Config, parameters: int, trained: int, tokens_of_group: int, groups_per_pass: int, *, prompt_tokens_max: int
) -> dict[str, float]:
    """Bytes per process. Weights, gradients and moments are exact; activations and cache follow the usual counting:

    34 numbers of hidden size per token and layer, of which checkpointing keeps one; two of key-value size per cached token.
    """
    text = read_config(config.model.path, config.model.revision).get_text_config()
    width = 2 if config.model.dtype == "bfloat16" else 4
    tokens = max(tokens_of_group, min(config.train.tokens_per_pass, tokens_of_group * groups_per_pass))
    kept = 2 if config.model.gradient_checkpointing else 34
    cached = (
        config.rollout.prompts_per_batch
        * config.rollout.group_size
        * (prompt_tokens_max + config.rollout.max_new_tokens)
    )
    key_value = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * text.num_hidden_layers
    return {
        "weights": 4.0 * parameters,
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "activations": float(tokens * text.hidden_size * text.num_hidden_layers * kept * width),
        "key-value cache": float(cached * key_value * width),
    }


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
        "step": f"{per_step}, on {plan.processes} process(es) in at most {plan.passes_per_step} pass(es) each",
        "sampling": f"temperature {config.rollout.temperature}, top_p 1, top_k off, no penalty, "
        f"at most {config.rollout.max_new_tokens} tokens",
        "rewards": ", ".join(f"{name} x {weight:g}" for name, weight in config.rewards.weights.items()),
        "objective": f"f_norm {config.algorithm.f_norm}, age {config.algorithm.age}, beta_th {config.algorithm.beta_th:g}, "
        f"{config.algorithm.aggregation} mean, learning rate {config.train.learning_rate:g} {config.train.schedule}",
        "memory": f"about {_size(sum(plan.memory_bytes.values()))} per process: "
        + ", ".join(f"{k} {_size(v)}" for k, v in plan.memory_bytes.items()),
        "output": str(Path(config.output.folder)),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(Panel(table, title="plan", title_align="left"))
    console.print(Panel(Text(plan.first_prompt), title="prompt of row 0, as the model reads it", title_align="left"))


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
