"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import signal
from types import FrameType
from typing import Any

from rich.console import Console


class StopRequest:
    """Ctrl-C or SIGTERM: finish the step, write a checkpoint, stop. A second one stops at once."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def wanted(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._console:
            self._console.print(
                "stopping after this step, with a checkpoint; once more to stop at once"
            )

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
