"""What the launcher has started: devices, precision, processes and trackers, over accelerate."""

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
"""What a launch may ask of accelerate: processes, and nothing that wraps a model."""
GRACE = timedelta(minutes=1)
"""By which torch waits longer than a run does: what it says names no process, and with NCCL it ends this one."""
ASKED_FOR = (
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
"""Where launchers write how many processes they start: torchrun, the kinds of mpirun, srun."""
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


def describe_missing_processes(environment: Mapping[str, str], processes: int) -> str:
    """What to say where the environment asks for several processes and this run has one; "" where it does not.

    `accelerate launch --cpu` starts one whatever it is asked for; its wish is seen by the address where they were to meet.
    mpirun and srun start several, which know nothing of each other unless the environment says so in torch's words.
    """
    if processes > 1:
        return ""
    asked = max((_number(environment.get(name)) for name in ASKED_FOR), default=0)
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if asked < 2 and not (by_accelerate and "RANK" not in environment):
        return ""

    number = str(asked) if asked > 1 else "several"
    return (
        f"the launcher was asked for {number} processes, but this run has one (accelerate launch starts one on a CPU, whatever "
        f"--num_processes says; mpirun and srun start runs that do not meet). Start them with: "
        f"torchrun --nproc-per-node {asked if asked > 1 else 'N'} -m gpg_vl train CONFIG"
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
