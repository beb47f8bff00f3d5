"""The extension that `gpg-vl serve` adds to the workers of vLLM's server. Imported only there.

Weights are sent by vLLM's own protocol of four phases (init, start, update, finish). This module adds two transports to it, which
both record the table of `weights`: files in shared memory, for trainers on the same node, and vLLM's NCCL transfer for GPUs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from gpg_vl.rollout.vllm.protocol import (
    FOLDER,
    NCCL,
    PREFIX,
    SHARED_MEMORY,
    Description,
    describe_checkpoint,
    describe_shape,
    host_name,
)
from gpg_vl.rollout.vllm.weights import Reload, Table


@dataclass
class _Nothing(WeightTransferInitInfo):  # type: ignore[misc]  # vllm, which has no types here
    """Shared memory needs no collective."""


@dataclass
class _File(WeightTransferUpdateInfo):  # type: ignore[misc]  # vllm, which has no types here
    """One file of weights."""

    path: str


class SharedMemoryTransfer(WeightTransferEngine):  # type: ignore[misc]  # vllm, which has no types here
    """Reads weights from files that a trainer on this node has written to shared memory."""

    init_info_cls = _Nothing
    update_info_cls = _File
    _reload: Reload | None = None
    table: Table | None = None

    def init_transfer_engine(self, init_info: _Nothing) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        # an interrupted update left layers open and half filled; they would add the new tensors to the old count
        if self._reload is not None:
            self._reload.finish()
        self._reload = Reload(self.model, self.model_config)
        self._reload.begin()

    def receive_weights(self, update_info: _File) -> None:
        path = Path(update_info.path)
        if path.parent != FOLDER or not path.name.startswith(PREFIX):
            raise ValueError(f"{path} is not a weight file in {FOLDER}; only those are read.")
        assert self._reload is not None
        with safe_open(path, "pt", device=str(self.device)) as file:
            self._reload.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        assert self._reload is not None
        self.table = self._reload.finish()
        self._reload = None

    def shutdown(self) -> None:
        """Nothing to release."""


class NcclTransfer(NCCLWeightTransferEngine):  # type: ignore[misc]  # vllm, which has no types here
    """vLLM's transfer over NCCL, which also records the table."""

    model: Any
    _reload: Reload | None = None
    table: Table | None = None

    def start_weight_update(self) -> None:
        if self._reload is not None:
            self._reload.finish()
        self._reload = Reload(self.model, self.model_config)
        self._reload.begin()
        # the receiver calls `load_weights` of its model, so replace the model; the worker restores it at the end
        self.model = self._reload

    def finish_weight_update(self) -> None:
        assert self._reload is not None
        self.table = self._reload.finish()
        self._reload = None


WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryTransfer)
WeightTransferEngineFactory.register_engine(NCCL, NcclTransfer)


class Served:
    """Methods added to vLLM's worker, which are called by name over HTTP."""

    def gpg_describe(self) -> dict[str, Any]:
        """The description of the model and the state of its update."""
        worker: Any = self
        config = worker.vllm_config
        return asdict(
            Description(
                host=host_name(),
                dtype=str(config.model_config.dtype).removeprefix("torch."),
                transport=config.weight_transfer_config.backend,
                takes_features=bool(config.model_config.multimodal_config)
                and config.model_config.multimodal_config.enable_mm_embeds,
                shape=describe_shape(config.model_config.hf_config),
                checkpoint=describe_checkpoint(
                    config.model_config.model, config.model_config.revision
                ),
                updating=worker._weight_update_active,
            )
        )

    def gpg_table(self) -> dict[str, Any] | None:
        """The table of the last update."""
        worker: Any = self
        table = worker.weight_transfer_engine.table
        return None if table is None else asdict(table)
