"""Prints the plan, and the prompt of row 0."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from gpg_vl.config import Config
from gpg_vl.console import plain, prose
from gpg_vl.training.memory import size
from gpg_vl.training.plan import Plan


def render_plan(plan: Plan, config: Config, console: Console) -> None:
    """Print the plan and the rendered prompt of row 0."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in _describe(plan, config).items():
        table.add_row(name, prose(value))
    console.print(Panel(table, title="plan", title_align="left"))
    if plan.shares:
        console.print(Panel(_tabulate_sources(plan), title="sources", title_align="left"))

    prompt = plain(plan.first_prompt)
    console.print(Panel(prompt, title="prompt of row 0, as the model reads it", title_align="left"))


def _tabulate_sources(plan: Plan) -> Table:
    """The rows of each source, and how often they are drawn."""
    draws = plan.steps * plan.prompts_per_step
    table = Table("source", "rows", "share of draws", "epochs", "rewards", "path", box=None)
    for one in plan.shares:
        cells = (
            one.name,
            f"{one.rows}",
            f"{100 * one.share:.1f} %",
            f"{one.share * draws / one.rows:.2f}",
            _list_weights(one.rewards),
            one.path,
        )
        table.add_row(*map(plain, cells))
    return table


def _list_weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} x {w:g}" for name, w in weights.items())


def _describe(plan: Plan, config: Config) -> dict[str, str]:
    """The rows of the table."""
    answers = plan.prompts_per_step * plan.group_size
    share = 100 * plan.trained_parameters / plan.parameters
    return {
        "model": f"{config.model.path}, {plan.parameters:,} parameters, "
        f"{plan.trained_parameters:,} trained ({share:.1f} %{_describe_adapters(config)}), {_describe_numbers(config)}",
        "data": f"{_name_data(config)}: prompts of {plan.prompt_tokens_median:g} tokens (median; "
        f"{plan.prompt_tokens_max} at most), {plan.image_tokens_median:g} of them image",
        **({"rows": plan.rows_note} if plan.rows_note else {}),
        **({"boxes": plan.boxes_note} if plan.boxes_note else {}),
        "run": f"{plan.steps} steps, {plan.epochs:.2f} epochs of {_describe_epoch(plan, config)}",
        "step": f"{plan.prompts_per_step} groups x {plan.group_size} answers = {answers} answers, "
        f"{_describe_greedy(plan)}on {plan.processes} process(es) in at most {plan.passes_per_step} micro-batch(es) each",
        "sampling": f"temperature {config.rollout.temperature}, top_p 1, top_k off, no penalty, "
        f"at most {config.rollout.max_new_tokens} tokens",
        "rewards": "those of each source, below"
        if plan.shares
        else _list_weights(config.rewards.weights),
        "algorithm": _describe_algorithm(config),
        "attention": f"{plan.kernel} ({plan.kernel_note})" if plan.kernel_note else plan.kernel,
        "work": _describe_work(plan),
        **({"time": _describe_seconds(plan, config)} if plan.seconds else {}),
        "memory": _describe_memory(plan),
        "disk": _describe_disk(plan),
        "output": str(Path(config.output.folder)),
        **({"warning": "\n".join(plan.warnings)} if plan.warnings else {}),
    }


def _describe_greedy(plan: Plan) -> str:
    return f"and {plan.prompts_per_step} greedy ones to compare with, " if plan.has_greedy else ""


def _name_data(config: Config) -> str:
    if config.data.sources:
        return f"{len(config.data.sources)} sources, below"
    return config.data.only


def _describe_epoch(plan: Plan, config: Config) -> str:
    if config.data.order is None:
        return f"{plan.examples} examples"
    left_out = f"; {plan.left_out} rows are not listed and never drawn" if plan.left_out else ""
    return f"{plan.examples - plan.left_out} examples, in the order of {config.data.order}, each epoch alike{left_out}"


def _describe_adapters(config: Config) -> str:
    if not config.model.lora_rank:
        return ""
    parts = " and ".join(config.model.lora_on)
    return f", adapters of rank {config.model.lora_rank} on {parts}"


def _describe_numbers(config: Config) -> str:
    """The dtype of the forward pass, and what is stored with fewer bits than usual."""
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
    total = size(sum(plan.memory_bytes.values()))
    parts = ", ".join(f"{name} {size(n)}" for name, n in plan.memory_bytes.items())
    return f"about {total} per process: {parts}"


def _describe_disk(plan: Plan) -> str:
    disk = plan.disk
    return (
        f"about {size(disk.checkpoint)} per checkpoint, at most {disk.at_once} at a time: {size(disk.needed)} of "
        f"{size(disk.free)} that are free"
    )


def _describe_seconds(plan: Plan, config: Config) -> str:
    """The estimated time of a step and of the run, without what is not computation."""
    seconds = plan.seconds
    assert seconds is not None
    parts = f"training {_duration(seconds.train)}"
    if seconds.answers:
        parts = f"answers {_duration(seconds.answers)}, {parts}"
    elif plan.work.samples:
        parts += f"; answers of rollout.engine {config.rollout.engine} come on top"
    return (
        f"about {_duration(seconds.total)} per step ({parts}), {_duration(seconds.total * plan.steps)} for {plan.steps} "
        f"steps. An estimate, from two seconds of timing a model of these widths and few layers on this device: it "
        f"assumes answers of maximum length and a signal in every group in the first round; rewards, image reading and "
        f"evaluations come on top"
    )


def _duration(seconds: float) -> str:
    """Format seconds for people."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _describe_work(plan: Plan) -> str:
    """How much work sharing saves, and the predicted operations of a step."""
    ours, naive = plan.cost, plan.naive_cost
    groups = plan.prompts_per_step
    counts = (
        f"At most {_operations(groups * ours.total)} per step: prefill {_operations(groups * ours.prefill)}, "
        f"decode {_operations(groups * ours.decode)}, train {_operations(groups * ours.train)}; "
        f"{ours.tokens} tokens and {ours.patches} patches per group"
    )
    if ours == naive:
        return f"image and prompt are computed for every answer (train.shared_prefix is false). {counts}"

    prefill = f", prefill {naive.prefill / ours.prefill:.1f}" if ours.prefill else ""
    activations = plan.naive_activations / plan.group_activations
    return (
        f"image and prompt are computed once per group: {naive.total / ours.total:.1f} times the work without sharing "
        f"(train {naive.train / ours.train:.1f}{prefill}), and {activations:.1f} times the activations. {counts}"
    )


def _operations(number: float) -> str:
    for unit, each in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= each:
            return f"{number / each:.1f} {unit}FLOP"
    return f"{number / 1e6:.0f} MFLOP"
