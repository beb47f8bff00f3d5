"""One optimizer step: passes forward and backward, one update. The gradient does not know how the groups were cut."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.errors import RunError
from gpg_vl.training.batch import Objective, Pass, counts_of, idle_pass, make_passes
from gpg_vl.training.ranks import most, sums
from gpg_vl.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What an update did, over all ranks."""

    applied: bool
    """False if no group carried a signal: weights and optimizer are untouched."""
    loss: float
    grad_norm: float
    entropy: float
    """Mean over the trained tokens, in nats."""
    logp_gap_mean: float
    """Mean absolute difference between the engine's log-probs and the trainer's."""
    logp_gap_max: float
    passes: int
    trained_tokens: int
    """Prompt and completion tokens that went through the language model, without padding."""
    vision_patches: int


class NonFiniteError(RunError):
    """The loss or the gradient is not a number. The update was not applied."""


def global_counts(accelerator: Accelerator, groups: Sequence[Group]) -> tuple[StepCounts, float | None]:
    """The step's counts and the standard deviation (ddof 1) of its rewards, over all ranks, before the first backward."""
    counts = counts_of(groups)
    rewards = [r for group in groups for r in group.rewards]
    fields = ("groups", "valid_groups", "completions", "tokens", "valid_tokens")
    *numbers, number, total = sums(accelerator, [*(getattr(counts, f) for f in fields), len(rewards), sum(rewards)])
    mean = total / number if number else 0.0
    (squares,) = sums(accelerator, [sum((r - mean) ** 2 for r in rewards)])
    deviation = (squares / (number - 1)) ** 0.5 if number > 1 else None
    return StepCounts(**{f: int(n) for f, n in zip(fields, numbers, strict=True)}), deviation


def accumulate(policy: nn.Module, accelerator: Accelerator, passes: Sequence[Pass], *, pad: int) -> list[float]:
    """Add the gradient of this rank's passes; the last one averages over ranks. Returns sums to report.

    Every rank makes the same number of passes, so that no collective waits for a rank that has nothing to do.
    """
    rounds = int(most(accelerator, len(passes)))
    loss = entropy = gap = gap_max = tokens = patches = 0.0
    for i in range(rounds):
        one = passes[i] if i < len(passes) else idle_pass(pad)
        rows = one.rows.to(accelerator.device)
        with (
            torch.enable_grad(),
            policy.no_sync() if accelerator.num_processes > 1 and i + 1 < rounds else nullcontext(),
        ):
            output = policy(rows, one.coefficients_K.to(accelerator.device))
            # distributed wrappers average gradients over ranks; the denominators are global already
            accelerator.backward(output.loss * accelerator.num_processes)
        loss += output.loss.item()
        if len(one.sampled_logp_K):
            difference = (output.logp_K.float().cpu() - one.sampled_logp_K).abs()
            entropy, gap, gap_max = (
                entropy + output.entropy_K.sum().item(),
                gap + difference.sum().item(),
                max(gap_max, difference.max().item()),
            )
            tokens += len(difference)
        patches += 0 if rows.pixel_values_N is None else len(rows.pixel_values_N)
    row_tokens = sum(int((one.rows.segments_B_S >= 0).sum()) for one in passes)
    totals = sums(accelerator, [loss, entropy, gap, tokens, row_tokens, patches])
    return [*totals, most(accelerator, gap_max), rounds]


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
    pad: int,
    shared_prefix: bool,
    max_grad_norm: float,
) -> StepOutcome:
    """Train on the groups of one step. Raises NonFiniteError, with weights and optimizer as they were."""
    if counts.valid_groups == 0:
        # AdamW would still move on zero gradients (momentum, decay), so nothing at all is done
        return StepOutcome(
            applied=False,
            loss=0.0,
            grad_norm=0.0,
            entropy=0.0,
            logp_gap_mean=0.0,
            logp_gap_max=0.0,
            passes=0,
            trained_tokens=0,
            vision_patches=0,
        )
    passes = make_passes(
        groups,
        objective=objective,
        counts=counts,
        batch_std=batch_std,
        tokens_per_pass=tokens_per_pass,
        pad=pad,
        shared_prefix=shared_prefix,
    )
    policy.train()
    optimizer.zero_grad(set_to_none=True)
    loss, entropy, gap, tokens, row_tokens, patches, gap_max, rounds = accumulate(policy, accelerator, passes, pad=pad)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
    if not (torch.isfinite(torch.tensor([loss, norm])).all()):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"The loss is {loss} and the gradient norm {norm}; both must be finite. The update was not applied."
        )
    optimizer.step()
    return StepOutcome(
        applied=True,
        loss=loss,
        grad_norm=norm,
        entropy=entropy / tokens,
        logp_gap_mean=gap / tokens,
        logp_gap_max=gap_max,
        passes=int(rounds),
        trained_tokens=int(row_tokens),
        vision_patches=int(patches),
    )
