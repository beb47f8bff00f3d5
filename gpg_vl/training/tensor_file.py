"""Reads files of torch.save without running code."""

from pathlib import Path
from typing import Any

import torch


class DamagedFileError(ValueError):
    """A checkpoint file with invalid content."""


def load_tensors(file: Path) -> Any:
    """Load what `torch.save` has written: tensors, numbers and texts in lists and dictionaries, on the CPU.

    Raises DamagedFileError for any other content.
    """
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # on damaged bytes an unpickler raises almost anything
        first_line = str(error).partition("\n")[0]
        raise DamagedFileError(
            f"{file.name} cannot be read: {type(error).__name__}: {first_line}"
        ) from error
