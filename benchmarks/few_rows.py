"""Decoding with weights in the layout for products of few rows, or in the ordinary one: CPU seconds of a rollout.

    OMP_NUM_THREADS=1 python -m benchmarks.few_rows      (three minutes of one core)
    python -m benchmarks.few_rows --quick                to see that it runs

The rollout of a row of `make bench-peers` (a model of 45 million weights, 2 prompts, 8 answers each, one token for all 16 per
call) is made both ways in one process, which take turns; a ratio is the median over turns, so that a busy machine slows both
alike. Single products are measured too. Writes OUT/few_rows_cpu.json and .md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks import anchor
from benchmarks.ours import Ours
from benchmarks.step import folder_of_results
from gpg_vl.models.blocked import WORTH, block, can_block, multiply
from gpg_vl.rollout import decode as decoding

SHAPES = ((16, 512, 32_000), (16, 512, 1_536), (16, 1_536, 512), (16, 512, 512), (64, 512, 1_536))
"""(rows, features in, features out): the head's product, and those of a layer."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEVER = 2**60


def take_turns(ways: Sequence[Callable[[], object]], turns: int) -> list[list[float]]:
    """CPU seconds of each way in each turn, after one call of each that is not counted."""
    found: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + 1):
        for way, seconds in zip(ways, found, strict=True):
            started = time.process_time()
            way()
            if turn:
                seconds.append(time.process_time() - started)
    return found


def ratio(seconds: Sequence[Sequence[float]]) -> float:
    """Of the first way to the second, turn by turn."""
    first, second = seconds
    return median(a / b for a, b in zip(first, second, strict=True))


def measure_product(
    rows: int, inner: int, outer: int, dtype: torch.dtype, turns: int
) -> dict[str, Any]:
    """A product with each of several weights, more than a cache holds."""
    weights = [torch.randn(outer, inner).to(dtype) for _ in range(1 if outer > 10_000 else 12)]
    copies = [block(weight, rows) for weight in weights]
    given = torch.randn(rows, inner).to(dtype)
    seconds = take_turns(
        [
            lambda: [linear(given, weight) for weight in weights],
            lambda: [multiply(given, copy) for copy in copies],
        ],
        turns,
    )
    plain, blocked = (1e3 * median(way) / len(weights) for way in seconds)
    return {"rows": rows, "in": inner, "out": outer, "plain_ms": plain, "blocked_ms": blocked}


def measure_rollout(row: anchor.Row, folder: Path, turns: int) -> dict[str, Any]:
    """Both ways on the same prompts and draws."""
    ours = Ours(anchor.checkpoint(folder, row.vocabulary), row, "shared")
    prompts = [prompt for _, prompt in ours.encode(anchor.questions(row, row.prompts_per_step))]

    def sample(worth: int) -> None:
        vars(decoding)["WORTH"] = worth
        ours.sample(prompts, 0)

    seconds = take_turns([lambda: sample(NEVER), lambda: sample(WORTH)], turns)
    vars(decoding)["WORTH"] = WORTH
    plain, blocked = map(median, seconds)
    return {"row": row.name, "plain_s": plain, "blocked_s": blocked, "ratio": ratio(seconds)}


def render(found: dict[str, Any]) -> str:
    lines = [
        "# Decoding with weights in the layout for products of few rows",
        "",
        f"`python -m benchmarks.few_rows`, which says how; {found['threads']} thread(s), torch {found['torch']}.",
        "",
        "| rollout of row | ordinary layout, CPU s | blocked, CPU s | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for one in found["rollouts"]:
        cells = (one["row"], *(f"{one[k]:.2f}" for k in ("plain_s", "blocked_s", "ratio")))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| product | dtype | ordinary, ms | blocked, ms | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found["products"]:
        plain, blocked = one["plain_ms"], one["blocked_ms"]
        shape = f"[{one['rows']}, {one['in']}] with [{one['out']:,}, {one['in']}]"
        lines.append(
            f"| {shape} | {one['dtype']} | {plain:.2f} | {blocked:.2f} | {plain / blocked:.2f} |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn of short answers")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=folder_of_results())
    arguments = parser.parse_args(argv)
    turns = 1 if arguments.quick else arguments.turns

    rows = [anchor.ROWS["a"], anchor.ROWS["c"]]
    if arguments.quick:
        rows = [replace(row, completion_tokens=8) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        rollouts = [measure_rollout(row, Path(folder), turns) for row in rows]
    products = [
        measure_product(*shape, dtype, turns) | {"dtype": name}
        for name, dtype in DTYPES.items()
        if can_block(torch.zeros(1, 1), dtype)
        for shape in SHAPES
    ]
    found = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rollouts": rollouts,
        "products": products,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "few_rows_cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "few_rows_cpu.md").write_text(render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
