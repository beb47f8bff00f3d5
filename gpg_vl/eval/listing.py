"""What `--list` prints: every benchmark with its size, metric, chance and source, or one with all it has to choose from."""

from rich.console import Console
from rich.table import Table

from gpg_vl.console import say
from gpg_vl.eval.task import Task
from gpg_vl.eval.tasks import tasks


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


def _short(source: str) -> str:
    """The name on the hub where it is one."""
    return source.removeprefix("https://huggingface.co/datasets/").removeprefix("https://")


def _sizes(task: Task) -> str:
    return ", ".join(f"{split} {size}" for split, size in task.sizes.items())
