"""One system on one case in a process of its own: `python -m benchmarks.measure --system shared --row a --steps 2`.

Prints one line of JSON, or writes it to --out. `benchmarks/peers.py` runs this for every cell of its table.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import anchor

SYSTEMS = ("trl", "shared", "reused", "one_group", "naive", "prefix_grouper")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.measure", description=__doc__.splitlines()[0]
    )
    made.add_argument("--system", choices=SYSTEMS, required=True)
    made.add_argument("--row", choices=sorted(anchor.ROWS), required=True)
    made.add_argument("--steps", type=int, default=3, help="measured steps")
    made.add_argument("--warmup", type=int, default=1, help="steps before them")
    made.add_argument(
        "--micro-batch", type=int, default=8, help="TRL: completions per forward pass"
    )
    made.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    made.add_argument(
        "--given", action="store_true", help="TRL: random completions instead of sampled ones"
    )
    made.add_argument(
        "--folder", type=Path, default=Path("runs/peers"), help="where the checkpoints are made"
    )
    made.add_argument("--out", type=Path, help="where to write the JSON")
    return made


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    row = anchor.ROWS[arguments.row]
    checkpoint = anchor.checkpoint(arguments.folder, row.vocabulary)
    length = {"steps": arguments.steps, "warmup": arguments.warmup}
    asked = anchor.questions(row, (arguments.steps + arguments.warmup) * row.prompts_per_step)
    if arguments.system == "trl":
        from benchmarks import trl_side

        meter = trl_side.run(
            checkpoint,
            row,
            asked,
            micro_batch=arguments.micro_batch,
            checkpointing=arguments.checkpointing,
            given=arguments.given,
            **length,
        )
        settings = {"micro_batch": arguments.micro_batch, "given": arguments.given}
    elif arguments.system == "prefix_grouper":
        from benchmarks import prefix_grouper_side

        grouped = prefix_grouper_side.Grouped(
            checkpoint, row, checkpointing=arguments.checkpointing
        )
        meter = prefix_grouper_side.run(grouped, asked, **length)
        settings = {}
    else:
        from benchmarks import ours

        side = ours.Ours(checkpoint, row, arguments.system, checkpointing=arguments.checkpointing)
        meter = ours.run(side, asked, **length)
        settings = {}
    settings |= {"checkpointing": arguments.checkpointing, "warmup": arguments.warmup}
    return {"system": arguments.system, "row": row.name, "settings": settings, **meter.report()}


def main() -> int:
    arguments = parser().parse_args()
    result = json.dumps(measure(arguments))
    if arguments.out:
        arguments.out.write_text(result + "\n")
    else:
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
