"""Finds the checkpoints of a run, and the model in them."""

import re
from collections.abc import Sequence
from pathlib import Path

from gpg_vl.errors import UserError

CHECKPOINTS, MODEL = "checkpoints", "model"
STATE = "state.json"
"""The file by which a folder is recognised as a checkpoint."""
PREFIX = "step-"


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint folder; None if it is not such a name."""
    found = re.fullmatch(rf"{PREFIX}(\d+)", checkpoint.name)
    return int(found[1]) if found else None


def by_step(folder: Path) -> Sequence[Path]:
    """The folders of checkpoints, complete or not, the oldest first."""
    found = [
        (step, path) for path in folder.glob(f"{PREFIX}*") if (step := step_of(path)) is not None
    ]
    return [path for _, path in sorted(found)]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = [path for path in by_step(folder) if (path / STATE).is_file()]
    return found[-1] if found else None


def find_model(path: Path) -> Path:
    """The folder of a model: `path` itself, that of a checkpoint, or that of the newest checkpoint of a run folder.

    Raises UserError if there is none.
    """
    if not path.is_dir():
        raise UserError(
            f"There is no checkpoint folder {path}. Give a folder with config.json and weights, or the folder of a run; "
            f"names on the hub are not allowed here."
        )
    if (path / "config.json").is_file():
        return path

    newest = latest(path / CHECKPOINTS)
    for model in (path / MODEL, newest and newest / MODEL):
        if model and (model / "config.json").is_file():
            return model
    if (path / CHECKPOINTS).is_dir() or (path / "metrics.jsonl").is_file():
        raise UserError(
            f"The run in {path} has no complete checkpoint yet. Wait for its first one (output.checkpoint_every), or give "
            f"the checkpoint from which it was started."
        )
    return path


def newest_or_name(path: Path | str) -> str:
    """The path of a model: for a folder the result of `find_model`; anything else unchanged, because it may be a hub name.

    Raises UserError for a run without a complete checkpoint.
    """
    return str(find_model(Path(path)) if Path(path).is_dir() else path)
