"""One optimizer step: passes forward and backward, one update. The gradient does not know how the groups were cut."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.clock import timed
from gpg_vl.errors import RunError
from gpg_vl.training.batch import Objective, Pass, counts_of, idle_pass, make_passes
from gpg_vl.training.ranks import gathered, most, sums
from gpg_vl.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What an update did, over all ranks."""

    applied: bool
    """False if no group carried a signal: weights and optimizer are untouched."""
    loss: float = 0.0
    grad_norm: float = 0.0
    entropy: float = 0.0
    """Mean over the trained tokens, in nats."""
    logp_gap_mean: float = 0.0
    """Mean absolute difference between the engine's log-probs and the trainer's."""
    logp_gap_max: float = 0.0
    passes: int = 0
    trained_tokens: int = 0
    """Tokens that went through the language model."""
    vision_patches: int = 0
    """Patches that went through the vision tower."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of this rank, by part of the update."""


class NonFiniteError(RunError):
    """The loss or the gradient is not a number. The update was not applied."""


def global_counts(
    accelerator: Accelerator, groups: Sequence[Group]
) -> tuple[StepCounts, float | None]:
    """The step's counts and the standard deviation (ddof 1) of its rewards, over all ranks, before the first backward."""
    counts = counts_of(groups)
    rewards = [r for group in groups for r in group.rewards]
    fields = ("groups", "valid_groups", "completions", "tokens", "valid_tokens")
    *numbers, number, total = sums(
        accelerator, [*(getattr(counts, f) for f in fields), len(rewards), sum(rewards)]
    )
    mean = total / number if number else 0.0
    (squares,) = sums(accelerator, [sum((r - mean) ** 2 for r in rewards)])
    deviation = (squares / (number - 1)) ** 0.5 if number > 1 else None
    return StepCounts(**{f: int(n) for f, n in zip(fields, numbers, strict=True)}), deviation


@dataclass(slots=True, kw_only=True)
class Sums:
    """What the passes of a step add up to, over all ranks."""

    loss: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    gap_max: float = 0.0
    tokens: float = 0.0
    """Completion tokens."""
    passes: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train_forward": 0.0, "train_backward": 0.0}
    )
    """Of this rank. The backward of a pass that is computed in pieces is part of its forward."""
    broken: list[str] = field(default_factory=list)
    """Examples of this rank's passes whose loss is not finite."""


def accumulate(policy: Any, accelerator: Accelerator, passes: Sequence[Pass]) -> Sums:
    """Add the gradient of this rank's passes; the last one averages over ranks.

    Every rank makes the same number of passes, so that no collective waits for a rank that has nothing to do.
    """
    total = Sums(passes=int(most(accelerator, len(passes))))
    for i in range(total.passes):
        one = passes[i] if i < len(passes) else idle_pass()
        is_last = i + 1 == total.passes
        with (
            torch.enable_grad(),
            policy.no_sync() if accelerator.num_processes > 1 and not is_last else nullcontext(),
        ):
            with _timed(total.seconds, "train_forward", accelerator.device):
                output = policy(
                    one.packed.to(accelerator.device), one.coefficients_K.to(accelerator.device)
                )
                loss = output.loss.item()
            with _timed(total.seconds, "train_backward", accelerator.device):
                # distributed wrappers average gradients over ranks; the denominators are global already
                accelerator.backward(output.loss * accelerator.num_processes)
        total.loss += loss
        if not isfinite(loss):
            total.broken += one.examples
        if len(one.sampled_logp_K):
            difference = (output.logp_K.float().cpu() - one.sampled_logp_K).abs()
            total.entropy += output.entropy_K.sum().item()
            total.gap += difference.sum().item()
            total.gap_max = max(total.gap_max, difference.max().item())
            total.tokens += len(difference)
    total.loss, total.entropy, total.gap, total.tokens = sums(
        accelerator, [total.loss, total.entropy, total.gap, total.tokens]
    )
    total.gap_max = most(accelerator, total.gap_max)
    return total


def _timed(
    seconds: dict[str, float], name: str, device: torch.device
) -> AbstractContextManager[None]:
    return timed(lambda more: seconds.__setitem__(name, seconds.get(name, 0.0) + more), device)


def update(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    groups: Sequence[Group],
    *,
    counts: StepCounts,
    batch_std: float | None,
    objective: Objective,
    tokens_per_pass: int,
    shared_prefix: bool,
    max_grad_norm: float,
) -> StepOutcome:
    """Train on the groups of one step. Raises NonFiniteError, with weights and optimizer as they were."""
    if counts.valid_groups == 0:
        # AdamW would still move on zero gradients (momentum, decay), so nothing at all is done
        return StepOutcome(applied=False)
    passes = make_passes(
        groups,
        objective=objective,
        counts=counts,
        batch_std=batch_std,
        tokens_per_pass=tokens_per_pass,
        shared_prefix=shared_prefix,
    )
    work = accelerator.unwrap_model(policy).work
    before = replace(work)
    policy.train()
    optimizer.zero_grad(set_to_none=True)
    total = accumulate(policy, accelerator, passes)
    with _timed(total.seconds, "optimizer", accelerator.device):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
        if not (isfinite(total.loss) and isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise _non_finite(accelerator, total, norm)
        optimizer.step()
    tokens, patches = sums(
        accelerator,
        [work.tower_tokens - before.tower_tokens, work.vision_patches - before.vision_patches],
    )
    return StepOutcome(
        applied=True,
        loss=total.loss,
        grad_norm=norm,
        entropy=total.entropy / total.tokens,
        logp_gap_mean=total.gap / total.tokens,
        logp_gap_max=total.gap_max,
        passes=total.passes,
        trained_tokens=int(tokens),
        vision_patches=int(patches),
        seconds=total.seconds,
    )


def _non_finite(accelerator: Accelerator, total: Sums, norm: float) -> NonFiniteError:
    broken = [example for rank in gathered(accelerator, total.broken) for example in rank]
    shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
    where = (
        f"The loss broke in the passes of these examples: {shown}."
        if broken
        else "Only the gradient broke."
    )
    return NonFiniteError(
        f"The loss is {total.loss} and the gradient norm {norm}; both must be finite. The update was not applied. {where}"
    )
