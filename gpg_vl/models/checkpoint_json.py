"""The JSON files of a checkpoint, in a folder or on the hub."""

import json
from pathlib import Path
from typing import Any

from gpg_vl.errors import UserError
from gpg_vl.hub import is_local_only


def read_json(path: str, revision: str | None, name: str) -> dict[str, Any]:
    """A JSON file of the checkpoint, in a folder or on the hub; {} if it has none.

    Raises UserError if it is not JSON.
    """
    from transformers.utils.hub import cached_file

    file = cached_file(
        path,
        name,
        revision=revision,
        local_files_only=is_local_only(path),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=not is_local_only(path),
    )
    if not file:
        return {}
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name} of {path} cannot be read, it is not JSON: {error}. Copy the file from the original checkpoint."
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{name} of {path} holds {type(content).__name__}, not an object of settings. Copy the file from the "
            f"original checkpoint."
        )
    return content
