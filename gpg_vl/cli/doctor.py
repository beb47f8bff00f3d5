"""`gpg-vl doctor`: check what is installed on this machine and what is missing."""

import argparse
from typing import TYPE_CHECKING

from gpg_vl.console import make_console

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: "_Commands") -> None:
    doctor = commands.add_parser(
        "doctor", help="show what is installed and what is missing, and test this machine"
    )
    doctor.set_defaults(run=_doctor)


def _doctor(_: argparse.Namespace) -> int:
    from gpg_vl.doctor.examine import examine
    from gpg_vl.doctor.findings import render

    return render(examine(), make_console())
