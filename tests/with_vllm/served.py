"""A real server as a process of its own, which can be killed and started again at the same address."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from runs import environment

from gpg_vl.rollout.vllm.client import Server, ServerGoneError

START_SECONDS = 600


@dataclass(slots=True, kw_only=True)
class Served:
    """`gpg-vl serve` with a checkpoint."""

    checkpoint: Path
    log: Path
    flags: tuple[str, ...] = ()
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns at once; see `wait`."""
        self.port = self.port or free_port()
        command = [sys.executable, "-m", "gpg_vl", "serve", str(self.checkpoint), *self.flags]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), "--slots", "16"],
                stdout=log,
                stderr=log,
                env=environment(),
                # a group of its own: a kill reaches the engine's process as well
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                Server(self.url).get("/health", seconds=5)
            except ServerGoneError:
                time.sleep(0.5)
            else:
                return
        raise AssertionError(f"no server after {START_SECONDS} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """At once and without a word, as a machine that is out of memory does it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
