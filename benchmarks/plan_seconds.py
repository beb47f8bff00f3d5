"""The seconds that the plan estimates, next to those of the steps that follow.

    python -m benchmarks.plan_seconds configs/quickstart.yaml train.steps=4 output.folder=/tmp/seconds

Both are processor time of this process, user and system, so that other work on the machine changes little. On a GPU, where the
processor waits, wall time is what to compare: --wall.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from gpg_vl import clock
from gpg_vl.config import load_config
from gpg_vl.training import start
from gpg_vl.training.estimate import with_seconds
from gpg_vl.training.plan import Plan
from gpg_vl.training.prepare import Prepared

PARTS = {"answers": ("prefill", "decode"), "training": ("train",), "step": ("step",)}
"""What is compared, and the seconds in metrics.jsonl that it is made of."""


def measure(config: Path, overrides: list[str]) -> tuple[Plan, list[dict[str, float]]]:
    """The plan of a run, and the seconds of its steps."""
    plans: list[Plan] = []

    def keep(prepared: Prepared, device: torch.device) -> Plan:
        plans.append(with_seconds(prepared, device))
        return plans[0]

    vars(start)["with_seconds"] = keep
    run = start.train(load_config(config, overrides))
    return plans[0], [row["seconds"] for row in run.metrics if row["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--wall", action="store_true", help="wall time instead of processor time")
    arguments = parser.parse_args()
    if not arguments.wall:
        vars(clock)["perf_counter"] = time.process_time

    plan, steps = measure(arguments.config, arguments.overrides)
    assert plan.seconds is not None
    estimated = {
        "answers": plan.seconds.answers,
        "training": plan.seconds.train,
        "step": plan.seconds.total,
    }
    for name, parts in PARTS.items():
        taken = statistics.median(sum(step.get(part, 0.0) for part in parts) for step in steps)
        ratio = f"{estimated[name] / taken:.2f}" if taken else "-"
        print(f"{name:9} estimated {estimated[name]:.3f} s, measured {taken:.3f} s: {ratio}")


if __name__ == "__main__":
    main()
