"""Is the gradient of a step the one that TRL computes? `python -m benchmarks.parity_trl --rows a,b,c`

Same weights, same pictures, the same ragged completions with the same rewards, float32, no forbidden ids in the loss. TRL's
gradient comes out of `GRPOTrainer.train()`, the moment before the optimizer uses it; ours out of the learner's update.

GPG, alpha 1: TRL's loss is -A exp(log pi - log pi without gradient), whose gradient is that of GPG. GRPO: both sides get the
same old log-probs, so far from the current ones that both clips cut tokens, and score their own reference, whose weights are
those of the checkpoint with the same noise added.

Prints a line per comparison and fails (exit 1) if one is beyond the gate: without equality no time means anything.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import anchor, ours
from benchmarks.losses import ALGORITHMS, LOG_RATIOS, TRL_GPG, TRL_GRPO
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.option_types import Aggregation
from gpg_vl.models.layout import pack
from gpg_vl.models.reference import Reference, make_reference
from gpg_vl.models.requests import Score

SYSTEMS = ("shared", "reused", "one_group", "naive", "prefix_grouper")
GATE = 1e-5
"""Largest relative error of the whole gradient, in float32."""
GROUP_SIZE = 4
MICRO_BATCH = 4
REFERENCE_NOISE = 0.01
"""Deviation of the noise on the reference's weights; that of the weights is 0.02."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One loss on both sides.

    Example: `LOSSES["grpo"]`
    """

    algorithm: str
    aggregation: Aggregation
    ours: Algorithm
    trl: Mapping[str, Any]
    """Settings of TRL's config."""


LOSSES = {
    "gpg": Loss(algorithm="gpg", aggregation="token", ours=gpg(age="off"), trl=TRL_GPG),
    "gpg by sequence": Loss(
        algorithm="gpg",
        aggregation="sequence",
        ours=gpg(age="off", aggregation="sequence"),
        trl={**TRL_GPG, "loss_type": "grpo"},
    ),
    "grpo": Loss(algorithm="grpo", aggregation="sequence", ours=ALGORITHMS["grpo"], trl=TRL_GRPO),
}


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
    row: anchor.Row, folder: Path, loss: Loss, systems: Sequence[str]
) -> list[dict[str, Any]]:
    """Each system against TRL on the checkpoint, the pictures and the lengths of a case."""
    from benchmarks import trl_side

    checkpoint = anchor.checkpoint(folder, row.vocabulary)
    asked = anchor.questions(row, row.prompts_per_step)
    given = anchor.ragged(row, seed=1)
    reference = None
    if loss.ours.needs:
        given = replace(given, old_logps_P_G_T=old_logps(checkpoint, row, asked, given))
        reference = noisy_reference(checkpoint)
    theirs = trl_side.gradient(
        checkpoint,
        row,
        asked,
        given,
        loss.trl,
        micro_batch=MICRO_BATCH,
        prepare_reference=add_noise if loss.ours.needs else None,
    )
    if loss.ours.needs:
        _require_every_branch(theirs.logged)

    found = []
    for system in systems:
        if system == "prefix_grouper":
            from benchmarks import prefix_grouper_side

            grouped = prefix_grouper_side.Grouped(checkpoint, row)
            side, mine = grouped.ours, grouped.gradient(asked, given)
        else:
            side = ours.Ours(checkpoint, row, system, masked=False)
            mine = side.gradient(asked, given, loss.ours, reference)
        _require_same_prompts(side, asked, theirs.asked)

        vision = [name for name in theirs.gradient if ".visual." in name]
        error_vision = relative_error(
            {name: mine[name] for name in vision}, {name: theirs.gradient[name] for name in vision}
        )
        finding = {
            "row": row.name,
            "system": system,
            "algorithm": loss.algorithm,
            "aggregation": loss.aggregation,
            "trl": loss.trl["loss_type"],
            "error": relative_error(mine, theirs.gradient),
            "error_vision": error_vision,
        }
        found.append(finding)
    return found


def old_logps(
    checkpoint: Path, row: anchor.Row, asked: Sequence[anchor.Question], given: anchor.GivenStep
) -> list[list[list[float]]]:
    """Log-probs beside the current ones, float32: by one of LOG_RATIOS, token after token."""
    side = ours.Ours(checkpoint, row, "shared", masked=False)
    prompts = [prompt for _, prompt in side.encode(asked)]
    with torch.no_grad():
        logp_K = side.policy(Score(packed=pack(prompts, given.tokens_P_G_T))).logp_K

    ratios = [LOG_RATIOS[k % len(LOG_RATIOS)] for k in range(len(logp_K))]
    remaining = iter((logp_K - torch.tensor(ratios)).tolist())
    return [[[next(remaining) for _ in tokens] for tokens in group] for group in given.tokens_P_G_T]


def noisy_reference(checkpoint: Path) -> Reference:
    """Our reference; TRL's has the same weights."""
    model = ours.load(checkpoint, masked=False)
    add_noise(model.policy.model)
    return make_reference(model.policy, torch.float32)


def add_noise(model: torch.nn.Module) -> None:
    """Move every weight, in the order of their names: a reference that is the policy has no divergence from it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(REFERENCE_NOISE * noise)


def _require_every_branch(logged: Mapping[str, float]) -> None:
    """By TRL's own count: both clips cut tokens and leave others, and there is a divergence."""
    low, high = logged["clip_ratio/low_mean"], logged["clip_ratio/high_mean"]
    if not (low > 0 and high > 0 and low + high < 0.9 and logged["kl"] > 0.01):
        raise ValueError(f"The step does not say enough: {low=}, {high=}, kl={logged['kl']}.")


def _require_same_prompts(
    side: ours.Ours, asked: Sequence[anchor.Question], seen: Mapping[str, Any]
) -> None:
    """Both sides must have made the same ids and patches of the questions, each with its own processor."""
    prompts = [prompt for _, prompt in side.encode(asked) for _ in range(side.row.group_size)]
    if [p.input_ids_T.tolist() for p in prompts] != seen["prompt_ids"]:
        raise ValueError("The two sides made different prompts of the same questions.")
    patches = [p.pixel_values_N for p in prompts if p.pixel_values_N is not None]
    if not torch.equal(torch.cat(patches), seen["pixel_values"]):
        raise ValueError("The two sides made different patches of the same pictures.")


def plan(rows: Sequence[str], systems: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """(case, loss, systems): GPG with every system on the first case, where its other mean and GRPO are compared too.

    The other cases have `shared` alone; under GRPO those with silent groups, whose divergence has a gradient.
    """
    first = rows[0]
    mine = [system for system in systems if system in ours.LAYOUTS] or ["shared"]
    planned = [(first, "gpg", list(systems)), (first, "gpg by sequence", ["shared"])]
    planned.append((first, "grpo", mine))
    for row in rows[1:]:
        planned.append((row, "gpg", ["shared"]))
        if anchor.ROWS[row].silent_groups:
            planned.append((row, "grpo", ["shared"]))
    return planned


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
    for name, loss, systems in plan(arguments.rows.split(","), arguments.systems.split(",")):
        row = replace(anchor.ROWS[name], group_size=GROUP_SIZE)
        for one in compare(row, arguments.folder, LOSSES[loss], systems):
            found.append(one)
            print(
                f"row {name}: {one['system']}, {one['algorithm']}, {one['aggregation']} mean against TRL's {one['trl']}: "
                f"relative gradient error {one['error']:.1e} (vision {one['error_vision']:.1e}; gate {GATE:.0e})",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n")
    return 0 if all(one["error"] < GATE for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
