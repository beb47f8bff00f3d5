"""Broken pipes, as in `gpg-vl config | head`: the program ends quietly, with the shell's exit code."""

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

BROKEN_PIPE = 141
"""128 + SIGPIPE: what a shell reports of a program that such a pipe ended."""


def run_until_pipe_breaks(run: Callable[[], int]) -> int:
    """The exit code of `run`; BROKEN_PIPE if nobody reads its output or its messages any more.

    A broken pipe of another kind, such as to a process of our own, keeps its exception.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # here, as what Python flushes at its end can only be complained about
    except SystemExit as end:
        if isinstance(
            end.__context__, BrokenPipeError
        ):  # rich makes an exit of it, with a code that is taken
            return BROKEN_PIPE
        raise
    except BrokenPipeError:
        left = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
        if not left:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in left:  # what is still in its buffer must go somewhere
            os.dup2(nowhere, stream.fileno())
        return BROKEN_PIPE


def _is_broken(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # no file behind it, or a closed one
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
