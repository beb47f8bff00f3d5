"""What a run knows besides weights and optimizer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpg_vl.types import Group

COUNTERS = ("step", "position", "skipped_steps", "completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run is. Kept in its checkpoints.

    Example: `RunState(step=40, position=1312, skipped_steps=0, completions=10496)`
    """

    step: int = 0
    """Optimizer steps done (skipped ones included); the version of the weights."""
    position: int = 0
    """Examples drawn from the data order, over all processes."""
    skipped_steps: int = 0
    completions: int = 0
    evaluation_due: bool = False
    """Whether an evaluation of these weights was due and was not made: the run was asked to stop, or lost its engine."""
    carry: tuple[Group, ...] = field(default_factory=tuple)
    """This process's surplus valid groups, first in line for the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """state.json of a checkpoint.

    Example: `SavedState(state=RunState(step=40), processes=2, sharding="none", data=None)`
    """

    state: RunState
    """Without surplus groups, which each process keeps itself."""
    processes: int
    sharding: str
    data: str | None
    """In a checkpoint of an earlier version, which had no manifest: the digest of its data."""


def dump_state(state: RunState, *, processes: int, sharding: str) -> str:
    """state.json."""
    counters = {name: getattr(state, name) for name in COUNTERS}
    said = {"evaluation_due": state.evaluation_due, "processes": processes, "sharding": sharding}
    return json.dumps(counters | said, indent=2) + "\n"


def read_state(file: Path) -> SavedState:
    """Raises OSError, or ValueError if it is damaged."""
    said = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise ValueError(f"{file.name} holds {type(said).__name__}, not counters")
    counts = {name: _read_count(said, name) for name in (*COUNTERS, "processes")}

    # earlier versions wrote no name, and had one sharding
    sharding, data = said.get("sharding", "none"), said.get("data")
    due = said.get("evaluation_due", False)
    if not isinstance(sharding, str) or not isinstance(due, bool) or counts["processes"] < 1:
        raise ValueError(f"{file.name} has no whole counters")
    state = RunState(
        step=counts["step"],
        position=counts["position"],
        skipped_steps=counts["skipped_steps"],
        completions=counts["completions"],
        evaluation_due=due,
    )
    return SavedState(
        state=state,
        processes=counts["processes"],
        sharding=sharding,
        data=data if isinstance(data, str) else None,
    )


def _read_count(said: dict[str, Any], name: str) -> int:
    value = said.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}, not a count")
    return value
