"""Finds weights that are NaN or infinite before they are used for sampling or saved."""

from collections.abc import Iterable, Iterator
from math import isfinite

from torch import Tensor

from gpg_vl.errors import RunError, UserError


class NonFiniteWeightsError(RunError):
    """Weights are NaN or infinite, so everything computed with them is meaningless."""


def check_finite(weights: Iterable[tuple[str, Tensor]], step: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the same weights and check each of them.

    step: the number of optimizer steps they have received. Raises NonFiniteWeightsError at the first one that is not
        finite.
    """
    for name, tensor in weights:
        if not _is_finite(tensor):
            raise NonFiniteWeightsError(_explain(name, step))
        yield name, tensor


def refuse_non_finite(weights: Iterable[tuple[str, Tensor]], step: int) -> None:
    """Check all weights. Raises NonFiniteWeightsError, or UserError for the weights at the start of a run."""
    # always iterate to the end: for sharded weights each tensor is a collective of all processes
    broken = [name for name, tensor in weights if not _is_finite(tensor)]
    if not broken:
        return
    if step:
        raise NonFiniteWeightsError(_explain(broken[0], step))
    raise UserError(
        f"The initial weights are not finite: {broken[0]} has NaN or infinity. All weights must be finite. Download the "
        f"checkpoint in model.path again, or choose another."
    )


def _explain(name: str, step: int) -> str:
    return (
        f"The weights after step {step} are not finite: {name} holds NaN or infinity. The run has stopped, and these "
        f"weights were not saved. Resume from the last complete checkpoint with --resume; if it happens again, start a "
        f"new run with a smaller train.learning_rate, or in float32."
    )


def _is_finite(tensor: Tensor) -> bool:
    """Checks minimum and maximum, which are NaN if any number is; this needs no extra memory."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    smallest, largest = tensor.detach().aminmax()
    return isfinite(smallest.item()) and isfinite(largest.item())
