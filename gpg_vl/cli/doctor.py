"""`gpg-vl doctor`: check what is installed on this machine and what is missing."""

import argparse
from typing import TYPE_CHECKING

from gpg_vl.console import make_console

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


HELP = """\
Show what is installed and what is missing, and test this machine; or say whether a checkpoint can be trained.

  gpg-vl doctor                                          packages, GPUs, memory, and a self-test: ten seconds
  gpg-vl doctor --model models/Qwen2-VL-2B-Instruct      family, layers, tokenizer and images of a checkpoint, without its weights

The exit code is 0 if everything that is required is there, else 1."""


def add_command(commands: "_Commands") -> None:
    doctor = commands.add_parser(
        "doctor",
        help="show what is installed and what is missing, and test this machine or a checkpoint",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--model", metavar="PATH", help="a checkpoint folder, or a hub name")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from gpg_vl.doctor.findings import render

    if arguments.model is not None:
        from gpg_vl.doctor.checkpoint import examine_checkpoint

        return render(examine_checkpoint(arguments.model), make_console())

    from gpg_vl.doctor.examine import examine

    return render(examine(), make_console())
