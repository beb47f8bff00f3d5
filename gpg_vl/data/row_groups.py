"""Row groups of Parquet files that were read a moment ago: a row may be asked for after others of its group."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import pyarrow as pa

KEPT_BYTES = 32 << 20
"""Of unpacked row groups, per process."""


class RowGroups:
    """Unpacked row groups up to a number of bytes; those that were asked for longest ago are let go of first."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, pa.Table] = OrderedDict()
        self._bytes = 0

    def find(self, key: Hashable, size: int, read: Callable[[], pa.Table]) -> pa.Table | None:
        """The row group called `key`, read if it is not kept; None if it is too large to be unpacked whole.

        size: its bytes as the file states them, unpacked.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if size > self._limit:
            return None

        table = read()
        self._kept[key] = table
        self._bytes += table.nbytes
        while self._bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return table
