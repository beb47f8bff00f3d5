"""Writes numbers as people do, and recognises numbers that only rounding produces."""

import math
import re
from decimal import Decimal

import numpy as np

_DECIMAL = re.compile(r"[+-]?\d*\.\d{6,}(?:[eE][+-]?\d+)?")
_DIGITS_OF_A_PERSON = 12
_NOISE_DIGITS = 15
_NOISE_DIGITS_32, _WIDTH_32 = 9, 7
_EXACT = 2**53


def write_number(number: float) -> str:
    """A finite number as a person would write it: `3` for 3.0, `0.00001` for 1e-05.

    Programs turn whole numbers into floats if one value of a column is missing. Raises
    ValueError for a whole float whose last digits a float cannot hold: `9007199254740993.0`.
    """
    if isinstance(number, bool):
        return "true" if number else "false"
    if isinstance(number, int):
        return str(number)

    short = repr(number)
    if number.is_integer():
        if abs(number) >= _EXACT and _count_digits(short) > _NOISE_DIGITS:
            raise ValueError("a float holds at most 15 digits of a whole number")
        number = int(number) if abs(number) < _EXACT else number
    return f"{Decimal(repr(number)):f}" if number == 0 or 1e-7 <= abs(number) < 1e21 else short


def likely_written(text: str) -> str | None:
    """The intended number if the digits of a text come from rounding; None for any other text.

    `3.140000104904175` is 3.14 that went through 32 bits, and `0.30000000000000004` is 0.3 that was
    computed in 64. It applies only if a much shorter number is equal within that rounding, so
    `3.14159265358979` and `1.4142135623730951` are left unchanged.

    Example: `likely_written("2.9999999999999996")` is "3".
    """
    text = text.strip()
    if not _DECIMAL.fullmatch(text):
        return None
    value, digits = float(text), _count_digits(text)
    if not math.isfinite(value):
        return None

    if digits >= _NOISE_DIGITS:
        for kept in range(1, _DIGITS_OF_A_PERSON + 1):
            short = float(f"{value:.{kept}g}")
            if abs(short - value) <= 8 * math.ulp(value):
                return write_number(short)

    if digits >= _NOISE_DIGITS_32 and abs(value) <= np.finfo(np.float32).max:
        narrow = np.float32(value)
        is_short = _count_digits(str(narrow)) <= min(_WIDTH_32, digits - 4)
        if float(narrow) == value and is_short:
            return write_number(float(str(narrow)))
    return None


def _count_digits(text: str) -> int:
    """The digits of a number from its first that is not 0 to the last that is written."""
    mantissa = re.split("[eE]", text)[0]
    digits = re.sub(r"[^0-9]", "", mantissa).lstrip("0")
    return len(digits) if "." in mantissa else len(digits.rstrip("0"))
