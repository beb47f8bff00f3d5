"""Who has started this process. Looked at when the program begins: later it may be gone, or be taken for another.

Imported by the command line before anything that takes seconds to import.
"""

import os

_AT_START = os.getppid()
IS_LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
"""Whether torchrun or `accelerate launch` has started this process, and not a person or a script. accelerate sets variables of
its own in every process, but only its launcher this one, and only before the program begins."""


def has_lost_launcher() -> bool:
    """Whether the launcher of this process has ended, so that nobody would end it any more."""
    return IS_LAUNCHED and os.getppid() != _AT_START
