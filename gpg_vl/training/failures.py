"""Error messages for steps that failed: what was given, what is allowed and what to do."""

from collections.abc import Sequence
from pathlib import Path

from gpg_vl.errors import RunError
from gpg_vl.models.layout import Packed
from gpg_vl.rollout.engine import EngineLostError
from gpg_vl.training.step_totals import GapReport


class RefusedUpdateError(RunError):
    """An update that was not applied because of its groups. Weights and optimizer are unchanged."""


class NonFiniteError(RefusedUpdateError):
    """The loss or the gradient is not a number."""


class LogpGapError(RefusedUpdateError):
    """The engine's log-probs differ too much from the trained policy's."""


def locate(error: RefusedUpdateError, step: int, folder: Path) -> RefusedUpdateError:
    """The error with its step and the folder in which the groups of the step are saved."""
    return type(error)(
        f"Step {step}: {error} The groups of the step are saved in {folder}; resume from the last checkpoint with "
        f"--resume."
    )


def raise_lost(by_process: Sequence[str | None]) -> None:
    """Raise EngineLostError with the same message on every process if any process has lost its engine.

    by_process: the error message of each process's engine; None if it is not lost.
    """
    lost = [(number, message) for number, message in enumerate(by_process) if message is not None]
    if not lost:
        return

    number, message = lost[0]
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    where = f"On process {number}{more}: " if len(by_process) > 1 else ""
    raise EngineLostError(f"{where}{message}")


def explain_lost(
    error: EngineLostError, step: int, checkpoint: Path, *, unscored: bool
) -> EngineLostError:
    """The error with the state of the run and how to resume it.

    unscored: True if an evaluation was due after `step` and has not been made.
    """
    missing = ""
    if unscored:
        missing = (
            f" The evaluation after step {step} was due; it will be made when the run is resumed."
        )
    return EngineLostError(
        f"{error} The run has stopped after step {step}; the checkpoint {checkpoint} was written.{missing} Once the "
        f"engine can answer again, resume with --resume. Nothing is lost, and nothing is repeated."
    )


def explain_non_finite(loss: float, norm: float, broken: Sequence[str]) -> str:
    """broken: ids of the examples in micro-batches whose loss is not finite, over all processes."""
    shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
    where = "Only the gradient is not finite."
    if broken:
        where = f"The loss is not finite in the micro-batches of these examples: {shown}."
    return (
        f"The loss is {loss} and the gradient norm {norm}; both must be finite. The update was not applied. {where} A smaller "
        f"train.learning_rate or another reward may help, in a new run whose model.path is the model of the last checkpoint."
    )


def explain_logp_gap(gap: GapReport, limit: float) -> str:
    """limit: `rollout.max_logp_gap`, or its default."""
    measured = []
    if gap.mean is not None:
        measured.append(
            f"{gap.mean:.3g} on average and {gap.largest:.3g} at most, where the weights of this step have sampled"
        )
    if gap.stale_mean is not None:
        measured.append(
            f"{gap.stale_mean:.3g} on average, where older weights have sampled (any number is allowed there)"
        )
    return (
        f"The engine's log-probs differ from the trainer's by {'; '.join(measured)}. rollout.max_logp_gap allows an "
        f"average of {limit:g}. The update was not applied. Usual causes: pixels that the engine normalises a second "
        f"time; an engine that has not received all new weights (such as a vision tower or a tied head); image features, "
        f"or keys and values, cached from older weights; another temperature, top_p or top_k in the engine; a server with "
        f"another checkpoint. Run with model.dtype=float32 to find out: that removes rounding, but no other cause. gpg-vl "
        f"doctor tests this machine. Raise rollout.max_logp_gap only if you know that the gap is the rounding of bfloat16."
    )


def explain_out_of_memory(packed: Packed, limit: int, fitted: int, error: str) -> str:
    """limit: `train.tokens_per_pass`. fitted: tokens of the largest call that succeeded in this run; 0: none."""
    is_known = 0 < fitted < packed.largest_call
    smaller = fitted if is_known else packed.largest_call // 2
    is_least = all(len(chunk.counts) == 1 for chunk in packed.chunks)
    if is_least or smaller <= max(packed.prefix_lengths):
        # the call is already as small as possible: a prompt and one completion
        advice = (
            "Its prompts alone fill the device: set model.gradient_checkpointing to true, lower data.max_pixels, or "
            "train with model.lora_rank."
        )
    else:
        known = "the largest that fitted in this run" if is_known else "half of it"
        advice = f"Set train.tokens_per_pass to {smaller} ({known}); the gradient stays the same."
    first_line = error.strip().splitlines()[0] if error.strip() else "out of memory"
    return (
        f"The device ran out of memory in a call of {packed.largest_call} tokens (train.tokens_per_pass is {limit}). "
        f"{advice} Resume from the last checkpoint with --resume. ({first_line})"
    )
