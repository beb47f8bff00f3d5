"""Passes what rewards print on to standard error, escaped and limited in length."""

import codecs
import os
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from gpg_vl.console import say

CALL_LIMIT = 10_000
"""Maximum characters that all rewards together may print in one call of the pool, which is one round of a training step."""
POOL_LIMIT = 200_000
"""Maximum characters that they may print over the lifetime of a pool."""


class Printed:
    """Passes on what workers write into their pipes, up to both limits. One per pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_pool = POOL_LIMIT
        self._left = CALL_LIMIT
        self._is_cut = False

    def renew(self) -> None:
        """Reset the limit per call. Called when a call begins."""
        with self._lock:
            self._left = min(CALL_LIMIT, self._of_pool)
            self._is_cut = self._of_pool <= 0  # already reported at the end of an earlier call

    def follow(self, pipe: Connection) -> threading.Thread:
        """Start a thread that passes on the output of a pipe until its last writer has ended, then closes the pipe."""
        thread = threading.Thread(target=self._pass_on, args=(pipe,), daemon=True)
        thread.start()
        return thread

    def _pass_on(self, pipe: Connection) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        with pipe:
            while piece := os.read(pipe.fileno(), 65_536):
                # keep reading even if standard error is closed, so that a reward does not block on a full pipe
                with suppress(OSError, ValueError):
                    self._show(decoder.decode(piece))

    def _show(self, text: str) -> None:
        with self._lock:
            shown = text[: self._left]
            self._left -= len(shown)
            self._of_pool -= len(shown)
            if shown:
                say(shown, error=True, end="")
            if len(shown) < len(text) and not self._is_cut:
                self._is_cut = True
                say(
                    f"\n... (rewards may print {CALL_LIMIT:,} characters in one round of a step and {POOL_LIMIT:,} in a "
                    f"run; the rest is left out)",
                    error=True,
                )
