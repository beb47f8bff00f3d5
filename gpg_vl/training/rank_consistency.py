"""Checks that all processes of a run have the same settings, the same data and the same run folder.

Each node has its own files and command line, so differences are checked before training.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator

from gpg_vl.config import Config
from gpg_vl.data.sources import hub_name
from gpg_vl.errors import UserError
from gpg_vl.hub import is_hub_name, is_reachable, remember
from gpg_vl.training.collectives import gather, on_main, once_per_node
from gpg_vl.training.identity import list_changes
from gpg_vl.training.late_processes import name_processes

SEEN_WITHIN = 15.0
"""Seconds within which a file written by one node must be visible on the others, because network file systems have
delays."""


def refuse_other_settings(accelerator: Accelerator, config: Config) -> None:
    """Raises UserError, on all processes, if they were started with different configs or overrides."""
    found = different_settings(gather(accelerator, config.model_dump(mode="json")))
    if found:
        raise UserError(
            f"The processes were started with different settings: {'; '.join(found)}. A run has one config and one set of "
            f"overrides. Start all processes with the same ones."
        )


def different_settings(by_process: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings of each process that differ from process 0. If several differ equally, the first is named."""
    found: dict[str, int] = {}
    for rank, settings in enumerate(by_process):
        for name, first, here in list_changes(by_process[0], settings):
            found.setdefault(f"{name} is {first!r} on process 0 and {here!r} on process", rank)
    return [f"{description} {rank}" for description, rank in found.items()]


def agree_on_the_hub(accelerator: Accelerator, *, model: str, data: Sequence[str]) -> None:
    """Make all processes agree on whether the hub can be reached, if any of them needs it. The first process of each node
    checks.

    If only some nodes can reach the hub, it counts as unreachable.
    """
    is_needed = is_hub_name(model) or any(hub_name(one) for one in data)
    if accelerator.num_processes > 1 and any(gather(accelerator, is_needed)):
        remember(all(once_per_node(accelerator, is_reachable)))


def refuse_other_data(digests: Sequence[str], source: str) -> None:
    """Raises UserError if the digests of the data differ between nodes. digests: one per node."""
    others = [node for node, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UserError(
            f"The data {source} is not the same on all nodes: node {others[0]} reads other rows, answers, prompts or "
            f"images than node 0. All processes draw from one order and need the same rows. Copy the files again, or put "
            f"them on a file system that all nodes share."
        )


def refuse_folder_of_its_own(accelerator: Accelerator, folder: Path) -> None:
    """Raises UserError, on all processes, unless all of them see the run folder that process 0 has created."""
    if accelerator.num_processes == 1:
        return

    token = gather(accelerator, uuid4().hex)[0]
    file = folder / f".seen-{token}"
    on_main(accelerator, lambda: _write(file))
    hosts = gather(accelerator, (socket.gethostname(), _is_seen(file)))
    if accelerator.is_main_process:
        file.unlink(missing_ok=True)

    blind = [rank for rank, (_, is_seen) in enumerate(hosts) if not is_seen]
    if blind:
        where = ", ".join(sorted({hosts[rank][0] for rank in blind}))
        raise UserError(
            f"The run folder {folder}, which process 0 has made on {hosts[0][0]}, is not seen by {name_processes(blind)} (on "
            f"{where}). All processes write their part of a checkpoint into one folder. Set output.folder to a path on a file "
            f"system that all nodes share, the same on each."
        )


def _write(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        raise UserError(
            f"The run folder {file.parent} cannot be written: {error}. Choose another output.folder."
        ) from None


def _is_seen(file: Path) -> bool:
    end = time.monotonic() + SEEN_WITHIN
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
