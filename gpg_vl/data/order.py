"""The order of the examples by position: of one shuffled set, of several interleaved sets, or from a file.

There is no iterator and so no iterator state: a run resumes from one number, and every process finds the same row for the same
position. Other values are only caches that can be computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import Protocol

import numpy as np

_BLOCK = 1024
"""Number of turns computed together."""
_KEPT_BLOCKS = 8


class Order(Protocol):
    """Which row is drawn at each position (0, 1, 2, ... without end)."""

    def row_at(self, position: int) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """Every epoch is a different permutation of the rows.

    Example: `Shuffled(rows=range(12), seed=0).row_at(0)`
    """

    rows: Sequence[int]
    """The row numbers."""
    seed: int
    number: int = 0
    """The number of the set, so that several sets of the same size have different permutations."""

    def row_at(self, position: int) -> int:
        size = len(self.rows)
        return self.rows[index_at(position, size=size, seed=self.seed, number=self.number)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """Interleaves several orders by weight; each continues where it stopped.

    Example: `Interleaved(orders=(first, second), turns=Turns([7, 3]))`
    """

    orders: Sequence[Order]
    turns: "Turns"

    def row_at(self, position: int) -> int:
        which, draw = self.turns.at(position)
        return self.orders[which].row_at(draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Rows in a listed order, repeated every epoch.

    Example: `Listed(rows=[2, 0, 1]).row_at(4) == 0`
    """

    rows: Sequence[int] | np.ndarray

    def row_at(self, position: int) -> int:
        return int(self.rows[position % len(self.rows)])


def index_at(position: int, *, size: int, seed: int, number: int = 0) -> int:
    """The example drawn at `position` (0, 1, 2, ... without end) from a data set of `size` examples.

    Every epoch of `size` positions is a different permutation. number: the number of the set.
    """
    return int(_permutation(position // size, size, seed, number)[position % size])


# enough for the sets that are interleaved, with the previous epoch of each, which surplus groups may belong to
@lru_cache(maxsize=64)
def _permutation(epoch: int, size: int, seed: int, number: int) -> np.ndarray:
    key = (seed, epoch, number) if number else (seed, epoch)
    return np.random.default_rng(key).permutation(size).astype(np.uint32)


class Turns:
    """Which set has the turn at each position, by weights: after n turns each set has had its share of n, within less than
    1.

    The j-th turn of a share w (from 0) is due from turn (j + 1/D) / w on and until (j + 1 - 1/D) / w, with D = 2k - 2 of k
    shares; the one whose time ends first goes first. That never fails, and keeps every share within 1 - 1/D of its due
    (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980). So any window of n turns has each share to
    less than 2, of two shares to 1. All computations use whole numbers. The sequence repeats after as many turns as the sum
    of the weights in lowest terms.

    Example: `[Turns([2, 1]).at(n)[0] for n in range(6)] == [0, 1, 0, 0, 1, 0]`
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """weights: above 0. They are read as the decimal numbers that they print as: 0.7 and 0.3 are 7 and 3 of 10."""
        exact = [Fraction(str(weight)) for weight in weights]
        assert exact, weights
        assert min(exact) > 0, weights
        whole = [int(w * lcm(*(one.denominator for one in exact))) for w in exact]
        self._shares = [w // gcd(*whole) for w in whole]
        self._total = sum(self._shares)
        self._starts: list[tuple[int, ...]] = [(0,) * len(exact)]
        """The turns of each set before each block that has been computed so far."""
        self._blocks: dict[int, list[int]] = {}

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each set."""
        return tuple(share / self._total for share in self._shares)

    def at(self, position: int) -> tuple[int, int]:
        """(the set whose turn it is, how many turns it has had before)."""
        cycle, turn = divmod(position, self._total)
        number, place = divmod(turn, _BLOCK)
        block = self._block(number)
        which = block[place]
        before = cycle * self._shares[which] + self._starts[number][which]
        return which, before + block[:place].count(which)

    def _block(self, number: int) -> list[int]:
        """The sets of all turns in a block. Computes earlier blocks if needed."""
        for unknown in range(len(self._starts) - 1, number):
            self._work_out(unknown)
        if number not in self._blocks:
            self._work_out(number)
        return self._blocks[number]

    def _work_out(self, number: int) -> None:
        shares, total = self._shares, self._total
        bound = max(2 * len(shares) - 2, 2)
        scale = lcm(*shares)
        had = list(self._starts[number])
        block = []
        for turn in range(number * _BLOCK + 1, (number + 1) * _BLOCK + 1):
            due = [
                which
                for which, share in enumerate(shares)
                if bound * (share * turn - total * had[which]) >= total
            ]
            which = min(due, key=lambda one: (bound * (had[one] + 1) - 1) * (scale // shares[one]))
            had[which] += 1
            block.append(which)

        if number + 1 == len(self._starts):
            self._starts.append(tuple(had))
        self._blocks[number] = block
        while len(self._blocks) > _KEPT_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
