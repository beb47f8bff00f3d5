"""What a run knows besides weights and optimizer."""

from dataclasses import dataclass, field

from gpg_vl.types import Group


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
    carry: tuple[Group, ...] = field(default_factory=tuple)
    """This process's surplus valid groups, first in line for the next step."""
