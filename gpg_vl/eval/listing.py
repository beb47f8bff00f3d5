"""What `--list` prints: every benchmark with its size, metric, chance and source, or one with all it has to choose from."""

import re

from rich.console import Console
from rich.table import Table

from gpg_vl.console import say
from gpg_vl.eval.task import Task
from gpg_vl.eval.tasks import tasks

_HUB = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)|^([\w.-]+/[\w.-]+) \(")
_RECIPE = re.compile(r"data_recipes/\w+\.py")
_GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)")


def print_list(name: str | None, console: Console) -> None:
    """One row per benchmark; with a name, everything about that one."""
    if name is not None:
        say("\n".join(task_lines(tasks.get(name)())))
        return
    table = Table(
        title="Benchmarks. `python -m gpg_vl.eval TASK --list` shows prompts and scorers.",
        title_justify="left",
    )
    for column in ("task", "size", "metric", "chance", "source"):
        table.add_column(column, overflow="fold")
    for each in tasks.names():
        task = tasks.get(each)()
        table.add_row(task.name, _sizes(task), task.metric, task.blind, _short(task.source))
    console.print(table)


def task_lines(task: Task) -> list[str]:
    """The whole description of a task, a line per fact."""
    prompts = [
        f"{prompt} (default)" if prompt == task.default_prompt else prompt
        for prompt in task.prompts
    ]
    scorers = [
        f"{scorer} (default)" if scorer in task.default_scorers else scorer
        for scorer in task.scorers
    ]
    facts = {
        "source": task.source,
        "download": download(task),
        "size": _sizes(task),
        "metric": task.metric,
        "chance": task.blind,
        "prompts": ", ".join(prompts),
        "scorers": ", ".join(scorers),
        "aggregates": ", ".join(task.aggregates),
    }
    return [
        f"{task.name}: {task.description}",
        *(f"  {fact + ':':11} {text}" for fact, text in facts.items()),
    ]


def download(task: Task) -> str:
    """The command that fetches the benchmark, and what to give as --data afterwards."""
    if found := _HUB.search(task.source):
        name = found[1] or found[2]
        folder = f"data/{name.rpartition('/')[2]}"
        return (
            f"hf download {name} --repo-type dataset --local-dir {folder}, then --data {folder}; or at once: "
            f"--data hub:{name}"
        )
    if found := _GITHUB.search(task.source):
        folder = f"data/{found[1].rpartition('/')[2]}"
        return f"git clone https://github.com/{found[1]} {folder}, then --data with what the source names of it"
    if found := _RECIPE.search(task.source):
        return f"python {found[0]} --out data/{task.name}, then --data data/{task.name}"
    return f"as the source says: {task.source}"


def _short(source: str) -> str:
    """The name on the hub where it is one."""
    return source.removeprefix("https://huggingface.co/datasets/").removeprefix("https://")


def _sizes(task: Task) -> str:
    return ", ".join(f"{split} {size}" for split, size in task.sizes.items())
