"""One update of a server's weights: from the pause before it to the first answer after it, whatever was left unfinished."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpg_vl.rollout.vllm.client import Server
from gpg_vl.rollout.vllm.handshake import describe
from gpg_vl.rollout.vllm.protocol import FOLDER, PREFIX
from gpg_vl.rollout.vllm.transfer import UPDATE_SECONDS
from gpg_vl.rollout.vllm.weights import Table

BROKEN = "broken"
"""The name of weights that somebody began to send and did not finish; nobody waits for it."""


def update(server: Server, deliver: Callable[[Server], None], name: str) -> Table:
    """Give the server the weights that `deliver` brings, under this name.

    Raises what `Server` raises, and RunError if the weights do not fit.
    """
    # answers that are still being written have lost whoever asked for them; their caches go as well
    server.post("/pause", mode="abort")

    # a trainer that died in the middle has left a model of two halves: its layers are closed before they are filled anew
    if describe(server).updating:
        server.post("/finish_weight_update", {"weight_version": BROKEN}, seconds=UPDATE_SECONDS)

    server.post("/start_weight_update", seconds=UPDATE_SECONDS)
    server.post("/update_weight_version", {"new_version": BROKEN})
    deliver(server)
    server.post("/finish_weight_update", {"weight_version": BROKEN}, seconds=UPDATE_SECONDS)

    table = Table.of(server.call("gpg_table")[0])
    table.refuse_gaps()
    # the name comes last: whoever finds it can be sure of everything before it
    server.post("/resume")
    server.post("/update_weight_version", {"new_version": name})
    return table


def lock_of(run: str) -> Path:
    """What processes of a run and node lock each other out with."""
    return FOLDER / f"{PREFIX}{run}.lock"


@contextmanager
def alone(run: str) -> Iterator[None]:
    """Within, no other process of this run and node updates a server."""
    with lock_of(run).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
