"""What the exit code of a program of ours says, and who of several processes says why it ends."""

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
    STOPPED: "a run that had to stop (a reward that broke, a full disk, a lost engine), rows of an "
    "evaluation with errors, or a machine that the doctor finds not ready",
    MISTAKE: "a mistake in the command, the config, the data or the checkpoint; the message says "
    "which",
    INTERRUPTED: "Ctrl-C; a run has finished its step and written a checkpoint",
    141: "the reader of the output left, as head does",
    128 + signal.SIGTERM: "SIGTERM; a run has finished its step and written a checkpoint",
}
"""In the order in which --help lists them."""

PATIENCE = 20.0
"""Seconds in which torchrun has ended all processes of a machine once one of them has ended."""


def describe() -> str:
    """The table as text, for --help: a line per code, at most 80 columns wide."""
    lines = ["exit codes:"]
    for code, meaning in EXIT_CODES.items():
        label = f"  {code:<5}"
        lines += textwrap.wrap(meaning, 79, initial_indent=label, subsequent_indent=" " * 7)
    return "\n".join(lines)


def leads_machine() -> bool:
    """Whether this process prints for all that a launcher has started on this machine."""
    return not IS_LAUNCHED or os.environ.get("LOCAL_RANK", "0") == "0"


def say_once(message: str) -> None:
    """Print why the program ends, once for each machine: all processes of a launch make the same
    mistake, and the first of them says it.

    The others wait for the launcher to end them. Whoever is still there after that has a reason of
    its own, and says it.
    """
    if not leads_machine():
        time.sleep(PATIENCE)
    say(message, error=True)
