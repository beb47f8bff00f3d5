"""The exit codes of gpg_vl's programs, and which of several processes prints why a program ends."""

import os
import signal
import textwrap
import time

from gpg_vl.console import say
from gpg_vl.parent_process import IS_LAUNCHED

STOPPED, MISTAKE = 1, 2
INTERRUPTED = 128 + signal.SIGINT
EXIT_CODES = {
    0: "done",
    STOPPED: "a run that had to stop (a reward that failed, a full disk, a lost engine), rows of "
    "an evaluation with errors, or a machine on which gpg-vl doctor found a problem",
    MISTAKE: "a mistake in the command, the config, the data or the checkpoint; the message says "
    "which",
    INTERRUPTED: "Ctrl-C; a run finishes its step and writes a checkpoint first",
    141: "the program that read the output has ended, as head does",
    128 + signal.SIGTERM: "SIGTERM; a run finishes its step and writes a checkpoint first",
}
"""In the order in which --help lists them."""

PATIENCE = 20.0
"""Seconds after which torchrun has surely ended all processes of a machine once one of them has
ended."""


def describe() -> str:
    """The table as text, for --help: a line per code, at most 80 columns wide."""
    lines = ["exit codes:"]
    for code, meaning in EXIT_CODES.items():
        label = f"  {code:<5}"
        lines += textwrap.wrap(meaning, 79, initial_indent=label, subsequent_indent=" " * 7)
    return "\n".join(lines)


def leads_machine() -> bool:
    """Whether this process prints for all processes that a launcher has started on this machine."""
    return not IS_LAUNCHED or os.environ.get("LOCAL_RANK", "0") == "0"


def say_once(message: str) -> None:
    """Print why the program ends, once per machine: all processes of a launch fail with the same
    mistake, and only the first one prints it.

    The others wait for the launcher to end them. A process that is still running after that failed
    for another reason, and prints it.
    """
    if not leads_machine():
        time.sleep(PATIENCE)
    say(message, error=True)
