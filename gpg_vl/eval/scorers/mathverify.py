"""Calls the `math_verify` package like published scorers: parses a text into expressions, with a time limit.

The limit is of CPU time and works in the main thread only; elsewhere the time is unlimited, so a text is cut to a length
first.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from gpg_vl.answers.math.cpu_limit import within_cpu_seconds

Config: TypeAlias = Any
"""One of math_verify's extraction configs; the package has no types."""
DEFAULT: tuple[Config, ...] = (LatexExtractionConfig(), ExprExtractionConfig())
_SECONDS = 5
_LONGEST = 20_000  # characters; the answer is at the end of a text

for _name in (
    "math_verify.parser",
    "math_verify.grader",
):  # they warn of every text without mathematics
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def parse_math(text: str, configs: Sequence[Config] = DEFAULT) -> list[Any]:
    """The expressions that `math_verify.parse` finds in a text; [] if there are none or they take too long."""
    return list(_parse_cached(text[-_LONGEST:], tuple(configs)))


@lru_cache(maxsize=4096)
def _parse_cached(text: str, configs: tuple[Config, ...]) -> tuple[Any, ...]:
    def read() -> tuple[Any, ...]:
        return tuple(parse(text, list(configs), parsing_timeout=None))

    return within_cpu_seconds(_SECONDS, read, otherwise=())


def same_math(gold: Sequence[Any], target: Sequence[Any], *, precision: int = 6) -> bool:
    """`math_verify.verify`, which is not symmetric: gold first."""
    if not (gold and target):
        return False

    def compare() -> bool:
        sides = list(gold), list(target)
        return bool(verify(*sides, float_rounding=precision, timeout_seconds=None))

    return within_cpu_seconds(_SECONDS, compare, otherwise=False)
