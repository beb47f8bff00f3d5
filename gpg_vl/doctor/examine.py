"""`gpg-vl doctor`: checks what is installed and missing, and whether training matches sampling on this machine.

`examine` never raises: every problem becomes a finding with its remedy.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gpg_vl.doctor import machine, packages, self_test
from gpg_vl.doctor.findings import Finding, Report, first_line


def examine() -> Report:
    """Check this installation and machine, then run the self-test: about ten seconds.

    Writes to a temporary folder only.
    """
    ranges = packages.read_ranges()
    required = _check_required(ranges)
    findings = [packages.check_package(), packages.check_python(), *required.values()]

    # without a working torch the checks that need it are skipped
    if required["torch"].status == "ok":
        findings += _guard("GPU", machine.check_gpus)
        findings += _guard("torch.distributed", machine.check_backends)
        findings += _guard("CPU", machine.check_processors)
    findings += [
        machine.check_wait_policy(),
        *machine.check_memory(),
        machine.check_disk(Path.cwd()),
    ]
    findings += [packages.check_optional(extra, ranges) for extra in packages.OPTIONAL]

    if Report(findings=tuple(findings)).ok:
        findings += _guard("self-test", self_test.run_self_test)
    else:
        findings.append(
            Finding(
                name="self-test",
                status="missing",
                detail="not run: something above has to be fixed first",
                remedy="then run gpg-vl doctor again",
            )
        )
    return Report(findings=tuple(findings))


def _check_required(ranges: "packages.Ranges") -> dict[str, Finding]:
    """A finding for every required package by its name. torch and torchvision have been loaded before."""
    found = {name: packages.check_required(name, ranges) for name in packages.REQUIRED}
    for name, load in (("torch", packages.load_torch), ("torchvision", packages.load_torchvision)):
        if found["torch"].status == found[name].status == "ok":
            (found[name],) = _guard(name, partial(load, found[name]))
    return found


def _guard(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of `look`, or one about the error in it."""
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways nobody can list
        detail = f"{type(error).__name__}: {first_line(error)}"
        remedy = "make a new environment and install gpg_vl there (in the project's folder: rm -r .venv && make install)"
        return [Finding(name=name, status="problem", detail=detail, remedy=remedy)]
