"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import signal
from types import FrameType
from typing import Any

from gpg_vl.console import say

STOPPING = "stopping after this step, with a checkpoint (an evaluation: after its batch); send it again to stop at once"


class StopRequest:
    """Handles Ctrl-C and SIGTERM: the run finishes the step, or the batch of an evaluation, writes a checkpoint and stops.

    A second signal stops at once, by a KeyboardInterrupt with the exit code as its argument.

    announces: whether this process prints that the request was received; only one of several does.
    says: the text that is printed.
    """

    def __init__(self, *, announces: bool, says: str = STOPPING) -> None:
        self._announces = announces
        self._says = says
        self._signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def is_wanted(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a stopped run, as in shells: 130 after Ctrl-C, 143 after SIGTERM."""
        # if only another process received the signal, assume Ctrl-C
        return 128 + (signal.SIGINT if self._signal is None else self._signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt(128 + number)
        self._signal = number
        if self._announces:
            say(self._says)

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
