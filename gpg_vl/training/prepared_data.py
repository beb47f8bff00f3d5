"""The data of a run after its check: all sets joined in one order, and facts about each set for the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpg_vl.config import Config
from gpg_vl.data.check import DataReport
from gpg_vl.data.joined import Joined
from gpg_vl.data.order import Interleaved, Listed, Order, Shuffled, Turns
from gpg_vl.data.order_file import read_order
from gpg_vl.models.encode import Encoder
from gpg_vl.training.data_check import load_data
from gpg_vl.training.drawn_rows import DrawnRows
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.training_sets import SourceShare, TrainingSet
from gpg_vl.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSet:
    """A checked data set."""

    name: str
    """The name of the item of `data.sources`; "" for `data.train`."""
    config: Config
    """The config of a run on this set alone."""
    encoder: Encoder
    report: DataReport


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedData:
    """The rows of all sets, numbered consecutively, and the order in which they are drawn."""

    examples: Sequence[Example]
    rows: RowDigests
    order: Order
    numbers: Sequence[int]
    """The rows to draw from; with `data.order` all rows."""
    epoch: int
    """Draws in one pass over the data: the number of rows to draw from, or of rows listed in `data.order`."""
    shares: tuple[SourceShare, ...]
    """The share of each source; empty for a run on one set."""


def join_sets(config: Config, sets: Sequence[TrainingSet]) -> tuple[Sequence[Example], list[range]]:
    """The examples of all sets, and the numbers of the rows of each."""
    if not config.data.sources:
        alone = load_data(sets[0].config)
        return alone, [range(len(alone))]
    joined = Joined({one.name: load_data(one.config) for one in sets})
    return joined, joined.ranges


def read_listed_rows(config: Config, sets: Sequence[TrainingSet]) -> np.ndarray | None:
    """The rows of `data.order`, by their numbers over all sets; None if there is none. Raises UserError."""
    if config.data.order is None:
        return None
    examples, _ = join_sets(config, sets)
    return read_order(Path(config.data.order), examples)


def order_data(
    config: Config,
    sets: Sequence[TrainingSet],
    digests: Sequence[RowDigests],
    drawn: Sequence[DrawnRows],
    listed: np.ndarray | None,
) -> OrderedData:
    """Join the checked sets and make their order.

    drawn: the rows of each set that may be drawn. listed: the result of `read_listed_rows`.
    """
    examples, ranges = join_sets(config, sets)
    chosen = [one.of(numbers) for one, numbers in zip(drawn, ranges, strict=True)]
    order: Order
    if listed is not None:
        order, epoch = Listed(rows=listed), len(listed)
        shares = [float(np.mean((listed >= one.start) & (listed < one.stop))) for one in ranges]
    else:
        order, shares = _take_turns(sets, chosen, config.train.seed)
        epoch = sum(map(len, chosen))

    described = tuple(
        SourceShare(
            name=one.name,
            path=one.config.data.only,
            rows=len(numbers),
            share=share,
            rewards=one.config.rewards.weights,
        )
        for one, numbers, share in zip(sets, chosen, shares, strict=True)
        if one.name
    )
    return OrderedData(
        examples=examples,
        rows=RowDigests(
            texts=b"".join(one.texts for one in digests),
            pictures=b"".join(one.pictures for one in digests),
        ),
        order=order,
        numbers=chosen[0] if len(chosen) == 1 else [n for numbers in chosen for n in numbers],
        epoch=epoch,
        shares=described,
    )


def _take_turns(
    sets: Sequence[TrainingSet], rows: Sequence[Sequence[int]], seed: int
) -> tuple[Order, list[float]]:
    """An order that shuffles each set with its own seeds and interleaves the sets by weight; and the share of each set."""
    orders = [
        Shuffled(rows=numbers, seed=seed, number=number) for number, numbers in enumerate(rows)
    ]
    if len(orders) == 1:
        return orders[0], [1.0]
    turns = Turns(
        [
            len(numbers) if one.weight is None else one.weight
            for one, numbers in zip(sets, rows, strict=True)
        ]
    )
    return Interleaved(orders=orders, turns=turns), list(turns.shares)
