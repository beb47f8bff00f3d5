"""Uncertainty of scores: percentile bootstrap, paired bootstrap, exact McNemar test; and pass@k.

Axes in this file: `_N` scored rows (a doc, or one of its repeated samples), `_R` resamples. A resample is a row of
`weights_R_N`: how often each row was drawn, as a float. An aggregate is a pure function of a `Sample`, so the value
itself (one row of ones) and its thousand resamples are the same code, and every aggregate sees the same draws.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percentiles of the 95% interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The scores of N rows under R weightings.

    Example: two docs, `Sample(scores_N=[1., 0.], columns={"source": ["COCO", "ADE20K"]}, weights_R_N=[[1., 1.]])`; then
    `mean(source="COCO")` is `[1.]` and `mean()` is `[0.5]`.
    """

    scores_N: Floats
    """NaN for a row that the scorer's rule leaves out."""
    columns: Mapping[str, NDArray[np.str_]]
    """Labels by which rows are selected, each of shape [N]."""
    weights_R_N: Floats
    parts: Mapping[str, Floats] = field(default_factory=dict)
    """Numbers that `ratio` sums, each [N]."""

    def mean(self, **where: str) -> Floats:
        """Weighted mean score of the rows whose columns have these values, [R]; NaN where there is no such row."""
        return self._mean(self.scores_N, where)

    def share(self, least: float, **where: str) -> Floats:
        """Weighted share of these rows that score `least` or more, [R]."""
        return self._mean(
            (self.scores_N >= least).astype(np.float64), where
        )  # NaN is left out below

    def ratio(self, above: str, below: str) -> Floats:
        """Sum of one part over the sum of another, [R]; NaN where the lower sum is 0 or the parts are not there."""
        if above not in self.parts or below not in self.parts:
            return np.full(len(self.weights_R_N), np.nan)
        return _divide(self.weights_R_N @ self.parts[above], self.weights_R_N @ self.parts[below])

    def _mean(self, values_N: Floats, where: Mapping[str, str]) -> Floats:
        chosen_N = ~np.isnan(self.scores_N)
        for column, value in where.items():
            chosen_N &= self.columns[column] == value
        return _divide(
            self.weights_R_N @ np.where(chosen_N, values_N, 0.0),
            self.weights_R_N @ chosen_N.astype(np.float64),
        )


def _divide(above_R: Floats, below_R: Floats) -> Floats:
    quotient_R = np.full(len(below_R), np.nan)
    np.divide(above_R, below_R, out=quotient_R, where=below_R > 0)
    return quotient_R


Aggregate = Callable[[Sample], Floats]


def mean_of(column: str, value: str) -> Aggregate:
    """The mean score of the rows whose `column` has this value."""
    return lambda sample: sample.mean(**{column: value})


def micro_and(column: str, values: Iterable[str]) -> dict[str, Aggregate]:
    """`micro`, the mean score of all rows, and for each value of the column that of its rows."""
    return {"micro": Sample.mean, **{value: mean_of(column, value) for value in values}}


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


def resample(
    strata_N: Sequence[Hashable],
    clusters_N: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int,
) -> Floats:
    """`weights_R_N`: each row draws as many clusters as there are, with replacement, within each stratum.

    The rows of a cluster (the samples of a doc, the expressions of an image) are drawn together; without clusters every
    row is its own. The number of clusters of a stratum is the same in every resample. Deterministic in `seed` and the
    order of rows. Raises ValueError for a cluster in two strata.
    """
    if draws < 1:
        raise ValueError(
            f"{draws} draws were asked for; a bootstrap needs at least 1, and {DRAWS} for an interval."
        )

    # number the clusters of each stratum
    clusters_N = range(len(strata_N)) if clusters_N is None else clusters_N
    members: dict[Hashable, dict[Hashable, int]] = {}
    home: dict[Hashable, Hashable] = {}
    for stratum, cluster in zip(strata_N, clusters_N, strict=True):
        if home.setdefault(cluster, stratum) != stratum:
            raise ValueError(
                f"The cluster {cluster!r} is in the strata {home[cluster]!r} and {stratum!r}."
            )
        known = members.setdefault(stratum, {})
        known.setdefault(cluster, len(known))

    # draw clusters within each stratum, and give their counts to their rows
    generator = np.random.default_rng(seed)
    weights_R_N = np.zeros((draws, len(strata_N)))
    for stratum, known in members.items():
        size = len(known)
        drawn = generator.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        times_R_C = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
        rows = [row for row, its_stratum in enumerate(strata_N) if its_stratum == stratum]
        weights_R_N[:, rows] = times_R_C[:, [known[clusters_N[row]] for row in rows]]
    return weights_R_N


def pass_at(k: int, right: int, of: int) -> float:
    """The chance that at least one of k samples, drawn from `of` without replacement, is among the `right` ones.

    The unbiased estimator of arXiv:2107.03374: 1 - C(of - right, k) / C(of, k).
    """
    if not (1 <= k <= of and 0 <= right <= of):
        raise ValueError(f"pass@{k} of {of} samples with {right} right: k must be from 1 to {of}.")
    return 1.0 - math.comb(of - right, k) / math.comb(of, k)


Parts = Mapping[str, Floats]
_NO_PARTS: Parts = {}


def point(
    aggregate: Aggregate,
    scores_N: Floats,
    columns: Mapping[str, NDArray[np.str_]],
    parts: Parts = _NO_PARTS,
) -> float:
    """The aggregate of the scores themselves; NaN if it needs rows that are not there."""
    ones_1_N = np.ones((1, len(scores_N)))
    return float(
        aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=ones_1_N, parts=parts))[0]
    )


def bootstrap(
    aggregate: Aggregate,
    scores_N: Floats,
    columns: Mapping[str, NDArray[np.str_]],
    weights_R_N: Floats,
    parts: Parts = _NO_PARTS,
) -> Estimate:
    """The aggregate of the scores, with the interval that the resamples give it."""
    return _estimate(
        point(aggregate, scores_N, columns, parts),
        aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=weights_R_N, parts=parts)),
    )


def bootstrap_difference(
    aggregate: Aggregate,
    first_N: Floats,
    second_N: Floats,
    columns: Mapping[str, NDArray[np.str_]],
    weights_R_N: Floats,
    first_parts: Parts = _NO_PARTS,
    second_parts: Parts = _NO_PARTS,
) -> Estimate:
    """aggregate(first) - aggregate(second), two runs on the same docs in the same order.

    Both runs are drawn together, so what makes a doc hard for both does not widen the interval.
    """
    if first_N.shape != second_N.shape:
        raise ValueError(
            f"A paired difference needs the same docs twice; got {len(first_N)} and {len(second_N)} scores."
        )
    runs = ((first_N, first_parts), (second_N, second_parts))
    drawn_R = [
        aggregate(Sample(scores_N=scores_N, columns=columns, weights_R_N=weights_R_N, parts=parts))
        for scores_N, parts in runs
    ]
    values = [point(aggregate, scores_N, columns, parts) for scores_N, parts in runs]
    return _estimate(values[0] - values[1], drawn_R[0] - drawn_R[1])


def mcnemar(first_N: Floats, second_N: Floats) -> McNemar:
    """Exact McNemar test of two runs with scores 0 or 1 on the same docs. Raises ValueError for other scores."""
    if first_N.shape != second_N.shape:
        raise ValueError(
            f"McNemar's test needs the same docs twice; got {len(first_N)} and {len(second_N)} scores."
        )
    if not all(np.isin(scores_N, (0.0, 1.0)).all() for scores_N in (first_N, second_N)):
        raise ValueError(
            "McNemar's test is for scores of 0 and 1; others were given. Use the paired bootstrap alone."
        )
    only_first, only_second = int((first_N > second_N).sum()), int((second_N > first_N).sum())
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(
        only_first=only_first, only_second=only_second, p_value=min(1.0, 2 * tail / 2**discordant)
    )


def _estimate(value: float, drawn_R: Floats) -> Estimate:
    # A group that is not a stratum can be absent from a resample; its mean is then undefined there, not zero.
    known_R = drawn_R[np.isfinite(drawn_R)]
    if not len(known_R):
        return Estimate(value=value, low=math.nan, high=math.nan, stderr=math.nan)
    low, high = np.percentile(known_R, INTERVAL)
    stderr = float(known_R.std(ddof=1)) if len(known_R) > 1 else math.nan
    return Estimate(value=value, low=float(low), high=float(high), stderr=stderr)
