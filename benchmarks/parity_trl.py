"""Is the gradient of a step the one that TRL computes? `python -m benchmarks.parity_trl --rows a,b,c`

Same weights, same pictures, the same ragged completions with the same rewards, float32, alpha 1, no forbidden ids in the
loss. TRL's gradient comes out of `GRPOTrainer.train()`, the moment before the optimizer uses it; ours out of
`gpg_vl.training.step.update`. TRL's loss is -A exp(log pi - log pi without gradient), whose gradient is that of GPG.
Prints a line per comparison and fails (exit 1) if one is beyond the gate: without equality no time means anything.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import anchor, ours
from gpg_vl.algorithms.losses import Aggregation

SYSTEMS = ("shared", "reused", "one_group", "naive", "prefix_grouper")
GATE = 1e-5
"""Largest relative error of the whole gradient, in float32."""
GROUP_SIZE = 4
MICRO_BATCH = 4


def relative_error(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """|mine - theirs| / |theirs| over all weights together, in float64.

    Raises ValueError if they are not of the same weights, or if theirs is zero everywhere.
    """
    if mine.keys() != theirs.keys():
        raise ValueError(
            f"Only one side has a gradient of {', '.join(sorted(mine.keys() ^ theirs.keys())[:4])}."
        )
    difference = sum(float((mine[k].double() - theirs[k].double()).square().sum()) for k in theirs)
    size = sum(float(theirs[k].double().square().sum()) for k in theirs)
    if size == 0.0:
        raise ValueError("The gradient is zero everywhere: comparing it would prove nothing.")
    return float((difference / size) ** 0.5)


def compare(
    row: anchor.Row, folder: Path, aggregation: Aggregation, systems: Sequence[str]
) -> list[dict[str, Any]]:
    """Each system against TRL on the checkpoint, the pictures and the lengths of a case."""
    from benchmarks import trl_side

    checkpoint = anchor.checkpoint(folder, row.vocabulary)
    asked = anchor.questions(row, row.prompts_per_step)
    tokens, rewards = anchor.ragged(row, seed=1)
    theirs, seen = trl_side.gradient(
        checkpoint, row, asked, tokens, rewards, aggregation, micro_batch=MICRO_BATCH
    )
    found = []
    for system in systems:
        if system == "prefix_grouper":
            from benchmarks import prefix_grouper_side

            grouped = prefix_grouper_side.Grouped(checkpoint, row)
            side, mine = grouped.ours, grouped.gradient(asked, tokens, rewards)
        else:
            side = ours.Ours(checkpoint, row, system, masked=False)
            mine = side.gradient(asked, tokens, rewards, aggregation)
        _require_same_prompts(side, asked, seen)
        vision = [name for name in theirs if ".visual." in name]
        found.append(
            {
                "row": row.name,
                "system": system,
                "aggregation": aggregation,
                "trl": trl_side.LOSS_OF[aggregation],
                "error": relative_error(mine, theirs),
                "error_vision": relative_error(
                    {n: mine[n] for n in vision}, {n: theirs[n] for n in vision}
                ),
            }
        )
    return found


def _require_same_prompts(
    side: ours.Ours, asked: Sequence[anchor.Question], seen: Mapping[str, Any]
) -> None:
    """Both sides must have made the same ids and patches of the questions, each with its own processor."""
    prompts = [prompt for _, prompt in side.encode(asked) for _ in range(side.row.group_size)]
    if [p.input_ids_T.tolist() for p in prompts] != seen["prompt_ids"]:
        raise ValueError("The two sides made different prompts of the same questions.")
    if not torch.equal(torch.cat([p.pixel_values_N for p in prompts]), seen["pixel_values"]):
        raise ValueError("The two sides made different patches of the same pictures.")


def plan(rows: Sequence[str], systems: Sequence[str]) -> list[tuple[str, Aggregation, list[str]]]:
    """What to compare: every system on the first case, `shared` on the others; the other mean once."""
    timed: list[tuple[str, Aggregation, list[str]]] = [
        (row, "token", ["shared"]) for row in rows[1:]
    ]
    return [(rows[0], "token", list(systems)), (rows[0], "sequence", ["shared"]), *timed]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity_trl", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rows", default="a,b,c", help="cases, by comma")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="by comma, beside TRL")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/peers"), help="where the checkpoints are made"
    )
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    found = []
    for name, aggregation, systems in plan(arguments.rows.split(","), arguments.systems.split(",")):
        row = replace(anchor.ROWS[name], group_size=GROUP_SIZE)
        for one in compare(row, arguments.folder, aggregation, systems):
            found.append(one)
            print(
                f"row {name}: {one['system']}, {aggregation} mean against TRL's {one['trl']}: relative gradient error "
                f"{one['error']:.1e} (vision {one['error_vision']:.1e}; gate {GATE:.0e})",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n")
    return 0 if all(one["error"] < GATE for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
