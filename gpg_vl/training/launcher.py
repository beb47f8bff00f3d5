"""What the launcher has started: devices, precision, processes and trackers, over accelerate."""

import importlib.util
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from gpg_vl.config import Config
from gpg_vl.errors import UserError

PLAIN_LAUNCHES = ("NO", "MULTI_CPU", "MULTI_GPU")
"""What a launch may ask of accelerate: processes, and nothing that wraps a model."""
GRACE = timedelta(minutes=1)
"""By which torch waits longer than a run does: what it says names no process, and with NCCL it ends this one."""
WRAPPERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}
"""How `accelerate launch` hands a wish for a wrapper on."""


def make_accelerator(config: Config) -> Accelerator:
    """Devices, precision, processes and trackers. Deterministic algorithms are switched on here if
    asked for.

    Raises UserError for a launch that asks for a wrapper: weights are spread by `train.sharding`,
    not by the launcher.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # on a GPU some library kernels have no such form: there a warning names them instead of
        # stopping the run
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())

    # before accelerate is asked: on a CPU it forgets such a wish, and it needs packages for it
    for switch, name in WRAPPERS.items():
        if os.environ.get(switch) == "true":
            _refuse_wrapper(name)

    _refuse_missing_trackers(config.output.trackers)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.model.dtype == "bfloat16" else "no",
        log_with=list(config.output.trackers) or None,
        project_dir=str(Path(config.output.folder)),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(minutes=config.train.max_wait_minutes) + GRACE)
        ],
    )
    if accelerator.distributed_type.value not in PLAIN_LAUNCHES:
        _refuse_wrapper(accelerator.distributed_type.value)
    return accelerator


def memory_of_device() -> float | None:
    """Bytes of the GPU of this process; None without one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def _refuse_wrapper(name: str) -> None:
    raise UserError(
        f"The launcher asks for {name}, which would wrap the model; gpg_vl spreads weights itself, as "
        f"train.sharding says. Start the processes with torchrun, or set distributed_type to NO or MULTI_GPU in the "
        f"config of accelerate."
    )


def _refuse_missing_trackers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"output.trackers names {name}, which is not installed. Install it with: "
                f"pip install 'gpg_vl[{name}]', or remove it."
            )
