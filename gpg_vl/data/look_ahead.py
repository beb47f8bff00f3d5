"""Rows with something that was found out about each ahead of time, by several threads.

Decoding a picture and computing a digest leave other threads the processor, so they run side by side
while the caller is busy with the rows before.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gpg_vl.data.rows import Row
from gpg_vl.errors import UserError
from gpg_vl.types import Example

T = TypeVar("T")
_MOST_THREADS = 8
"""Each may hold a decoded picture."""


def look_ahead(
    rows: Iterable[Row], look: Callable[[Example], T]
) -> Iterator[tuple[Row, "Future[T] | None"]]:
    """Every row in its order, with what `look` finds out about it; None for a row that became no example.

    A source that breaks off raises its UserError behind the rows that were read before.
    """
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    waiting: deque[tuple[Row, Future[T] | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:
                looked = pool.submit(look, row) if isinstance(row, Example) else None
                waiting.append((row, looked))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft()
        except UserError:
            yield from _drain(waiting)
            raise
        yield from _drain(waiting)


def _drain(waiting: "deque[T]") -> Iterator[T]:
    while waiting:
        yield waiting.popleft()
