"""A cache of recently read row groups of Parquet files, because rows of the same group are often read together."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import pyarrow as pa

KEPT_BYTES = 32 << 20
"""Maximum bytes of unpacked row groups per process."""


class RowGroups:
    """A cache of unpacked row groups with a byte limit; the least recently used are dropped first."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, pa.Table] = OrderedDict()
        self._bytes = 0

    def find(self, key: Hashable, size: int, read: Callable[[], pa.Table]) -> pa.Table | None:
        """The row group `key`, read if it is not cached; None if it is too large to be unpacked completely.

        size: its unpacked bytes according to the file.
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
