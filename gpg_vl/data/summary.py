"""Summaries and histograms of many numbers, and tables that show them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.progress_bar import ProgressBar
from rich.table import Table

_BINS = 10
_SHOWN_SIZES = 10


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


def render_lengths(values: Mapping[str, Sequence[int]]) -> Table:
    """Five numbers in a line for each sequence of lengths, none of which is empty."""
    table = Table("", *Summary.__slots__, box=None)
    for name, lengths in values.items():
        summary = summarise(lengths)
        assert summary is not None, name
        table.add_row(name, *(str(getattr(summary, column)) for column in Summary.__slots__))
    return table


def render_histogram(tokens: Sequence[int]) -> Table:
    """Bars of the lengths of prompts, of which there is at least one."""
    bins = histogram(tokens)
    most = max(rows for _, _, rows in bins)
    table = Table("prompt tokens", "rows", "", box=None)
    for low, high, rows in bins:
        bar = ProgressBar(total=most, completed=rows, width=30)
        table.add_row(f"{low}-{high}", str(rows), bar)
    return table


def render_image_sizes(image_sizes: Mapping[tuple[int, int], int]) -> Table:
    """The most frequent (width, height) with their numbers of images."""
    table = Table("image size (seen by the model)", "images", box=None)
    sizes = list(image_sizes.items())
    for (width, height), images in sizes[:_SHOWN_SIZES]:
        table.add_row(f"{width}x{height}", str(images))
    if rest := sizes[_SHOWN_SIZES:]:
        table.add_row(f"{len(rest)} other sizes", str(sum(images for _, images in rest)))
    return table
