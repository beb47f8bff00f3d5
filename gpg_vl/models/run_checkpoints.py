"""Where the checkpoints of a run are, and the model in them."""

import re
from collections.abc import Sequence
from pathlib import Path

from gpg_vl.errors import UserError

CHECKPOINTS, MODEL = "checkpoints", "model"
STATE = "state.json"
"""The file of a checkpoint by which it is known to be one."""
PREFIX = "step-"


def step_of(checkpoint: Path) -> int | None:
    """The step that the name of a folder says; None if it is not the name of a checkpoint."""
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
            f"There is no checkpoint folder {path}. Give a folder with config.json and weights, or the folder of a run; nothing "
            f"is downloaded."
        )
    if (path / "config.json").is_file():
        return path

    newest = latest(path / CHECKPOINTS)
    for model in (path / MODEL, newest and newest / MODEL):
        if model and (model / "config.json").is_file():
            return model
    if (path / CHECKPOINTS).is_dir() or (path / "metrics.jsonl").is_file():
        raise UserError(
            f"The run in {path} has no complete checkpoint yet. Wait for its first one (output.checkpoint_every), or give the "
            f"checkpoint that it was started from."
        )
    return path


def newest_or_name(path: Path | str) -> str:
    """The path of a model: of a folder what `find_model` finds, and anything else as it is: it may be a name on the hub.

    Raises UserError for a run without a complete checkpoint.
    """
    return str(find_model(Path(path)) if Path(path).is_dir() else path)
