"""How sure a number is: percentile bootstrap, paired bootstrap, exact McNemar.

Axes in this file: `_N` docs, `_R` resamples. A resample is a row of `weights_R_N`: how often each doc was drawn, as a
float. An aggregate is a pure function of a `Sample`, so the value itself (one row of ones) and its thousand resamples
are the same code, and every aggregate sees the same draws.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percentiles of the 95% interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The scores of N docs under R weightings.

    Example: two docs, `Sample(scores_N=[1., 0.], columns={"source": ["COCO", "ADE20K"]}, weights_R_N=[[1., 1.]])`; then
    `mean(source="COCO")` is `[1.]` and `mean()` is `[0.5]`.
    """

    scores_N: Floats
    columns: Mapping[str, NDArray[np.str_]]
    """Labels that `mean` can choose by, each of shape [N]."""
    weights_R_N: Floats

    def mean(self, **where: str) -> Floats:
        """Weighted mean score of the docs whose columns have these values, [R]; NaN where there is no such doc."""
        chosen_N = np.ones(len(self.scores_N), dtype=bool)
        for column, value in where.items():
            chosen_N &= self.columns[column] == value
        total_R = self.weights_R_N @ (self.scores_N * chosen_N)
        weight_R = self.weights_R_N @ chosen_N.astype(np.float64)
        mean_R = np.full(len(weight_R), np.nan)
        np.divide(total_R, weight_R, out=mean_R, where=weight_R > 0)
        return mean_R


Aggregate = Callable[[Sample], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95% percentile interval and its bootstrap standard error, all in the unit of the score.

    A value whose docs are absent is NaN, and so are its bounds. Where every score is equal the interval has no width:
    the bootstrap cannot tell what it has never seen.

    Example: `Estimate(value=0.7615, low=0.745, high=0.778, stderr=0.0084)`
    """

    value: float
    low: float
    high: float
    stderr: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Docs that exactly one of two runs has right, and how likely a split this uneven is if neither is better.

    Example: `McNemar(only_first=1, only_second=5, p_value=0.21875)`
    """

    only_first: int
    only_second: int
    p_value: float
    """Two-sided, exact: the binomial test of the discordant docs against a fair coin."""


def resample(strata_N: Sequence[Hashable], *, draws: int = DRAWS, seed: int) -> Floats:
    """`weights_R_N`: each row draws as many docs as there are, with replacement, within each stratum.

    The number of docs of a stratum is therefore the same in every row. Deterministic in `seed` and the order of docs.
    """
    if draws < 1:
        raise ValueError(f"{draws} draws were asked for; a bootstrap needs at least 1, and {DRAWS} for an interval.")
    members: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata_N):
        members.setdefault(stratum, []).append(row)
    generator = np.random.default_rng(seed)
    weights_R_N = np.zeros((draws, len(strata_N)))
    for rows in members.values():
        size = len(rows)
        drawn = generator.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        weights_R_N[:, rows] = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return weights_R_N


def point(aggregate: Aggregate, scores_N: Floats, columns: Mapping[str, NDArray[np.str_]]) -> float:
    """The aggregate of the scores themselves; NaN if it needs docs that are not there."""
    ones_1_N = np.ones((1, len(scores_N)))
    return float(aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=ones_1_N))[0])


def bootstrap(
    aggregate: Aggregate, scores_N: Floats, columns: Mapping[str, NDArray[np.str_]], weights_R_N: Floats
) -> Estimate:
    """The aggregate of the scores, with the interval that the resamples give it."""
    return _estimate(
        point(aggregate, scores_N, columns),
        aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=weights_R_N)),
    )


def bootstrap_difference(
    aggregate: Aggregate,
    first_N: Floats,
    second_N: Floats,
    columns: Mapping[str, NDArray[np.str_]],
    weights_R_N: Floats,
) -> Estimate:
    """aggregate(first) - aggregate(second), two runs on the same docs in the same order.

    Both runs are drawn together, so what makes a doc hard for both does not widen the interval.
    """
    if first_N.shape != second_N.shape:
        raise ValueError(
            f"A paired difference needs the same docs twice; got {len(first_N)} and {len(second_N)} scores."
        )
    drawn_R = [
        aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=weights_R_N))
        for scores_N in (first_N, second_N)
    ]
    value = point(aggregate, first_N, columns) - point(aggregate, second_N, columns)
    return _estimate(value, drawn_R[0] - drawn_R[1])


def mcnemar(first_N: Floats, second_N: Floats) -> McNemar:
    """Exact McNemar test of two runs with scores 0 or 1 on the same docs. Raises ValueError for other scores."""
    if first_N.shape != second_N.shape:
        raise ValueError(f"McNemar's test needs the same docs twice; got {len(first_N)} and {len(second_N)} scores.")
    if not all(np.isin(scores_N, (0.0, 1.0)).all() for scores_N in (first_N, second_N)):
        raise ValueError("McNemar's test is for scores of 0 and 1; others were given. Use the paired bootstrap alone.")
    only_first, only_second = int((first_N > second_N).sum()), int((second_N > first_N).sum())
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first=only_first, only_second=only_second, p_value=min(1.0, 2 * tail / 2**discordant))


def _estimate(value: float, drawn_R: Floats) -> Estimate:
    # A group that is not a stratum can be absent from a resample; its mean is then undefined there, not zero.
    known_R = drawn_R[np.isfinite(drawn_R)]
    if not len(known_R):
        return Estimate(value=value, low=math.nan, high=math.nan, stderr=math.nan)
    low, high = np.percentile(known_R, INTERVAL)
    stderr = float(known_R.std(ddof=1)) if len(known_R) > 1 else math.nan
    return Estimate(value=value, low=float(low), high=float(high), stderr=stderr)
