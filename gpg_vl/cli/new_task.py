"""`gpg-vl new-task NAME`: write the five files of a new task, a working example to change."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import say

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: "_Commands") -> None:
    """Add `new-task` to the command line."""
    parser = commands.add_parser(
        "new-task",
        help="write the files of a new task: recipe, reward, config, eval task",
        description="Write a recipe, a reward with completions to try it on, a config and an eval task that work "
        "together: a small example for you to change, explained in docs/new_task.md.",
    )
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and _")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="the folder to write to (default: this folder)"
    )
    parser.set_defaults(run=_new_task)


def _new_task(arguments: argparse.Namespace) -> int:
    from gpg_vl.scaffold.new_task import write_task

    name = arguments.name
    for file in write_task(name, arguments.folder):
        say(f"wrote {file}")
    say(
        f"next: python {name}_recipe.py --out data/{name}\n"
        f"      gpg-vl rewards test {name}_reward.py:corner --data data/{name}/train "
        f"--completions completions.jsonl\n"
        f"      gpg-vl train {name}.yaml --dry-run"
    )
    return 0
