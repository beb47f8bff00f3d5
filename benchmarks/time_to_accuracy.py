"""CPU seconds until a model answers well: gpg_vl beside TRL on the quickstart's task (`make time-to-accuracy`).

    .venv-peers/bin/python -m benchmarks.time_to_accuracy                three seeds of every system: an hour of one core
    .venv-peers/bin/python -m benchmarks.time_to_accuracy --seeds 0 --systems TRL
    .venv-peers/bin/python -m benchmarks.time_to_accuracy --table        the table again, from what was measured

Base model, pictures, rewards, learning rates, optimizer, prompts and answers per step are the same on both sides. Each system
trains for 120 steps in a program of its own on one thread, and leaves its weights every 10 steps; those are evaluated
afterwards by `python -m gpg_vl.eval` on 400 held-out pictures, both sides' by the same command. The CPU seconds of a checkpoint
are those of the whole program from its start, until the step had ended.

- `gpg_vl`: `gpg-vl train configs/quickstart.yaml` in fewer steps: AGE, and more groups where too few carry a signal.
- `gpg_vl, TRL's loss`: the same with `age: off` and `beta_th: 0`: the loss of the next line.
- `TRL`: its `GRPOTrainer` with the loss of GRPO at beta 0 and without the scale of rewards, which is that same loss.

Writes OUT/time_to_accuracy.json and .md. What is measured already is kept.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.cpu_seconds import run_metered
from benchmarks.step import folder_of_results

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
SYSTEMS = ("gpg_vl", "gpg_vl, TRL's loss", "TRL")
STEPS = 120
"""Of a run, whose learning rate has then fallen to 0. The quickstart has more; TRL takes minutes for these."""
EVERY = 10
"""Steps between two checkpoints."""
HELD_OUT = 400
THRESHOLDS = (55, 60, 65, 70)
"""Strict accuracies in per cent, over all held-out pictures."""

Point = Mapping[str, float]
"""step, cpu_seconds and accuracy of a checkpoint."""


# ---- what is run


def prepare(folder: Path, seed: int) -> Path:
    """The quickstart's base model and pictures for one seed."""
    made = folder / f"data-{seed}"
    if not (made / "test.parquet").exists():
        words = ["quickstart", "--prepare-only", "--seed", str(seed), "--folder", str(made)]
        subprocess.run([sys.executable, "-m", "gpg_vl", *words], check=True)
    return made


def settings(data: Path, seed: int, run: Path) -> list[str]:
    """What both sides read of the config: the files of a seed, and no evaluation on the way."""
    return [
        f"model.path={data / 'base'}",
        f"data.train={data / 'train.parquet'}",
        f"train.seed={seed}",
        f"train.steps={STEPS}",
        f"output.folder={run}",
        "eval.task=null",
        "eval.data=null",
        "eval.every=0",
        "eval.blank_image=false",
        f"output.checkpoint_every={EVERY}",
        "output.keep_checkpoints=1000",
        "output.samples_every=0",
    ]


def train(system: str, data: Path, seed: int, run: Path, micro_batch: int) -> dict[int, float]:
    """Train one system; returns {step: CPU seconds} of the checkpoints under `run`/checkpoints/step-N/model."""
    run.parent.mkdir(parents=True, exist_ok=True)
    own = settings(data, seed, run)
    if system == "TRL":
        words = ["-m", "benchmarks.time_to_accuracy_trl", "--micro-batch", str(micro_batch), *own]
    else:
        matched = ["algorithm.age=off", "algorithm.beta_th=0"]
        words = ["-m", "gpg_vl", "train", str(CONFIG), *own]
        words += matched if system == SYSTEMS[1] else []

    print("$ python", *words, flush=True)
    log = run.with_suffix(".log")
    metered = run_metered([sys.executable, *words], run / "metrics.jsonl", log=log)
    return {
        step: metered.marks[step - 1]
        for step in range(EVERY, len(metered.marks) + 1, EVERY)
        if (run / "checkpoints" / f"step-{step:06d}" / "model").exists()
    }


def evaluate(model: Path, data: Path, output: Path) -> float:
    """Strict accuracy in per cent."""
    words = ["-m", "gpg_vl.eval", "cvbench", "--model", str(model), "--scorer", "strict"]
    words += ["--data", str(data / "test.parquet"), "--prompt", "plain", "--limit", str(HELD_OUT)]
    words += ["--max-new-tokens", "6", "--batch-size", "64", "--output", str(output)]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((output / "results.json").read_text())["results"]["cvbench"]
    return float(100 * found["acc_micro,strict"])


def measure(system: str, seed: int, folder: Path, micro_batch: int) -> list[Point]:
    """The checkpoints of one system and seed. What an earlier call has begun is not used."""
    data = prepare(folder, seed)
    run = folder / "-".join([*system.replace(",", "").replace("'", "").split(), str(seed)])
    seconds = train(system, data, seed, run, micro_batch)
    points: list[Point] = []
    for step, cpu in seconds.items():
        model = run / "checkpoints" / f"step-{step:06d}" / "model"
        accuracy = evaluate(model, data, run / "eval" / str(step))
        points.append({"step": step, "cpu_seconds": cpu, "accuracy": accuracy})
        print(f"{system}, seed {seed}, step {step}: {cpu:.0f} s, {accuracy:.1f} %", flush=True)
    return points


# ---- what came out


def reached(points: Sequence[Point], threshold: float) -> float | None:
    """CPU seconds of the first checkpoint at or above a threshold; None if there is none.

    Example: `reached([{"step": 20, "cpu_seconds": 9.0, "accuracy": 61.0}], 60)` is 9.0
    """
    return next((p["cpu_seconds"] for p in points if p["accuracy"] >= threshold), None)


def seconds_per_step(points: Sequence[Point]) -> float:
    """Between checkpoints, without the start of the program."""
    gaps = [
        (b["cpu_seconds"] - a["cpu_seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(points)
    ]
    return mean(gaps)


def cell(times: Sequence[float | None]) -> str:
    """Mean of the seeds and, in brackets, the least and the most; how many reached it where not all did."""
    known = [t for t in times if t is not None]
    if not known:
        return "never"
    text = f"{mean(known):.0f} [{min(known):.0f}, {max(known):.0f}]"
    return text if len(known) == len(times) else f"{text}, {len(known)} of {len(times)} seeds"


Found = dict[str, dict[str, list[Point]]]
"""System -> seed -> checkpoints."""


def table(found: Found) -> list[str]:
    head = ["CPU seconds until", *(f"{t} %" for t in THRESHOLDS), "last", "per step", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for system in (name for name in SYSTEMS if name in found):
        seeds = list(found[system].values())
        cells = [cell([reached(points, t) for points in seeds]) for t in THRESHOLDS]
        cells.append(f"{mean(points[-1]['accuracy'] for points in seeds):.1f} %")
        cells.append(f"{mean(map(seconds_per_step, seeds)):.2f}")
        lines.append("| " + " | ".join([system, *cells, str(len(seeds))]) + " |")
    return lines


def ratios(found: Found) -> list[str]:
    """How many times as much TRL takes, over the seeds that both have and that reached the threshold on both sides."""
    lines = []
    for system in (name for name in SYSTEMS[:2] if name in found and "TRL" in found):
        parts = []
        for threshold in THRESHOLDS:
            pairs = [
                (reached(found["TRL"][seed], threshold), reached(points, threshold))
                for seed, points in found[system].items()
                if seed in found["TRL"]
            ]
            times = [theirs / mine for theirs, mine in pairs if theirs and mine]
            if times:
                parts.append(
                    f"{mean(times):.1f} [{min(times):.1f}, {max(times):.1f}] to {threshold} %"
                )
        lines.append(
            f"- TRL takes this many times the CPU seconds of {system}: {'; '.join(parts)}."
        )
    return lines


def per_step(found: Found) -> list[str]:
    """Which of the two sides with one loss answers better after the same number of steps, over the seeds of both."""
    same = found.get(SYSTEMS[1], {})
    differences = [
        mean(t["accuracy"] - m["accuracy"] for t, m in zip(theirs, same[seed], strict=True))
        for seed, theirs in found.get("TRL", {}).items()
        if seed in same
    ]
    if not differences:
        return []
    each = ", ".join(f"{d:+.1f}" for d in differences)
    apart = min(differences) > 0 or max(differences) < 0
    said = (
        "one side is ahead in every seed"
        if apart and len(differences) > 1
        else "neither side is ahead in every seed: the factor is one of seconds per step, not of better learning"
    )
    text = (
        f"With one loss, TRL's accuracy minus gpg_vl's after the same number of steps, mean of all checkpoints, seed by seed: "
        f"{each} points; {said}."
    )
    return [text, ""]


def write(found: Found, out: Path, micro_batch: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "time_to_accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# CPU seconds until a model answers well",
        "",
        (
            f"`python -m benchmarks.time_to_accuracy`, which says how: one thread, float32, the quickstart's base model and "
            f"pictures, strict accuracy on {HELD_OUT} held-out pictures every {EVERY} steps. TRL {version('trl')} with "
            f"{micro_batch} answers per micro-batch. Mean of the seeds, and the least and the most of them."
        ),
        "",
        *table(found),
        "",
        *ratios(found),
        "",
        *per_step(found),
    ]  # fmt: skip
    (out / "time_to_accuracy.md").write_text("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--micro-batch", type=int, default=64, help="TRL's, in answers")
    parser.add_argument("--folder", type=Path, default=Path("runs/time_to_accuracy"))
    parser.add_argument("--out", type=Path, default=folder_of_results())
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args(argv)

    kept = arguments.out / "time_to_accuracy.json"
    found: Any = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in [] if arguments.table else arguments.seeds:
        for system in arguments.systems:
            if str(seed) in found.get(system, {}):
                continue
            points = measure(system, seed, arguments.folder, arguments.micro_batch)
            found.setdefault(system, {})[str(seed)] = points
            write(found, arguments.out, arguments.micro_batch)
    write(found, arguments.out, arguments.micro_batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
