"""One update of a server's weights, including pause and continue. It also works after an update that was interrupted."""

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
"""The name of weights during an update. It stays if the update is interrupted, and no request accepts it."""


def update(server: Server, deliver: Callable[[Server], None], name: str) -> Table:
    """Update the server's weights with those that `deliver` sends, under this name.

    Raises what `Server` raises, and RunError if the weights do not fit.
    """
    # abort answers that are still being sampled, because nobody waits for them; caches are cleared too
    server.post("/pause", mode="abort")

    # a trainer that died during an update left the model half updated: close its layers before filling them again
    if describe(server).updating:
        server.post("/finish_weight_update", {"weight_version": BROKEN}, seconds=UPDATE_SECONDS)

    server.post("/start_weight_update", seconds=UPDATE_SECONDS)
    server.post("/update_weight_version", {"new_version": BROKEN})
    deliver(server)
    server.post("/finish_weight_update", {"weight_version": BROKEN}, seconds=UPDATE_SECONDS)

    table = Table.of(server.call("gpg_table")[0])
    table.refuse_gaps()
    # set the name last, so that it proves that everything before it is complete
    server.post("/resume")
    server.post("/update_weight_version", {"new_version": name})
    return table


def lock_of(run: str) -> Path:
    """The lock file of a run on this node."""
    return FOLDER / f"{PREFIX}{run}.lock"


@contextmanager
def alone(run: str) -> Iterator[None]:
    """Inside the block no other process of this run on this node updates a server."""
    with lock_of(run).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
