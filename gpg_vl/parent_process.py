"""Which process has started this one. It is looked up when the program begins, because the parent may end later.

The command line imports this module before anything that takes seconds to import.
"""

import os

_AT_START = os.getppid()
IS_LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
"""Whether torchrun or `accelerate launch` has started this process, and not a person or a script. accelerate sets other
variables in every process, but this one only in its launcher, before the program begins."""


def has_lost_launcher() -> bool:
    """Whether the launcher of this process has ended, so that no launcher will end this process any more."""
    return IS_LAUNCHED and os.getppid() != _AT_START
