"""The `math_verify` package as published scorers call it: text in, expressions out, within a time limit.

Its own limits use an alarm signal, which exists in the main thread only; elsewhere the time is unlimited, so a text is
cut to a length first.
"""

import logging
import signal
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

Config: TypeAlias = Any
"""One of math_verify's extraction configs; the package has no types."""
DEFAULT: tuple[Config, ...] = (LatexExtractionConfig(), ExprExtractionConfig())
_SECONDS = 5
_LONGEST = 20_000  # characters; what an answer says it says at its end

for _name in (
    "math_verify.parser",
    "math_verify.grader",
):  # they warn of every text without mathematics
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _limit() -> int | None:
    return (
        _SECONDS
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "alarm")
        else None
    )


def parsed_math(text: str, configs: Sequence[Config] = DEFAULT) -> list[Any]:
    """The expressions that `math_verify.parse` finds in a text; [] if there are none or they take too long."""
    return list(_parsed(text[-_LONGEST:], tuple(configs)))


@lru_cache(maxsize=4096)
def _parsed(text: str, configs: tuple[Config, ...]) -> tuple[Any, ...]:
    return tuple(parse(text, list(configs), parsing_timeout=_limit()))


def same_math(gold: Sequence[Any], target: Sequence[Any], *, precision: int = 6) -> bool:
    """`math_verify.verify`, which is not symmetric: gold first."""
    if not (gold and target):
        return False
    return bool(
        verify(list(gold), list(target), float_rounding=precision, timeout_seconds=_limit())
    )
