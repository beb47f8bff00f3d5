"""Examples that are completed when they are read, such as with the sizes that their boxes are counted in."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from gpg_vl.types import Example


class Placed(Sequence[Example]):
    """The examples of a data set, each as `place` returns it.

    Example: `Placed(examples, encoder.place)`
    """

    def __init__(self, examples: Sequence[Example], place: Callable[[Example], Example]) -> None:
        self._examples, self._place = examples, place

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._place(example) for example in self._examples[index]]
        return self._place(self._examples[index])

    def __iter__(self) -> Iterator[Example]:
        """Iterate in order, which is faster than access by number."""
        return map(self._place, self._examples)
