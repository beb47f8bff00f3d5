"""The order in which examples are drawn: a seeded permutation per epoch, addressed by position.

There is no iterator and so no iterator state: a run resumes by remembering one number.
"""

from functools import lru_cache

import numpy as np


def index_at(position: int, *, size: int, seed: int) -> int:
    """The example drawn at `position` (0, 1, 2, ... without end) from a data set of `size` examples.

    Every epoch of `size` positions is a permutation of its own.
    """
    return int(_permutation(position // size, size, seed)[position % size])


@lru_cache(maxsize=4)
def _permutation(epoch: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)
