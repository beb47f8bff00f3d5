"""Checks this machine: GPUs, communication backends, processors, memory and disk.

All checks except memory and disk need a working torch.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpg_vl.doctor.findings import Finding, first_line

GIB = 2**30
LEAST_MEMORY = 4 * GIB
LEAST_DISK = 2 * GIB
"""With less than this the quickstart may fail."""


def check_gpus() -> Iterator[Finding]:
    """A finding per GPU with its free memory, or one that says why no GPU is found."""
    import torch

    gpu = Finding(
        name="GPU", status="ok", detail="", needed_for="models of real size", required=False
    )
    with warnings.catch_warnings(record=True) as caught:  # an old driver is reported as a warning
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()

    if usable:
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
            detail = f"{torch.cuda.get_device_name(index)}, {memory}"
            yield replace(gpu, name=f"GPU {index}", detail=detail)
        return

    # a CUDA build that finds no GPU is a problem; a CPU build was chosen on purpose
    if torch.version.cuda or torch.version.hip:
        why = "".join(f": {first_line(str(warning.message))}" for warning in caught[:1])
        remedy = (
            "see whether nvidia-smi lists a device, "
            "and whether its driver is new enough for this torch"
        )
        yield replace(gpu, status="problem", detail=f"torch sees no device{why}", remedy=remedy)
    else:
        remedy = (
            "on a machine with a GPU take a CUDA build of torch: "
            "https://pytorch.org/get-started/locally"
        )
        yield replace(gpu, status="missing", detail="torch is a CPU build", remedy=remedy)


def check_backends() -> Iterator[Finding]:
    """Whether this torch includes gloo and NCCL."""
    from torch import distributed

    there = distributed.is_available()
    gloo = there and distributed.is_gloo_available()
    nccl = there and distributed.is_nccl_available()
    for backend, present, needed_for, remedy in (
        ("gloo", gloo, "several processes on CPUs", "take a torch that is built with gloo"),
        ("nccl", nccl, "several GPUs", "take a CUDA build of torch"),
    ):
        found = Finding(
            name=backend, status="ok", detail="in torch", needed_for=needed_for, required=False
        )
        if not present:
            found = replace(found, status="missing", detail="not in this torch", remedy=remedy)
        yield found


def check_processors() -> Iterator[Finding]:
    """Whether torch uses at most as many threads as this process has cores."""
    import torch

    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    threads = torch.get_num_threads()
    detail = f"{cores} core(s) for this process, {threads} thread(s) of torch"
    found = Finding(name="CPU", status="ok", detail=detail, needed_for="speed", required=False)
    if threads > cores:
        found = replace(found, status="problem", remedy=f"export OMP_NUM_THREADS={cores}")
    yield found


def check_wait_policy() -> Finding:
    """Whether waiting threads release the cores."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    found = Finding(
        name="OMP_WAIT_POLICY",
        status="ok",
        detail=policy or "not set",
        needed_for="speed next to other programs: unless it is passive, waiting threads spin",
        required=False,
    )
    if policy.lower() == "passive":
        return found
    return replace(found, status="problem", remedy="export OMP_WAIT_POLICY=passive")


def check_memory() -> Iterator[Finding]:
    """Whether memory is available for the quickstart; nothing without psutil."""
    if importlib.util.find_spec("psutil") is None:
        return  # already reported among the packages
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    yield _report_space("memory", memory.available >= LEAST_MEMORY, detail, "close other programs")


def check_disk(folder: Path) -> Finding:
    """Room for runs: a checkpoint holds weights and twice as much optimizer state, all float32."""
    if not os.access(folder, os.W_OK):
        return Finding(
            name="disk",
            status="problem",
            detail=f"{folder} cannot be written",
            needed_for="run folders",
            remedy="start in a folder of your own, or set output.folder",
            required=False,
        )

    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free in {folder}"
    return _report_space("disk", free >= LEAST_DISK, detail, "make room, or start elsewhere")


def _report_space(name: str, enough: bool, detail: str, remedy: str) -> Finding:
    found = Finding(
        name=name, status="ok", detail=detail, needed_for="the quickstart and more", required=False
    )
    if enough:
        return found
    return replace(found, status="problem", detail=f"{detail}, which is little", remedy=remedy)
