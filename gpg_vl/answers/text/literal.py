"""Values that are written as Python writes them, such as `{'box': (1, 2, 3, 4)}`. Nothing in a text is ever run."""

import ast
import warnings
from typing import Any


def python_literal(text: str) -> Any:
    """The value of a text that is a literal of Python, with containers of literals; None for any other text.

    Python warns of what may be a slip, such as the escape in `'a\\d'`. What the text means does not depend on it, nor on
    whether warnings are shown or turned into errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
