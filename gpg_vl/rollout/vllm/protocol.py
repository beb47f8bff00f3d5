"""The protocol between a trainer and `gpg-vl serve`, in addition to vLLM's own requests."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpg_vl.models.digest import model_sha
from gpg_vl.models.families import family_of

FOLDER = Path("/dev/shm")
"""Where a trainer stores weights for servers on the same node."""
PREFIX = "gpg_vl-weights-"
SHARED_MEMORY, NCCL = "gpg_shared_memory", "gpg_nccl"
"""Names of the transports; see `worker`."""
UNTRAINED = "default"
"""vLLM's version name for weights that have not been replaced since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A server's description, as its workers report it."""

    host: str
    dtype: str
    transport: str
    """How it receives weights: SHARED_MEMORY or NCCL."""
    takes_features: bool
    """True if it takes image features, False if it takes patches."""
    shape: Mapping[str, int | str]
    """The shape of its model; see `describe_shape`."""
    checkpoint: str
    """The checkpoint it was started with; see `describe_checkpoint`."""
    updating: bool
    """True if a weight update has begun and not finished."""


def host_name() -> str:
    """The same for all processes that see the same shared memory."""
    status = FOLDER.stat()
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.is_file() else os.uname().nodename}:{status.st_dev}"


def describe_shape(config: Any) -> dict[str, int | str]:
    """The family and the sizes of a model, from its transformers config: equal for models whose weights fit each other."""
    family = family_of(config.model_type, config.model_type)
    sizes = asdict(family.shape_of(config)).items()
    return {"family": family.model_type, **{k: v for k, v in sizes if isinstance(v, int)}}


def describe_checkpoint(path: str, revision: str | None) -> str:
    """Equal for equal weights: a digest of a folder's files, or a hub name with its revision."""
    folder = Path(path)
    return model_sha(folder) if folder.is_dir() else f"{path}@{revision or 'main'}"
