"""Broken pipes, as in `gpg-vl config | head`: the program ends quietly, with the shell's exit code."""

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

BROKEN_PIPE = 141
"""128 + SIGPIPE: the exit code that a shell reports for a program ended by a broken pipe."""


def run_until_pipe_breaks(run: Callable[[], int]) -> int:
    """Run `run` and return its exit code, or BROKEN_PIPE if nobody reads its output or its messages any more.

    Any other broken pipe, such as one to a child process, still raises BrokenPipeError.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # flush here: an error in Python's own flush at exit could not be caught
    except SystemExit as end:
        if isinstance(
            end.__context__, BrokenPipeError
        ):  # rich turns the error into SystemExit with a code that means something else here
            return BROKEN_PIPE
        raise
    except BrokenPipeError:
        left = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
        if not left:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in left:  # discard what is still in its buffer
            os.dup2(nowhere, stream.fileno())
        return BROKEN_PIPE


def _is_broken(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # the stream has no file, or it is closed
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
