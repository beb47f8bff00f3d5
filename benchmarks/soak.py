"""Runs that are killed at random times, and runs whose disk is full at every write: what is lost, and what is said.

    python -m benchmarks.soak                      (make soak; about twenty minutes on two cores)
    python -m benchmarks.soak --only fsdp2         rows of the table; the others keep what they had
    python -m benchmarks.soak --seed 1             other moments

Each way to run is first left alone. Then it is killed (SIGKILL) at moments drawn evenly over the time it takes, and
resumed, until it has ended as often as it takes to have been killed as often as the table says. Each run that has ended
must equal the one that was left alone, bit for bit: metrics, samples, weights, moments, random states.
Nobody may be left behind a minute after a kill. What is killed is one process drawn at random (the program, a process of
a rank, the launcher) or everything at once, as when the power fails. Full disks are in benchmarks/full_disk.py.

Writes benchmarks/results/reliability.json and .md; ends with 1 if anything was lost.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from benchmarks import full_disk
from benchmarks.soak_run import differences, environment, words, write_run
from benchmarks.step import folder_of_results

PATIENCE = 60.0
"""Seconds in which everybody must have ended once one process has."""
LIMIT = 600.0
"""Seconds after which a run that does not end counts as hanging."""
EVERYTHING = "everything"
INTRODUCTION = (
    "A tiny Qwen2-VL on a CPU, with a checkpoint after every step, evaluations, samples and surplus groups. "
    "Each run was killed (SIGKILL) at random moments and resumed until it ended, and then compared with one "
    "that was left alone: metrics, samples, weights, moments and random states, bit for bit. "
    "Made by `python -m benchmarks.soak`, which says how."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a run is made, and how often it is killed."""

    name: str
    kills: int
    processes: int = 1
    overrides: tuple[str, ...] = ()
    needs: str | None = None
    """A package without which it cannot run: its row is left out."""


WAYS = (
    Way(name="one process", kills=22),
    Way(name="two processes", kills=14, processes=2),
    Way(name="fsdp2", kills=13, processes=2, overrides=("train.sharding=fsdp2",)),
    Way(name="zero2", kills=6, processes=2, overrides=("train.sharding=zero2",), needs="deepspeed"),
    Way(name="vllm", kills=5, overrides=("rollout.engine=vllm",), needs="vllm"),
)
"""Another way to run is another line here."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What became of a way to run."""

    name: str
    processes: int
    kills: int = 0
    victims: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    """Runs that were killed, resumed, and have ended."""
    differing: list[str] = field(default_factory=list)
    left_behind: int = 0
    """Processes that were still there a minute after a kill."""
    failures: list[str] = field(default_factory=list)
    """What a run said that did not resume."""
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return not (self.differing or self.left_behind or self.failures)


# ---- kills


def soak(way: Way, folder: Path, draw: random.Random) -> Found:
    """Kill and resume until there were as many kills as asked for, and end the last run."""
    began = time.monotonic()
    found = Found(name=way.name, processes=way.processes)
    alone = write_run(folder / "alone")
    start = time.monotonic()
    _left_alone(way, alone)
    takes = time.monotonic() - start

    number = 0
    while found.kills < way.kills:
        number += 1
        config = write_run(folder / f"killed-{number}")
        _until_it_ends(way, config, takes, draw, found)
        found.ended += 1
        found.differing += differences(alone.parent / "run", config.parent / "run")
        shutil.rmtree(config.parent)
        print(json.dumps(asdict(found)), flush=True)

    found.seconds = time.monotonic() - began
    return found


def _left_alone(way: Way, config: Path) -> None:
    """A run that nothing happens to. Raises CalledProcessError with what it said."""
    subprocess.run(
        words(way.processes, config, way.overrides),
        env=environment(),
        check=True,
        capture_output=True,
        timeout=LIMIT,
    )


def _until_it_ends(way: Way, config: Path, takes: float, draw: random.Random, found: Found) -> None:
    """Kill one run again and again. Once there were kills enough, it is left to end."""
    log = config.parent / "log"
    while True:
        wait = draw.uniform(0, takes) if found.kills < way.kills else None
        victim, code = _live(way, config, log, wait, draw, found)
        if victim:
            found.kills += 1
            found.victims[victim] = found.victims.get(victim, 0) + 1
        elif code == 0:
            return
        else:
            found.failures.append(f"exit code {code}: {log.read_text()[-2000:]}")
            return


def _live(
    way: Way, config: Path, log: Path, wait: float | None, draw: random.Random, found: Found
) -> tuple[str | None, int]:
    """Start or resume a run, and kill it after `wait` seconds.

    Returns who was killed, None if the run has ended before, and the exit code.
    """
    command = [*words(way.processes, config, way.overrides), "--resume"]
    with log.open("w") as output:
        launcher = psutil.Popen(
            command, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    family = {launcher}
    end = time.monotonic() + (LIMIT if wait is None else wait)
    while launcher.poll() is None and time.monotonic() < end:
        _grow(family)
        time.sleep(0.1)

    killed = None
    if launcher.poll() is None:
        killed = _kill(launcher, family, way, draw) if wait is not None else "hanging"
    _, alive = psutil.wait_procs(family, timeout=PATIENCE if killed else 5.0)
    found.left_behind += len(alive)
    for one in alive:
        one.kill()
    if killed == "hanging":
        return None, 124
    return killed, int(launcher.wait())


def _grow(family: set[psutil.Process]) -> None:
    """All processes seen so far: one whose parent is gone is still of the family."""
    for one in list(family):
        with suppress(psutil.NoSuchProcess):
            family.update(one.children(recursive=True))


def _kill(
    launcher: psutil.Process, family: set[psutil.Process], way: Way, draw: random.Random
) -> str:
    """Kill one process, or all at once, and say who it was."""
    _grow(family)
    ranks = [] if way.processes == 1 else launcher.children()
    victims = {"program" if way.processes == 1 else "launcher": [launcher]}
    victims |= {"a rank": [draw.choice(ranks)]} if ranks else {}
    victims[EVERYTHING] = list(family)

    name = draw.choice(sorted(victims))
    for one in victims[name]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return name


# ---- the table


def as_table(rows: Sequence[dict[str, Any]], disks: dict[str, Any] | None) -> str:
    lines = [
        "# What kills and full disks cost",
        "",
        INTRODUCTION,
        "",
        "| run | processes | kills | killed were | runs that ended | of them different | left behind |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        victims = ", ".join(f"{name} {count}" for name, count in sorted(row["victims"].items()))
        lines.append(
            f"| {row['name']} | {row['processes']} | {row['kills']} | {victims} | {row['ended']} | "
            f"{len(row['differing'])} | {row['left_behind']} |"
        )
    if disks:
        lines += ["", *full_disk.as_lines(disks)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    names = [way.name for way in WAYS] + ["disk"]
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=names, default=names)
    parser.add_argument("--kills", type=int, help="of each way, in place of the table's")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--out", type=Path, default=folder_of_results())
    arguments = parser.parse_args()

    file = arguments.out / "reliability.json"
    before = json.loads(file.read_text()) if file.exists() else {"kills": [], "disk": None}
    rows = {row["name"]: row for row in before["kills"]}
    disks, is_right = before["disk"], True

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for way in WAYS:
            if way.name not in arguments.only or (way.needs and find_spec(way.needs) is None):
                continue
            chosen = way if arguments.kills is None else _with_kills(way, arguments.kills)
            found = soak(chosen, Path(folder) / way.name, random.Random(arguments.seed))
            rows[way.name] = asdict(found)
            is_right &= found.is_right
            _write(file, rows, disks)

        if "disk" in arguments.only:
            disks = full_disk.measure(Path(folder) / "disk")
            is_right &= not disks["wrong"]
            _write(file, rows, disks)

    if not is_right:
        sys.exit("Something was lost, left behind or not said: see reliability.json.")


def _write(file: Path, rows: dict[str, dict[str, Any]], disks: dict[str, Any] | None) -> None:
    """All that is known so far, so that a campaign that is stopped keeps what it found."""
    ordered = [rows[way.name] for way in WAYS if way.name in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"kills": ordered, "disk": disks}, indent=2) + "\n")
    file.with_suffix(".md").write_text(as_table(ordered, disks))


def _with_kills(way: Way, kills: int) -> Way:
    return Way(**asdict(way) | {"kills": kills})


if __name__ == "__main__":
    main()
