"""What a user got wrong, as opposed to what we got wrong.

`UserError` is the only exception that the command line turns into a message without a traceback. Its text says what was
given, what is allowed and what to do. Anything else that escapes is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a config, a data set, a checkpoint or the environment. Exit code 2."""


class RunError(RuntimeError):
    """A run that had to stop: a reward that broke, a full disk, a loss that is not a number. Exit code 1."""


def cut(text: str, longest: int = 80) -> str:
    """A text for a message or a cell of a table, of at most so many characters.

    Example: `cut("How many balls are there?", 12)` is `"How many ..."`
    """
    return text if len(text) <= longest else text[: longest - 3] + "..."
