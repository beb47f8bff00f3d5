"""Numbers of tokens made standard over the whole step: mean 0, deviation 1."""

from math import sqrt

from jaxtyping import Float
from torch import Tensor

from gpg_vl.algorithms.algorithm import StepBatch

VARIANCE_FLOOR = 1e-8
"""Added to the variance, as OpenRLHF and verl do."""


def whiten(values_K: Float[Tensor, "K"], batch: StepBatch) -> Float[Tensor, "K"]:
    """(value - mean) / deviation (ddof 1) over the tokens of all processes; 0 where all are equal."""
    tokens = batch.counts.tokens
    (total,) = batch.total([float(values_K.sum())])
    centred_K = values_K - total / max(tokens, 1)

    (squares,) = batch.total([float(centred_K.square().sum())])
    return centred_K / sqrt(squares / max(tokens - 1, 1) + VARIANCE_FLOOR)
