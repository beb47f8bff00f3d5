"""AdamW, the learning-rate schedules, and which weights are trained."""

from collections.abc import Collection, Sequence
from math import cos, pi
from typing import Any, Literal

import torch
from torch import nn

from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.models.policy import Policy
from gpg_vl.training.adamw import NarrowAdamW

CRITIC = "critic"
"""The part of a policy that is its value head, which has a learning rate of its own."""
RateSchedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: RateSchedule,
    warmup_steps: int,
    steps: int,
    final_fraction: float,
) -> float:
    """The rate of optimizer step `step` (0, 1, ...): up to `peak` over the warm-up, then along the
    schedule.

    linear and cosine reach `peak * final_fraction` at the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak

    # a run that ends with its warm-up has no step to fall over
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    fall = 1 - progress if schedule == "linear" else (1 + cos(pi * progress)) / 2
    return peak * (final_fraction + (1 - final_fraction) * fall)


def make_adamw(
    policy: Policy,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    parts: Collection[str] = (),
    bytes_of_moments: int = 4,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW over the trained weights; decay on matrices, none on norms, biases and a critic.

    The rate is set before every step.

    parts: those of `vision`, `merger`, `language` that have learning rates of their own. Each
        parameter group says under `part` whose rate is its own; "" is that of all parts without
        one, and "critic" that of the value head.
    bytes_of_moments: of each number of both moments, 4 or 1; see `adamw.NarrowAdamW`, which also
        moves weights that are bfloat16.
    seed: of how those are rounded.
    Raises UserError if nothing is to be trained, or nothing of a part that
        has a rate.
    """
    by_part: dict[str, list[nn.Parameter]] = {}
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            part = policy.family.part_of(name)
            by_part.setdefault(part if part in parts else "", []).append(parameter)
    if not by_part:
        raise UserError(
            "model.freeze freezes every weight: there is nothing to train. Leave one part out of it."
        )

    if frozen := sorted(set(parts) - by_part.keys()):
        raise UserError(
            f"train.learning_rates names {', '.join(frozen)}, of which nothing is trained in this run: it is "
            f"frozen (model.freeze, or adapters elsewhere by model.lora_on), or the model has none. Remove it from "
            f"train.learning_rates."
        )

    groups: list[dict[str, Any]] = []
    for part in sorted(by_part):
        matrices = [p for p in by_part[part] if p.ndim >= 2]
        others = [p for p in by_part[part] if p.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, "part": part})
        groups.append({"params": others, "weight_decay": 0.0, "part": part})

    if policy.critic is not None:
        head = list(policy.critic.parameters())
        groups.append({"params": head, "weight_decay": 0.0, "part": CRITIC})

    kept = [group for group in groups if group["params"]]
    trained = [parameter for group in kept for parameter in group["params"]]
    if bytes_of_moments != 4 or any(p.dtype == torch.bfloat16 for p in trained):
        return NarrowAdamW(kept, betas=betas, bytes_of_moments=bytes_of_moments, seed=seed)

    # one pass over the memory instead of a dozen
    return torch.optim.AdamW(kept, lr=0.0, betas=betas, fused=True)


def freeze(model: nn.Module, family: Family, parts: Sequence[str]) -> None:
    """Switch off the gradient of each weight of the named parts: `vision`, `merger`, `language`."""
    if not family.has_vision and (wrong := sorted({"vision", "merger"} & set(parts))):
        raise UserError(
            f"model.freeze names {', '.join(wrong)}, but {family.model_type} has no vision. Remove it from model.freeze."
        )

    for name, parameter in model.named_parameters():
        if family.part_of(name) in parts:
            parameter.requires_grad_(False)
