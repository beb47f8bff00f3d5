"""The cost of each phase of a run: seconds from metrics.jsonl and peak memory from run.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpg_vl.report.folder import Run
from gpg_vl.report.json_lines import get, whole
from gpg_vl.report.visible_text import line

MEMORY = "peak memory by phase"
"""The key of a launch in run.json: bytes by phase, of the `process` and of the `gpu`."""
MOST_PHASES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase, over all launches of a run.

    Example: `Phase(name="train", seconds=61.5, per_step=0.205, process=1_200_000_000, gpu=None)`
    """

    name: str
    seconds: float | None
    """None if only the phase's memory is known."""
    per_step: float | None
    process: int | None
    """Bytes of resident memory at most; None if run.json does not say."""
    gpu: int | None
    """Bytes that were allocated on the GPU at most; None without one."""


def phases(run: Run) -> list[Phase]:
    """The phases of a run, the longest first; those without seconds come last."""
    seconds, steps = run.metrics.seconds, max(run.metrics.train.rows, 1)
    process, gpu = _most(run.launches, "process"), _most(run.launches, "gpu")
    names = sorted(dict.fromkeys((*seconds, *process)), key=lambda one: -seconds.get(one, -1.0))

    found = []
    for name in names[:MOST_PHASES]:
        total = seconds.get(name)
        found.append(
            Phase(
                name=line(name, 60),
                seconds=total,
                per_step=None if total is None else total / steps,
                process=process.get(name),
                gpu=gpu.get(name) or None,
            )
        )
    return found


def _most(launches: Sequence[Mapping[str, Any]], where: str) -> dict[str, int]:
    """Bytes by phase, the most of any launch."""
    most: dict[str, int] = {}
    for launch in launches:
        for name, held in (get(launch, MEMORY, dict) or {}).items():
            size = whole(held.get(where)) if isinstance(held, dict) else None
            if size is not None:
                most[name] = max(most.get(name, 0), size)
    return most
