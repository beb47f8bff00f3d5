"""What is said of a process that is late or gone: pure functions of what each was last seen doing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What a process has last said of itself.

    Example: `Sighting(beat=40, place="node7, process id 4711", what="the rollout of step 12", seconds=1860.0)`
    """

    beat: int
    """Counts what it has said; a process whose number does not change says nothing any more."""
    place: str
    what: str
    seconds: float
    """For how long it has been doing this, or waiting there."""
    waits: bool = False
    patient: bool = False
    ended: bool = False
    """True after its last word: its silence means nothing."""


def explain_late(sightings: Mapping[int, Sighting], *, waited: float, minutes: float) -> str:
    """Who is late, when somebody has waited `waited` seconds and `minutes` are allowed."""
    late = {rank: seen for rank, seen in sightings.items() if not (seen.waits or seen.ended)}
    waiting = sorted(rank for rank, seen in sightings.items() if seen.waits)
    if not late:
        places = "; ".join(f"process {rank} in {sightings[rank].what}" for rank in waiting)
        return (
            f"All processes wait for one another since {_duration(waited)}: {places}. At most {minutes:g} minutes are allowed "
            f"(train.max_wait_minutes). They have parted ways, which is no fault of yours: report it with these lines, and "
            f"resume from the last checkpoint with --resume."
        )

    descriptions = "; ".join(
        f"Process {rank} ({seen.place}) is late: it has been in {seen.what} for {_duration(seen.seconds)}"
        for rank, seen in sorted(late.items())
    )
    return (
        f"{descriptions}; {name_processes(waiting)} waited {_duration(waited)}, at most {minutes:g} minutes are allowed "
        f"(train.max_wait_minutes). If such work may take that long, raise it; if not, look at that machine, and at what the "
        f"process hangs in (py-spy dump --pid). Resume from the last checkpoint with --resume."
    )


def explain_gone(gone: Mapping[int, Sighting]) -> str:
    """Of processes that have ended without a message."""
    descriptions = "; ".join(
        f"Process {rank} ({seen.place}) has ended without a message; it was last seen in {seen.what}"
        for rank, seen in sorted(gone.items())
    )
    return (
        f"{descriptions}. A run needs all its processes. Usual causes: the machine ran out of memory, somebody killed it, "
        f"a node was lost. All others were ended; resume from the last checkpoint with --resume."
    )


def explain_unknown(error: str) -> str:
    """Of a connection that broke while all processes still spoke. `error`: what the library said."""
    first_line = error.strip().splitlines()[0] if error.strip() else "no reason given"
    return (
        f"A connection between the processes broke, though all of them are there. They need a network that stays up. Look at "
        f"it, and resume from the last checkpoint with --resume. ({first_line})"
    )


def name_processes(ranks: Sequence[int]) -> str:
    """`process 2`, `processes 0, 1 and 2`, or the first ones and their number."""
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if len(ranks) > 8:
        return f"processes {', '.join(map(str, ranks[:8]))} and {len(ranks) - 8} more"
    return f"processes {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
