"""The findings of the doctor, and how they are printed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpg_vl.console import plain

if TYPE_CHECKING:  # the doctor must start even if many packages are missing
    from rich.console import Console

Status = Literal["ok", "missing", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Example: `Finding(name="wandb", status="missing", detail="not installed",
    needed_for="output.trackers: [wandb]", remedy="pip install 'gpg_vl[wandb]'", required=False)`
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
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if everything required is installed and works."""
        return all(finding.status == "ok" for finding in self.findings if finding.required)


def first_line(error: BaseException | str) -> str:
    """The first line of an error message."""
    return (str(error).strip().splitlines() or ["(no message)"])[0]


def render(report: Report, console: "Console") -> int:
    """Print the findings, then what to do.

    Returns 0 if everything required is installed and works, else 1.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for is_prose in (False, False, True, True):
        table.add_column(no_wrap=not is_prose)
    for finding in report.findings:
        style = "green" if finding.status == "ok" else "bold red" if finding.required else "yellow"
        purpose = f"for {finding.needed_for}" if finding.needed_for else ""
        mark = plain(finding.status, style=style)
        table.add_row(mark, plain(finding.name), plain(finding.detail), plain(purpose, style="dim"))
    console.print(table)
    for title, required in (("To do:", True), ("If you need it:", False)):
        open_ends = [
            f for f in report.findings if f.status != "ok" and f.remedy and f.required is required
        ]
        if open_ends:
            console.print(plain(f"\n{title}", style="bold"))
        for finding in open_ends:
            console.print(plain(f"  {finding.name}: {finding.remedy}"), soft_wrap=True)
    failed = [f.name for f in report.findings if f.required and f.status != "ok"]
    console.print(
        plain(f"\nnot ready: {', '.join(failed)}" if failed else "\nready", style="bold"),
        soft_wrap=True,
    )
    return 1 if failed else 0
