"""Many whole numbers, such as the lengths of prompts, in a few."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A distribution in five numbers; the median and the 95th percentile are values that occur
    (nearest rank).

    Example: of 1, 2, 3, 10: `Summary(total=16, min=1, median=2, p95=10, max=10)`
    """

    total: int
    min: int
    median: int
    p95: int
    max: int


def summarise(values: Sequence[int]) -> Summary | None:
    """Five numbers about the values, or None if there are none."""
    if not values:
        return None

    ordered = sorted(values)
    return Summary(
        total=sum(ordered),
        min=ordered[0],
        median=ordered[_nearest_rank(len(ordered), 50)],
        p95=ordered[_nearest_rank(len(ordered), 95)],
        max=ordered[-1],
    )


def _nearest_rank(number: int, percent: int) -> int:
    """The index of the smallest value that at least `percent` of all values do not exceed."""
    return -(-percent * number // 100) - 1


def histogram(values: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(from, to, number of values), both ends included, in at most ten intervals of equal width."""
    if not values:
        return ()

    low, high = min(values), max(values)
    width = (high - low) // _BINS + 1
    numbers = Counter((value - low) // width for value in values)
    bins = []
    for start in range(low, high + 1, width):
        bins.append((start, start + width - 1, numbers[(start - low) // width]))
    return tuple(bins)
