"""Computes something for each row ahead of time, in several threads.

Decoding an image and computing a digest release the interpreter lock, so they run in parallel while the
caller works on earlier rows.
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
"""The limit exists because each thread may hold a decoded image."""


def look_ahead(
    rows: Iterable[Row], look: Callable[[Example], T]
) -> Iterator[tuple[Row, "Future[T] | None"]]:
    """Yield every row in order with the result of `look`; None for a row that could not be parsed.

    If the source fails, its UserError is raised after the rows that were read before.
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
