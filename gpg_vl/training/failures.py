"""Why a step could not be made, said with what was given, what is allowed and what to do."""

from collections.abc import Sequence
from pathlib import Path

from gpg_vl.errors import RunError
from gpg_vl.models.layout import Packed
from gpg_vl.rollout.engine import EngineLostError
from gpg_vl.training.step_totals import GapReport


class RefusedUpdateError(RunError):
    """An update that was not applied, because of what its groups hold. Weights and optimizer are as before."""


class NonFiniteError(RefusedUpdateError):
    """The loss or the gradient is not a number."""


class LogpGapError(RefusedUpdateError):
    """The engine's log-probs are not those of the policy that is trained."""


def locate(error: RefusedUpdateError, step: int, folder: Path) -> RefusedUpdateError:
    """The error with its step, and with the folder in which the groups of the step are kept."""
    return type(error)(
        f"Step {step}: {error} The groups of the step are kept in {folder}; resume from the last checkpoint with --resume."
    )


def raise_lost(by_process: Sequence[str | None]) -> None:
    """Raise EngineLostError with the same words on every process if the engine of any is lost.

    by_process: what the engine of each said when it was lost; None of one that is there.
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
    """The error with what is kept of the run, and how to resume it.

    unscored: an evaluation was due after `step`, and is still to be made.
    """
    missing = ""
    if unscored:
        missing = (
            f" The evaluation after step {step} was due; it will be made when the run is resumed."
        )
    return EngineLostError(
        f"{error} The run has stopped after step {step}; the checkpoint {checkpoint} was written.{missing} Once the engine can "
        f"answer again, resume with --resume: nothing is lost, and nothing is done twice."
    )


def explain_non_finite(loss: float, norm: float, broken: Sequence[str]) -> str:
    """broken: examples of the micro-batches whose loss is not finite, of all processes."""
    shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
    where = "Only the gradient broke."
    if broken:
        where = f"The loss broke in the micro-batches of these examples: {shown}."
    return (
        f"The loss is {loss} and the gradient norm {norm}; both must be finite. The update was not applied. {where} A smaller "
        f"train.learning_rate or another reward may help, in a new run whose model.path is the model of the last checkpoint."
    )


def explain_logp_gap(gap: GapReport, limit: float) -> str:
    """limit: `rollout.max_logp_gap`, or what stands for it."""
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
        f"The engine's log-probs differ from the trainer's by {'; '.join(measured)}. rollout.max_logp_gap allows an average "
        f"of {limit:g}. The update was not applied. Usual causes: pixels that the engine normalises a second time; an engine "
        f"that has not taken over the new weights (a vision tower or a tied head left behind); features of images, or keys "
        f"and values, cached from older weights; another temperature, top_p or top_k in the engine; another checkpoint behind "
        f"the server. Run with model.dtype=float32 to see which it is: rounding is gone there, all else stays. gpg-vl doctor "
        f"tests this machine. Set rollout.max_logp_gap only if the gap is known to be the rounding of bfloat16."
    )


def explain_out_of_memory(packed: Packed, limit: int, fitted: int, error: str) -> str:
    """limit: `train.tokens_per_pass`. fitted: tokens of the largest call that this run has trained on; 0: none."""
    is_known = 0 < fitted < packed.largest_call
    smaller = fitted if is_known else packed.largest_call // 2
    is_least = all(len(chunk.counts) == 1 for chunk in packed.chunks)
    if is_least or smaller <= max(packed.prefix_lengths):
        # a call holds as little as it can: a prompt and one completion
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
