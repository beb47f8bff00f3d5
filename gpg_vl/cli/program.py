"""The program `gpg-vl`: its commands, and how their errors are reported.

A `UserError` or `RunError` is printed as one message and sets the exit code
(`gpg_vl/exit_codes.py`). Any other exception is a bug and keeps its traceback.

Each command is a file in this folder or in the package it belongs to. It imports heavy modules
only when it runs, because --help must be fast.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import gpg_vl.parent_process  # noqa: F401  it looks at what is there when the program begins
from gpg_vl.cli import (
    config,
    data,
    doctor,
    evaluate,
    init,
    new_task,
    quickstart,
    train,
    try_model,
)
from gpg_vl.console import escaped_output, guard
from gpg_vl.errors import RunError, UserError
from gpg_vl.exit_codes import INTERRUPTED, MISTAKE, STOPPED, describe, say_once
from gpg_vl.pipes import run_until_pipe_breaks
from gpg_vl.report.command import add_command as add_report
from gpg_vl.rewards.commands import add_commands as add_rewards
from gpg_vl.rollout.vllm.command import add_command as add_serve
from gpg_vl.version import installed_version

_COMMANDS = (
    train.add_command,
    evaluate.add_command,
    try_model.add_command,
    add_report,
    add_serve,
    data.add_command,
    add_rewards,
    config.add_command,
    doctor.add_command,
    init.add_command,
    new_task.add_command,
    quickstart.add_command,
)
"""In the order in which --help lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    return run_until_pipe_breaks(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    # spinning threads make a shared machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    guard()

    # argparse would take the option in `eval --list` for an option of gpg-vl itself
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["eval"]:
        return evaluate.run(words[1:])

    with escaped_output(says=say_once):
        arguments = _parse(words)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        say_once(f"gpg-vl: {error}")
        return MISTAKE
    except RunError as error:
        say_once(f"gpg-vl: {error}")
        return STOPPED
    except KeyboardInterrupt as stop:
        say_once("gpg-vl: stopped. What was checkpointed is complete; resume with --resume.")
        return int(stop.args[0]) if stop.args else INTERRUPTED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Exits with code 2 for arguments that no command takes."""
    parser = make_parser()
    arguments, behind = parser.parse_known_args(words)
    if not behind:
        return arguments

    has_option = any(word.startswith("-") for word in behind)
    if has_option or not hasattr(arguments, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")

    # argparse does not collect overrides that come after an option
    arguments.overrides += behind
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Runs no command and imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="gpg-vl",
        description="Teach vision-language models to reason, by reinforcement learning with\n"
        "verifiable rewards and Group Policy Gradient.",
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpg-vl {installed_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    return parser
