"""The run folder: create it for a new run, or check that it belongs to the run that is resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpg_vl.config import Config, dump_config
from gpg_vl.errors import UserError
from gpg_vl.models.run_checkpoints import CHECKPOINTS as CHECKPOINTS
from gpg_vl.models.run_checkpoints import latest
from gpg_vl.training.identity import refuse_other_settings

METRICS = "metrics.jsonl"
_SETTINGS = "config.yaml"


def open_folder(config: Config, *, resume: bool) -> Path:
    """Create the run folder and write config.yaml, or check that it belongs to the same run.

    Main process only. Raises UserError.
    """
    folder = Path(config.output.folder)
    file = folder / _SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            _refuse_other_run(folder)
        elif file.exists():
            refuse_other_settings(_read_settings(file), config.model_dump(mode="json"), str(folder))

        # write atomically: with a partial file the run could not be resumed
        partial = file.with_suffix(".partial")
        partial.write_text(dump_config(config), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written: {error}. Choose another output.folder."
        ) from None
    return folder


def _refuse_other_run(folder: Path) -> None:
    if (folder / METRICS).exists() or latest(folder / CHECKPOINTS):
        raise UserError(
            f"The folder {folder} already holds a run. Resume it with --resume, or choose another output.folder."
        )


def _read_settings(file: Path) -> Mapping[str, Any]:
    """The config that a run was started with."""
    problem = "it holds no sections"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: also for bytes that are not UTF-8
        content, problem = None, " ".join(str(error).split())
    if isinstance(content, dict):
        return content
    raise UserError(
        f"The settings of the run in {file.parent} cannot be read, {file} is damaged: {problem}. Restore it from a copy, "
        f"or delete it: each checkpoint has the settings in its manifest.json, and --resume compares with those."
    )
