"""Messages about processes that are late or have ended: pure functions of what each process last reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The last report of a process.

    Example: `Sighting(beat=40, place="node7, process id 4711", what="the rollout of step 12", seconds=1860.0)`
    """

    beat: int
    """The number of its reports; if it does not change, the process reports nothing any more."""
    place: str
    what: str
    seconds: float
    """How long it has been doing this, or waiting there."""
    waits: bool = False
    patient: bool = False
    ended: bool = False
    """True after its final report, so that its silence is expected."""


def explain_late(sightings: Mapping[int, Sighting], *, waited: float, minutes: float) -> str:
    """Which process is late, when another has waited `waited` seconds and `minutes` minutes are allowed."""
    late = {rank: seen for rank, seen in sightings.items() if not (seen.waits or seen.ended)}
    waiting = sorted(rank for rank, seen in sightings.items() if seen.waits)
    if not late:
        places = "; ".join(f"process {rank} in {sightings[rank].what}" for rank in waiting)
        return (
            f"All processes have waited for one another for {_duration(waited)}: {places}. At most {minutes:g} minutes "
            f"are allowed (train.max_wait_minutes). They are in different collectives, which is a bug in gpg_vl: report "
            f"it with these lines, and resume from the last checkpoint with --resume."
        )

    descriptions = "; ".join(
        f"Process {rank} ({seen.place}) is late: it has been in {seen.what} for {_duration(seen.seconds)}"
        for rank, seen in sorted(late.items())
    )
    return (
        f"{descriptions}; {name_processes(waiting)} waited {_duration(waited)}, at most {minutes:g} minutes are allowed "
        f"(train.max_wait_minutes). If such work may take that long, raise it; if not, check that machine and where the "
        f"process hangs (py-spy dump --pid). Resume from the last checkpoint with --resume."
    )


def explain_gone(gone: Mapping[int, Sighting]) -> str:
    """The message about processes that have ended without an error message."""
    descriptions = "; ".join(
        f"Process {rank} ({seen.place}) has ended without a message; it was last seen in {seen.what}"
        for rank, seen in sorted(gone.items())
    )
    return (
        f"{descriptions}. A run needs all its processes. Usual causes: the machine ran out of memory, the process was "
        f"killed, a node was lost. All others were ended; resume from the last checkpoint with --resume."
    )


def explain_unknown(error: str) -> str:
    """The message about a connection that broke while all processes still reported. `error`: the library's message."""
    first_line = error.strip().splitlines()[0] if error.strip() else "no reason given"
    return (
        f"A connection between the processes broke, although all of them still run. Check the network, and resume from "
        f"the last checkpoint with --resume. ({first_line})"
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
