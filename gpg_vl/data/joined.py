"""Joins several data sets: the examples of all sets, numbered consecutively, each with the name of
its set."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import overload

from gpg_vl.types import Example


class Joined(Sequence[Example]):
    """The examples of several sets, one after the other, read on access.

    Example: `Joined({"sat": sat, "geo": geo})[len(sat)]` is `replace(geo[0], source="geo")`
    """

    def __init__(self, sets: Mapping[str, Sequence[Example]]) -> None:
        self._names, self._sets = tuple(sets), tuple(sets.values())
        self._ends = list(accumulate(map(len, self._sets)))

    @property
    def ranges(self) -> list[range]:
        """The numbers of the rows of each set."""
        return list(map(range, [0, *self._ends[:-1]], self._ends))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[Example]:
        """Iterate one set after the other, which is faster than access by number."""
        for name, examples in zip(self._names, self._sets, strict=True):
            for example in examples:
                yield replace(example, source=name)

    def _read(self, number: int) -> Example:
        at = bisect_right(self._ends, number)
        first = self._ends[at - 1] if at else 0
        return replace(self._sets[at][number - first], source=self._names[at])
