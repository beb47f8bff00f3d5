"""Sets up devices, precision, processes and trackers with accelerate, from what the launcher has started."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from gpg_vl.config import Config
from gpg_vl.errors import UserError

PLAIN_LAUNCHES = ("NO", "MULTI_CPU", "MULTI_GPU")
"""The allowed accelerate launch types: those that start processes but do not wrap the model."""
GRACE = timedelta(minutes=1)
"""How much longer torch waits than a run does: torch's own timeout message names no process, and with NCCL it kills this
one."""
ASKED_FOR = (
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
"""The variables in which launchers write the number of processes: torchrun, several mpiruns, srun."""
WRAPPERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}
"""The variables by which `accelerate launch` requests a wrapper."""


def make_accelerator(config: Config) -> Accelerator:
    """Devices, precision, processes and trackers. Also turns on deterministic algorithms if configured.

    Raises UserError for a launch that would wrap the model: sharding is set by `train.sharding`, not by
    the launcher.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # on a GPU some kernels have no deterministic version: a warning names them and the run continues
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())

    # check before creating the accelerator: on a CPU it ignores the request, and it may need other packages for it
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


def describe_missing_processes(environment: Mapping[str, str], processes: int) -> str:
    """The warning if the environment asks for several processes but this run has one; else "".

    `accelerate launch --cpu` starts one process in any case; the request is recognised by the rendezvous address. mpirun
    and srun start several processes, which do not know of each other unless torch's environment variables are set.
    """
    if processes > 1:
        return ""
    asked = max((_number(environment.get(name)) for name in ASKED_FOR), default=0)
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if asked < 2 and not (by_accelerate and "RANK" not in environment):
        return ""

    number = str(asked) if asked > 1 else "several"
    return (
        f"the launcher was asked for {number} processes, but this run has one (on a CPU accelerate launch ignores "
        f"--num_processes and starts one; mpirun and srun start separate runs). Start them with: torchrun "
        f"--nproc-per-node {asked if asked > 1 else 'N'} -m gpg_vl train CONFIG"
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def memory_of_device() -> float | None:
    """Bytes of the GPU of this process; None without one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def _refuse_wrapper(name: str) -> None:
    raise UserError(
        f"The launcher asks for {name}, which would wrap the model; gpg_vl shards weights itself (train.sharding). Start "
        f"the processes with torchrun, or set distributed_type to NO or MULTI_GPU in the config of accelerate."
    )


def _refuse_missing_trackers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"output.trackers names {name}, which is not installed. Install it with: "
                f"pip install 'gpg_vl[{name}]', or remove it."
            )
