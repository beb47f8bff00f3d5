"""Transfers of weights from a trainer to a server, with one interface: shared memory on one node, NCCL between GPUs."""

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpg_vl.errors import UserError
from gpg_vl.rollout.engine import Weights
from gpg_vl.rollout.vllm.client import Server
from gpg_vl.rollout.vllm.protocol import FOLDER, NCCL, PREFIX, Description, host_name

FILE_BYTES = 2**29
"""Approximate size of weight files. A server needs memory for one of them in addition to its model."""
UPDATE_SECONDS = 1800.0


class Transfer(Protocol):
    """Sends weights to servers. Used by the main process; the other processes iterate the weights at the same time."""

    def passes(self, servers: int) -> int:
        """How often the weights are iterated for one sync of this many servers."""
        ...

    def prepare(self, weights: Weights) -> None:
        """Prepare the current weights for sending. Iterates them to the end."""
        ...

    def deliver(self, weights: Weights, server: Server) -> None:
        """Send the weights, between the start and the finish of a server's update. Raises what `Server` raises."""
        ...

    def close(self) -> None: ...


class SharedMemory:
    """Transfer by files in /dev/shm. They are kept until the next sync, so that a server that came back can read them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.files: list[Path] = []
        """The files of the newest weights; other processes of the node may deliver them too."""
        self._written = 0
        _remove_orphans()

    def passes(self, servers: int) -> int:
        return 1

    def prepare(self, weights: Weights) -> None:
        self.close()
        try:
            for piece in _cut(weights(), self._dtype):
                self._write(piece)
        except OSError as error:
            self.close()
            raise UserError(
                f"The weights do not fit into {FOLDER}: {error}. Servers on this node read them there, so it must have "
                f"space for one copy. Free memory, raise the limit of shared memory (docker: --shm-size), or use "
                f"rollout.engine=vllm."
            ) from None

    def deliver(self, weights: Weights, server: Server) -> None:
        deliver(self.files, server)

    def close(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)
        self.files = []

    def _write(self, piece: dict[str, Tensor]) -> None:
        self._written += 1
        file = FOLDER / f"{PREFIX}{process_name()}-{self._written}.safetensors"
        self.files.append(file)
        # create a new file that only this user can write, because its content becomes the weights
        file.touch(mode=0o600, exist_ok=False)
        save_file(piece, file)


class Nccl:
    """Transfer by vLLM's packed broadcast between GPUs, also on several nodes. Not yet run on a GPU."""

    def __init__(self, dtype: torch.dtype, server: Server) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._source = _Source(dtype)
        world = server.get("/get_world_size?include_dp=true")["world_size"]
        self._engine: Any = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                rank=0,
                master_address=_address_towards(server),
                master_port=_free_port(),
                world_size=world + 1,
            ),
            client=_OnlyUpdates(HTTPVLLMWeightSyncClient(server.url, timeout=UPDATE_SECONDS)),
            source=self._source,
        )

    def passes(self, servers: int) -> int:
        return 2 * servers

    def prepare(self, weights: Weights) -> None:
        """Does nothing: weights are sent from GPU to GPU while they are iterated."""

    def deliver(self, weights: Weights, server: Server) -> None:
        self._source.weights = weights
        self._engine.send_weights()

    def close(self) -> None:
        self._engine.shutdown()


class _OnlyUpdates:
    """A client for vLLM's sender whose start and finish do nothing, because the caller makes those calls."""

    def __init__(self, client: Any) -> None:
        self.init_weight_transfer_engine = client.init_weight_transfer_engine
        self.update_weights = client.update_weights

    def start_weight_update(self) -> None:
        """Does nothing: the caller has started the update."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Does nothing: the caller finishes the update."""


@dataclass(slots=True)
class _Source:
    """The weights of a sync in the form that vLLM's sender reads: first their metadata, then one tensor after the other."""

    dtype: torch.dtype
    weights: Weights = lambda: iter(())

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self.dtype, tuple(t.shape)) for name, t in self.weights()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights():
            yield name, tensor.detach().to(self.dtype)


def deliver(files: Iterable[Path], server: Server) -> None:
    """Let a server on this node read weight files. Raises what `Server` raises."""
    for file in files:
        info = {"update_info": {"path": str(file)}}
        server.post("/update_weights", info, seconds=UPDATE_SECONDS)


def choose_transfer(description: Description, server: Server, dtype: torch.dtype) -> Transfer:
    """The transfer for a server. Raises UserError if this process cannot use the server's kind of transfer."""
    if description.transport == NCCL:
        return Nccl(dtype, server)
    if description.host != host_name():
        raise UserError(
            f"The server {server.url} runs without CUDA on another node, so it can only take weights from the shared "
            f"memory of its own node. Start it where the first training process runs, or on a machine with GPUs (gpg-vl "
            f"serve then uses NCCL)."
        )
    return SharedMemory(dtype)


def _cut(weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Split the weights into parts of about FILE_BYTES, in order."""
    piece: dict[str, Tensor] = {}
    held = 0
    for name, tensor in weights:
        # copy each tensor: tied weights share memory, which safetensors does not allow
        copied = tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
        size = copied.numel() * copied.element_size()
        if piece and held + size > FILE_BYTES:
            yield piece
            piece, held = {}, 0
        piece[name] = copied
        held += size
    if piece:
        yield piece


def process_name() -> str:
    """A name for this process: its id and its pid namespace, because containers count ids separately."""
    return f"{Path('/proc/self/ns/pid').stat().st_ino}-{os.getpid()}"


def _remove_orphans() -> None:
    """Remove files of processes that were killed. Files of other users and containers are left alone."""
    space = process_name().partition("-")[0]
    for file in FOLDER.glob(f"{PREFIX}{space}-*"):
        owner = file.name.removeprefix(f"{PREFIX}{space}-").partition("-")[0]
        is_ours = file.stat().st_uid == os.getuid()
        if is_ours and owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            file.unlink(missing_ok=True)


def _address_towards(server: Server) -> str:
    """The address under which the server's machine can reach this machine."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10) as link:
        address: str = link.getsockname()[0]
    return address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
