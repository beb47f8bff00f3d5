"""Errors that are reported to the user as a message, as opposed to bugs.

The command line prints a `UserError` or a `RunError` as a message without a traceback. The message says what was given,
what is allowed and what to do. Any other exception that escapes is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a config, a data set, a checkpoint or the environment. Exit code 2."""


class RunError(RuntimeError):
    """A run that had to stop, for example because a reward failed, the disk is full or the loss is NaN. Exit code
    1."""


def cut(text: str, longest: int = 80) -> str:
    """Shorten a text to at most `longest` characters, for a message or a table cell.

    Example: `cut("How many balls are there?", 12)` is `"How many ..."`
    """
    return text if len(text) <= longest else text[: longest - 3] + "..."
