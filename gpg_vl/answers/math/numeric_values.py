"""The numbers in a parsed expression, with letters given fixed values: a quick way to see that two are different.

To prove that two expressions differ, sympy simplifies their difference, which may take for ever. But if their values differ
where every letter has one and the same value in both, they are different. Only arithmetic of complex floats is done here.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any

MAX_NODES = 400
TINY = 1e-9
"""Below it two values are compared by their ratio alone, as 2^{-70} is not 2^{-71}."""
INFINITY = complex(1e300)

_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda z: 1 / cmath.tan(z),
    "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z),
    "asin": cmath.asin,
    "acos": cmath.acos,
    "atan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp,
    "Abs": lambda z: complex(abs(z)),
    "UnevaluatedExpr": lambda z: z,
    "factorial": lambda z: complex(math.factorial(_check_small(z))),
}
_CONSTANTS = {
    "Pi": complex(math.pi),
    "Exp1": complex(math.e),
    "ImaginaryUnit": 1j,
    "Infinity": INFINITY,
    "NegativeInfinity": -INFINITY,
}
_CONTAINERS = frozenset({"FiniteSet", "Tuple", "Interval", "Union", "ProductSet"})


class Unknown(Exception):
    """The expression holds something that has no number, such as an inequality or a word."""


class Undefined(Exception):
    """The expression has no finite value there, or one too large for a float."""


def numeric_values(expression: Any) -> list[complex]:
    """The values of an expression: one, or those of the members of a set, tuple or interval, sorted, each once.

    Raises Unknown or Undefined.
    """
    try:
        values = _values(expression, [MAX_NODES])
    except (OverflowError, ZeroDivisionError, ValueError):
        raise Undefined from None
    if not all(cmath.isfinite(value) for value in values):
        raise Undefined
    return sorted(values, key=lambda value: (value.real, value.imag))


def agree(one: list[complex], other: list[complex], tolerance: float) -> bool:
    """True if both hold the same values, but for a relative tolerance; repeated values count once."""
    return all(any(_is_near(a, b, tolerance) for b in other) for a in one) and all(
        any(_is_near(b, a, tolerance) for a in one) for b in other
    )


def _is_near(one: complex, other: complex, tolerance: float) -> bool:
    if one != 0 and other != 0 and max(abs(one), abs(other)) < TINY:
        return abs(one - other) <= tolerance * max(abs(one), abs(other))
    return abs(one - other) <= tolerance * max(abs(one), abs(other)) + 1e-12


def _values(expression: Any, budget: list[int]) -> list[complex]:
    if type(expression).__name__ in _CONTAINERS:
        members = (
            expression.args[:2] if type(expression).__name__ == "Interval" else expression.args
        )
        return [value for member in members for value in _values(member, budget)]
    if getattr(expression, "is_Matrix", False):
        return [_value(member, budget) for member in expression.flat()]
    return [_value(expression, budget)]


def _value(expression: Any, budget: list[int]) -> complex:
    budget[0] -= 1
    kind = type(expression).__name__
    if budget[0] < 0:
        raise Unknown
    if getattr(expression, "is_Number", False) and kind not in _CONSTANTS:
        return complex(float(expression))
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]
    if kind in {"Symbol", "Dummy"}:
        return _letter(expression.name)
    arguments = [_value(argument, budget) for argument in getattr(expression, "args", ())]
    if kind == "Add":
        return sum(arguments, 0j)
    if kind == "Mul":
        return math.prod(arguments, start=1 + 0j)
    if kind == "Pow" and len(arguments) == 2:
        return arguments[0] ** arguments[1]
    if kind == "log" and len(arguments) in (1, 2):
        return cmath.log(arguments[0]) / (cmath.log(arguments[1]) if len(arguments) == 2 else 1)
    if kind in _FUNCTIONS and len(arguments) == 1:
        return _FUNCTIONS[kind](arguments[0])
    raise Unknown


def _letter(name: str) -> complex:
    """The value of a letter: positive, and different for every letter. A word has none."""
    if name in {"e", "E"}:
        return complex(math.e)
    if name == "i":
        return 1j
    if len(name) != 1:
        raise Unknown
    return complex((31 * (ord(name) % 997) + 7) / 2311 + 0.37)


def _check_small(value: complex) -> int:
    number = round(value.real)
    if value.imag != 0 or abs(value.real - number) > 1e-9 or not 0 <= number <= 100:
        raise Unknown
    return number
