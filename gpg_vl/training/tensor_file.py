"""Files of torch.save, read without running code."""

from pathlib import Path
from typing import Any

import torch


class DamagedFileError(ValueError):
    """A file of a checkpoint that does not hold what it should."""


def load_tensors(file: Path) -> Any:
    """What `torch.save` has written: tensors, numbers and texts in lists and dictionaries, on the CPU.

    Raises DamagedFileError for whatever else is in there.
    """
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # on damaged bytes an unpickler raises almost anything
        first_line = str(error).partition("\n")[0]
        raise DamagedFileError(
            f"{file.name} cannot be read: {type(error).__name__}: {first_line}"
        ) from error
