"""Weights that are no numbers: found before they are sampled from, and before they are kept."""

from collections.abc import Iterable, Iterator
from math import isfinite

from torch import Tensor

from gpg_vl.errors import RunError, UserError


class NonFiniteWeightsError(RunError):
    """Weights hold NaN or infinity: nothing that is computed with them means anything."""


def check_finite(weights: Iterable[tuple[str, Tensor]], step: int) -> Iterator[tuple[str, Tensor]]:
    """The same weights, each of which was looked at.

    step: optimizer steps that they have behind them. Raises NonFiniteWeightsError at the first that is not finite.
    """
    for name, tensor in weights:
        if not _is_finite(tensor):
            raise NonFiniteWeightsError(_explain(name, step))
        yield name, tensor


def refuse_non_finite(weights: Iterable[tuple[str, Tensor]], step: int) -> None:
    """Look at all weights. Raises NonFiniteWeightsError, or UserError for those that a run would begin with."""
    # to the end in any case: where weights are spread, each of them is a collective of all processes
    broken = [name for name, tensor in weights if not _is_finite(tensor)]
    if not broken:
        return
    if step:
        raise NonFiniteWeightsError(_explain(broken[0], step))
    raise UserError(
        f"The weights that the run would begin with are not finite: {broken[0]} holds NaN or infinity. Every number must be "
        f"finite. Get the checkpoint in model.path anew, or choose another."
    )


def _explain(name: str, step: int) -> str:
    return (
        f"The weights after step {step} are not finite: {name} holds NaN or infinity. The run has stopped, and no checkpoint "
        f"of them is kept. Resume from the last complete one with --resume; if they break again, start a new run with a "
        f"smaller train.learning_rate, or in float32."
    )


def _is_finite(tensor: Tensor) -> bool:
    """Smallest and largest carry a NaN on, and cost no memory."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    smallest, largest = tensor.detach().aminmax()
    return isfinite(smallest.item()) and isfinite(largest.item())
