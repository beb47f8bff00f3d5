"""What a comparison found, with the gate it must pass, and tables of such findings."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison.

    Example: `Finding(what="gradient, split", family="qwen2_vl", precision="float32", group_size=8, images=1, error=3e-7,
        gate=1e-5)`
    """

    what: str
    family: str
    precision: str
    group_size: int
    images: int
    error: float
    gate: float

    @property
    def passed(self) -> bool:
        return self.error <= self.gate

    @property
    def case(self) -> str:
        return f"{self.family}, G={self.group_size}, {self.images} image(s)"


def worst(findings: Sequence[Finding]) -> list[Finding]:
    """Of each kind and precision, the one nearest to its gate."""
    kinds: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.what, finding.precision
        held = kinds.get(key)
        if held is None or _share_of_gate(finding) > _share_of_gate(held):
            kinds[key] = finding
    return list(kinds.values())


def _share_of_gate(finding: Finding) -> float:
    return finding.error / finding.gate if finding.gate else finding.error


def markdown(findings: Sequence[Finding]) -> str:
    lines = [
        "| what | precision | worst error | gate | in the case | |",
        "|---|---|---|---|---|---|",
    ]
    for f in worst(findings):
        verdict = "ok" if f.passed else "MISSED"
        lines.append(
            f"| {f.what} | {f.precision} | {f.error:.1e} | {f.gate:.1e} | {f.case} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def show(findings: Sequence[Finding]) -> Table:
    table = Table("what", "precision", "worst error", "gate", "case", "")
    for f in worst(findings):
        verdict = "ok" if f.passed else "[red]MISSED"
        table.add_row(f.what, f.precision, f"{f.error:.1e}", f"{f.gate:.1e}", f.case, verdict)
    return table
