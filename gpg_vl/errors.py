"""What a user got wrong, as opposed to what we got wrong.

`UserError` is the only exception that the command line turns into a message without a traceback. Its text says what was
given, what is allowed and what to do. Anything else that escapes is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a config, a data set, a checkpoint or the environment. Exit code 2."""


class RunError(RuntimeError):
    """A run that had to stop: a reward that broke, a full disk, a loss that is not a number. Exit code 1."""
