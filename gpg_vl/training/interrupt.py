"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import signal
from types import FrameType
from typing import Any

from gpg_vl.console import say

STOPPING = "stopping after this step, with a checkpoint (an evaluation: after its batch); once more to stop at once"


class StopRequest:
    """Ctrl-C or SIGTERM: finish the step or the batch of an evaluation, write a checkpoint, stop.

    A second one stops at once, by KeyboardInterrupt with the exit code as its argument.

    announces: print that the request was received, which one of several processes does.
    says: what is printed.
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
        """Of a run that was stopped, as shells count: 130 after Ctrl-C, 143 after SIGTERM."""
        # where another process received the signal, it is taken for Ctrl-C
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
