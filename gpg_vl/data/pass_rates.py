"""Pass rates: how often a model solves each row, and which rows are expected to carry a signal. Used by `gpg-vl data
rate`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple, TypeGuard

BINS = 10
"""Number of bins in the histogram of pass rates from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRate:
    """The counted answers of a model to one row.

    Example: two answers, the second right: `RowRate(number=7, id="a7", digest="9f86...", right=1, rewards=(0.2, 1.2),
    parts={"choice": 0.5, "format": 1.0})`
    """

    number: int
    """The number of the row in its data set, from 0."""
    id: str
    digest: str
    """The digest of the row's text and images, in hexadecimal digits."""
    right: int
    """Number of answers with full marks in the first reward, like `accuracy` in the metrics."""
    rewards: tuple[float, ...]
    """The weighted sum of rewards of each answer."""
    parts: Mapping[str, float]
    """The unweighted mean of each reward function."""

    @property
    def samples(self) -> int:
        return len(self.rewards)

    @property
    def pass_rate(self) -> float:
        """The share of answers that are right."""
        return self.right / len(self.rewards)

    @property
    def reward(self) -> float:
        """The mean of the totals."""
        return sum(self.rewards) / len(self.rewards)

    def to_json(self) -> dict[str, Any]:
        """The record in the file. Pass rate and mean reward are for human readers and are not read back."""
        return {
            "number": self.number,
            "id": self.id,
            "digest": self.digest,
            "samples": self.samples,
            "pass_rate": self.pass_rate,
            "reward": self.reward,
            "right": self.right,
            "rewards": list(self.rewards),
            "parts": dict(self.parts),
        }


def parse_rate(record: object, *, rows: int, samples: int) -> RowRate | None:
    """Parse a record; None unless it is a record of one of `rows` rows with `samples` answers."""
    if not isinstance(record, dict):
        return None
    number, right, rewards, parts = (record.get(k) for k in ("number", "right", "rewards", "parts"))
    if not (_is_count(number, below=rows) and _is_count(right, below=samples + 1)):
        return None
    if not isinstance(rewards, list) or len(rewards) != samples or not all(map(_is_real, rewards)):
        return None
    if not isinstance(parts, dict) or not all(map(_is_real, parts.values())):
        return None
    if not isinstance(record.get("id"), str) or not isinstance(record.get("digest"), str):
        return None
    return RowRate(
        number=number,
        id=record["id"],
        digest=record["digest"],
        right=right,
        rewards=tuple(map(float, rewards)),
        parts={name: float(value) for name, value in parts.items()},
    )


def share_with_signal(rewards: Sequence[float], group_size: int) -> float:
    """An estimate of the chance that a group of `group_size` answers to a row carries a signal, from the rewards of k answers.

    Of all choices of G of the k answers, the share whose rewards are not all equal: 1 - sum over values v of
    C(n_v, G) / C(k, G), where n_v answers have the reward v. For k >= G its expectation is that chance, which for rewards of
    0 and 1 is 1 - p^G - (1-p)^G (a U-statistic; the same formula with p = n_1 / k in it is biased). With fewer answers than
    a group has, it is the estimate for groups of k, whose expectation is lower than that of larger groups.
    """
    size = min(group_size, len(rewards))
    equal = sum(comb(number, size) for number in Counter(rewards).values())
    return 1.0 - equal / comb(len(rewards), size)


class Difficulty(NamedTuple):
    """A summary of the rates of a data set.

    Example: `Difficulty(rows=4, never=1, always=0, mean=0.375, signal=0.6, bins=(1, 0, 2, 0, 0, 1, 0, 0, 0, 0))`
    """

    rows: int
    never: int
    """Rows that are never solved."""
    always: int
    """Rows that are always solved."""
    mean: float
    """The mean pass rate."""
    signal: float
    """The expected share of groups with signal, see `share_with_signal`."""
    bins: tuple[int, ...]
    """Rows by pass rate: from 0 to below 0.1, and so on; 1 is in the last one."""


def summarise(rates: Iterable[RowRate], group_size: int) -> Difficulty:
    """The difficulty of at least one rated row, for groups of `group_size` answers."""
    listed = list(rates)
    bins = Counter(min(BINS * rate.right // rate.samples, BINS - 1) for rate in listed)
    return Difficulty(
        rows=len(listed),
        never=sum(rate.right == 0 for rate in listed),
        always=sum(rate.right == rate.samples for rate in listed),
        mean=sum(rate.pass_rate for rate in listed) / len(listed),
        signal=sum(share_with_signal(rate.rewards, group_size) for rate in listed) / len(listed),
        bins=tuple(bins[number] for number in range(BINS)),
    )


class Chosen(NamedTuple):
    """The rows within bounds, and how many are outside.

    Example: `Chosen(numbers=(0, 3, 4), below=2, above=1)`
    """

    numbers: tuple[int, ...]
    """Row numbers in the order of the data."""
    below: int
    above: int


def choose_rows(rates: Iterable[RowRate], low: float, high: float) -> Chosen:
    """The numbers of the rows whose pass rate is from `low` to `high`, both included."""
    listed = sorted(rates, key=lambda rate: rate.number)
    return Chosen(
        numbers=tuple(rate.number for rate in listed if low <= rate.pass_rate <= high),
        below=sum(rate.pass_rate < low for rate in listed),
        above=sum(rate.pass_rate > high for rate in listed),
    )


def _is_count(value: object, *, below: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < below


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
