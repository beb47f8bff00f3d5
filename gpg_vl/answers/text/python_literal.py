"""Values as Python writes them, such as `{'box': (1, 2, 3, 4)}`. Nothing in a text is ever run."""

import ast
import warnings
from typing import Any


def python_literal(text: str) -> Any:
    """The value of a text that is a literal of Python, or holds literals; None for any other text.

    Python warns of what may be a slip, such as the escape in `'a\\d'`. The value does not depend
    on whether warnings are shown, ignored or turned into errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
