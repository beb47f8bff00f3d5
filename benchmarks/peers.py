"""One training step of gpg_vl compared with one of its peers: `make bench-peers`, or `make bench-peers ARGS="--quick"`.

First the gradients are compared (`benchmarks/parity_trl.py`): without equality nothing is timed. Then TRL's best micro-batch
is searched for. Then the systems take turns, each in a process of its own (`benchmarks/measure.py`). The results, written
after every run, are OUT/peers_cpu.json and, as a table, OUT/peers_cpu.md (`benchmarks/table.py`).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import anchor
from benchmarks.measure import SYSTEMS
from benchmarks.table import render

MICRO_BATCHES = (1, 2, 4, 8, 16)
STEPS = {"trl": 2, "shared": 3, "reused": 3, "one_group": 2, "naive": 2, "prefix_grouper": 2}
"""Measured steps per process. A step of TRL takes most of a minute."""
ONE_ROUND = ("one_group", "naive", "prefix_grouper")
"""Context for the comparison, not its sides: measured in the first round alone."""
RESULTS = Path("benchmarks/results")
SCRATCH = Path("runs/peers")


class BenchmarkError(RuntimeError):
    """A run that failed, or gradients that differ. The message says which."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.splitlines()[0]
    )
    made.add_argument(
        "--rows",
        type=_among(anchor.ROWS),
        help="cases, by comma (default a,b,c; z has silent groups)",
    )
    made.add_argument(
        "--systems",
        type=_among(SYSTEMS),
        default=list(SYSTEMS),
        help=f"by comma: {', '.join(SYSTEMS)}",
    )
    made.add_argument("--rounds", type=int, help="times that the systems take turns (default 2)")
    made.add_argument(
        "--steps", type=int, help="measured steps per process (default 3 for us, 2 for the others)"
    )
    made.add_argument("--warmup", type=int, help="steps before them (default 1)")
    made.add_argument(
        "--micro-batch",
        type=int,
        choices=MICRO_BATCHES,
        help="TRL's, instead of searching for the best",
    )
    made.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing on both sides"
    )
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS})")
    made.add_argument(
        "--quick", action="store_true", help="row b, one step each, no search: does everything run?"
    )
    return made


def _among(known: Sequence[str] | Mapping[str, Any]) -> Any:
    """An argument that lists names by comma."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def settle(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with every default filled in; what is given wins over --quick."""
    quick = arguments.quick
    defaults = {
        "rows": ["b"] if quick else ["a", "b", "c"],
        "rounds": 1 if quick else 2,
        "steps": 1 if quick else None,
        "warmup": 0 if quick else 1,
        "micro_batch": 8 if quick else None,
        "out": SCRATCH / "quick" if quick else RESULTS,
    }
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**{**vars(arguments), **defaults, **given})


def turns(systems: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """(round, system) in order: A, B, A, B. Example: trl, shared, naive, trl, shared."""
    return [(n, s) for n in range(rounds) for s in systems if n == 0 or s not in ONE_ROUND]


def best(sweep: Sequence[Mapping[str, Any]]) -> int:
    """The micro-batch of the fastest run of the search."""
    return int(min(sweep, key=lambda run: run["steps"][0]["seconds"])["settings"]["micro_batch"])


def run_module(module: str, *options: str | int | Path, threads: int) -> Any:
    """Run a module of the benchmark in a process of its own and return the JSON that it writes.

    Raises BenchmarkError with the end of what it said if it fails.
    """
    SCRATCH.mkdir(parents=True, exist_ok=True)
    out = SCRATCH / "last.json"
    out.unlink(missing_ok=True)
    # threads that spin while they wait slow each other down on a small machine
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [
        sys.executable,
        "-m",
        module,
        *map(str, options),
        "--folder",
        str(SCRATCH),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode or not out.is_file():
        raise BenchmarkError(
            f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return json.loads(out.read_text())


def measure(
    arguments: argparse.Namespace, system: str, row: str, *options: str | int, **numbers: int
) -> Any:
    """One process of `benchmarks.measure`; says what it took."""
    lengths = [
        part for name, value in numbers.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    same = ["--checkpointing"] if arguments.checkpointing else []
    start = time.monotonic()
    result = run_module(
        "benchmarks.measure",
        "--system",
        system,
        "--row",
        row,
        *lengths,
        *options,
        *same,
        threads=arguments.threads,
    )
    steps = ", ".join(f"{step['seconds']:.1f}" for step in result["steps"])
    print(
        f"row {row}, {system}: {steps} s per step, {result['rss_peak'] / 1e9:.2f} GB "
        f"(the whole process {time.monotonic() - start:.0f} s)",
        flush=True,
    )
    return result


def machine(threads: int) -> dict[str, Any]:
    """What the seconds depend on. Linux only."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"processor": platform.machine(), "threads": threads, "memory_gb": memory}


def described(name: str) -> dict[str, Any]:
    """A case and the lengths of its prompts."""
    from benchmarks import ours

    row = anchor.ROWS[name]
    side = ours.Ours(anchor.checkpoint(SCRATCH, row.vocabulary), row, "shared")
    ((_, prompt),) = side.encode(anchor.questions(row, 1))
    fields = {key: value for key, value in asdict(row).items() if key != "text"}
    return fields | {"prompt_tokens": prompt.length, "image_tokens": int(prompt.image_mask_T.sum())}


def write(result: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "peers_cpu.md").write_text(render(result))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything in order; the results are written after every run. Raises BenchmarkError."""
    beside_trl = [s for s in arguments.systems if s != "trl"] or ["shared"]
    names = ("--rows", ",".join(arguments.rows), "--systems", ",".join(beside_trl))
    parity = run_module("benchmarks.parity_trl", *names, threads=arguments.threads)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "complete": False,
        "machine": machine(arguments.threads),
        "versions": {
            name: version(name)
            for name in ("torch", "transformers", "trl", "prefix_grouper", "gpg_vl")
        },
        "settings": {
            "warmup": arguments.warmup,
            "checkpointing": arguments.checkpointing,
            "threads": arguments.threads,
        },
        "rows": [described(row) for row in arguments.rows],
        "parity": parity,
        "sweep": [],
        "micro_batch": arguments.micro_batch,
        "runs": [],
    }
    if arguments.micro_batch is None and "trl" in arguments.systems:
        for size in MICRO_BATCHES:
            one = measure(
                arguments, "trl", arguments.rows[0], "--given", steps=1, warmup=0, micro_batch=size
            )
            result["sweep"].append(one)
        result["micro_batch"] = best(result["sweep"])
    for row in arguments.rows:
        for number, system in turns(arguments.systems, arguments.rounds):
            lengths = {"steps": arguments.steps or STEPS[system], "warmup": arguments.warmup}
            if system == "trl":
                lengths["micro_batch"] = result["micro_batch"]
            result["runs"].append(measure(arguments, system, row, **lengths) | {"round": number})
            write(result, arguments.out)
    result["complete"] = True
    write(result, arguments.out)
    return result


def main() -> int:
    arguments = settle(parser().parse_args())
    if arguments.out.exists() and not arguments.out.is_dir():
        print(
            f"bench-peers: --out {arguments.out} is a file. Name a folder; it is made if it is not there.",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    try:
        compare(arguments)
    except BenchmarkError as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {arguments.out / 'peers_cpu.md'} after {(time.monotonic() - start) / 60:.1f} minutes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
