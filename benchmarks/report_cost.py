"""What the page of a long run costs: `python -m benchmarks.report_cost --steps 10000`, Linux and macOS.

Writes a run folder with rows like those of the quickstart (metrics of each step, samples, an evaluation of the held-out rows
at either end), then makes its page with `gpg-vl report` in a process of its own, and prints that process's CPU seconds and
its peak of resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpg_vl.quickstart import scenes

ANSWERS = 8
PHASES = ("step", "train", "rollout", "reward", "encode", "optimizer", "prefill", "decode")
SHARES = ("reward", "accuracy", "valid_share", "truncated_share", "entropy", "grad_norm", "loss")
COUNTS = 25
"""Other numbers of a row: tokens, patches, calls ..."""


class Cost(NamedTuple):
    """Of one page."""

    seconds: float
    """Of CPU, of all cores together."""
    peak: int
    """Bytes of resident memory."""
    size: int
    """Bytes of the page."""


def write_run(folder: Path, *, steps: int, samples_every: int, groups: int, held_out: int) -> None:
    """A run folder, row by row: it may be larger than memory."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {path: base}\ntrain: {seed: 0}\n")
    (folder / "run.json").write_text('{"launches": []}\n')
    _write_lines(folder / "metrics.jsonl", _metrics(steps))
    scene = next(iter(scenes.rows(0, 1)))
    for step in range(samples_every, steps + 1, samples_every):
        place = folder / "samples" / f"step-{step:06d}"
        place.mkdir(parents=True)
        (place / "0-0.png").write_bytes(scene["image"]["bytes"])
        _write_lines(place / "samples.jsonl", (_group(step + n, scene) for n in range(groups)))

    (folder / "evaluations").mkdir()
    for step in (0, steps):
        file = folder / "evaluations" / f"step-{step:06d}.jsonl"
        _write_lines(file, (_held_out(n, step) for n in range(held_out)))


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def _metrics(steps: int) -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {f"rollout_count_{n}": 1234 + n for n in range(COUNTS)}
    row["seconds"] = dict.fromkeys(PHASES, 0.1234)
    for step in range(1, steps + 1):
        shares = {name: ((step * (place + 3)) % 97) / 97 for place, name in enumerate(SHARES)}
        yield {"step": step, "kind": "train", **shares, **row}
        if step in (1, steps):
            scores = {"official": 0.5, "ci95": {"official": [0.4, 0.6]}}
            yield {"step": 0 if step == 1 else step, "kind": "eval", **scores}


def _group(number: int, scene: dict[str, Any]) -> dict[str, Any]:
    right = [(number + n) % 3 == 0 for n in range(ANSWERS)]
    answers = [
        {"text": scene["answer"] if one else "no", "tokens": 3, "reward": float(one)}
        for one in right
    ]
    row = {name: scene[name] for name in ("task", "answer", "choices")}
    row |= {"id": str(number), "question": scene["prompt"], "images": ["0-0.png"]}
    return {**row, "completions": [{**one, "reward/choice": one["reward"]} for one in answers]}


def _held_out(number: int, step: int) -> dict[str, Any]:
    right = number % (3 if step else 5) == 0
    row = {"doc_id": number, "task": "Count", "question": "How many?", "gold": "(A)", "images": []}
    return {**row, "response": "(A)" if right else "(B)", "score": float(right), "right": right}


def measure(folder: Path) -> Cost:
    """The cost of the page, in a process of its own."""
    command = [sys.executable, "-m", "gpg_vl", "report", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    page = (folder / "report.html").stat().st_size
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * unit, page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000, help="default %(default)s")
    parser.add_argument("--samples-every", type=int, default=25, help="default %(default)s")
    parser.add_argument("--groups", type=int, default=4, help="of a dump (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=1200, help="rows (default %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write_run(folder, **vars(arguments))
        cost = measure(folder)
    print(
        f"{arguments.steps:,} steps, {arguments.steps // arguments.samples_every:,} dumps of {arguments.groups:,} groups, "
        f"2 evaluations of {arguments.held_out:,} rows: {cost.seconds:.1f} s of CPU, {cost.peak / 1e6:.0f} MB of memory "
        f"at most, a page of {cost.size / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
