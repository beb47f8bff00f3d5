"""The state of a run in addition to weights and optimizer."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpg_vl.data.solved_rows import Streaks
from gpg_vl.types import Group

COUNTERS = ("step", "position", "skipped_steps", "completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best evaluation of a run so far, by one of its metrics.

    Example: `Best(metric="official", step=40, value=0.71)`
    """

    metric: str
    step: int
    value: float


def better(
    best: Best | None, metric: str | None, step: int, found: Mapping[str, Any]
) -> Best | None:
    """The best evaluation, after the one at `step` with the metrics `found`; of equal ones the earlier.

    metric: larger is better; None compares nothing. The evaluation before the first step is ignored, as it has no
        checkpoint.
    """
    old = best if best is not None and best.metric == metric else None
    value = None if metric is None else found.get(metric)
    if metric is None or value is None or step == 0 or (old is not None and value <= old.value):
        return old
    return Best(metric=metric, step=step, value=float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The progress of a run, saved in its checkpoints.

    Example: `RunState(step=40, position=1312, skipped_steps=0, completions=10496)`
    """

    step: int = 0
    """Finished optimizer steps (including skipped ones); it is also the version of the weights."""
    position: int = 0
    """Positions of the data order that were drawn or skipped, over all processes."""
    skipped_steps: int = 0
    completions: int = 0
    evaluation_due: bool = False
    """True if an evaluation of these weights was due but not made, because the run was stopped or lost its engine."""
    best: Best | None = None
    """The best evaluation by the metric `output.keep_best`; its checkpoint is kept."""
    streaks: Streaks = field(default_factory=dict)
    """For each row, how many of its last groups were all right, up to `data.skip_solved`; empty if no rows are skipped."""
    carry: tuple[Group, ...] = field(default_factory=tuple)
    """This process's surplus groups with signal, which are used first in the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """state.json of a checkpoint.

    Example: `SavedState(state=RunState(step=40), processes=2, sharding="none", data=None)`
    """

    state: RunState
    """The state without surplus groups, which each process saves itself."""
    processes: int
    sharding: str
    data: str | None
    """The digest of the data, in checkpoints of an earlier version without a manifest."""


def dump_state(state: RunState, *, processes: int, sharding: str) -> str:
    """state.json."""
    counters = {name: getattr(state, name) for name in COUNTERS}
    values: dict[str, Any] = {
        "evaluation_due": state.evaluation_due,
        "processes": processes,
        "sharding": sharding,
        "best": None if state.best is None else asdict(state.best),
    }
    if state.streaks:
        values["streaks"] = {str(row): streak for row, streak in sorted(state.streaks.items())}
    return json.dumps(counters | values, indent=2) + "\n"


def read_state(file: Path) -> SavedState:
    """Raises OSError, or ValueError if it is damaged."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} holds {type(values).__name__}, not counters")
    counts = {name: _read_count(values, name) for name in (*COUNTERS, "processes")}

    # earlier versions wrote no name, and had one sharding
    sharding, data = values.get("sharding", "none"), values.get("data")
    due = values.get("evaluation_due", False)
    if not isinstance(sharding, str) or not isinstance(due, bool) or counts["processes"] < 1:
        raise ValueError(f"{file.name} has no whole counters")
    state = RunState(
        step=counts["step"],
        position=counts["position"],
        skipped_steps=counts["skipped_steps"],
        completions=counts["completions"],
        evaluation_due=due,
        best=_read_best(values.get("best")),
        streaks=_read_streaks(values.get("streaks", {})),
    )
    return SavedState(
        state=state,
        processes=counts["processes"],
        sharding=sharding,
        data=data if isinstance(data, str) else None,
    )


def _read_best(values: object) -> Best | None:
    """Earlier versions wrote none."""
    if values is None:
        return None
    if not isinstance(values, dict) or values.keys() != {"metric", "step", "value"}:
        raise ValueError(f"best is {values!r:.80}, not a metric with its step and value")
    metric, value = values["metric"], values["value"]
    if not isinstance(metric, str) or not isinstance(value, int | float):
        raise ValueError(f"best is {values!r:.80}, not a metric with its step and value")
    return Best(metric=metric, step=_read_count(values, "step"), value=float(value))


def _read_streaks(values: object) -> Streaks:
    """Runs that skip no rows write none."""
    if not isinstance(values, dict) or not all(name.isdecimal() for name in values):
        raise ValueError(f"streaks is {values!r:.80}, not a count for each of some rows")
    return {int(name): _read_count(values, name) for name in values}


def _read_count(values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}, not a count")
    return value
