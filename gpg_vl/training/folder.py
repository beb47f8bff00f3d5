"""The run folder: made for a new run, or checked to be that of the run that is resumed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gpg_vl.config import Config, dump_config, parse_config
from gpg_vl.errors import UserError
from gpg_vl.training import checkpoint as checkpoints

HARMLESS = (
    "output.",
    "eval.",
    "train.steps",
    "train.epochs",
    "train.max_wait_minutes",
    "rewards.workers",
    "rewards.time_limit",
    "rollout.prompts_per_batch",
    "rollout.slots",
    "rollout.max_logp_gap",
)
"""Keys that may change between a run and its resumption."""


def open_folder(config: Config, *, resume: bool) -> Path:
    """Make the run folder and write config.yaml, or check that it is the same run.

    Main process only. Raises UserError.
    """
    folder = Path(config.output.folder)
    file = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            _refuse_other_settings(file, config)
        else:
            _refuse_other_run(folder)

        # whole or absent: a torn file would make the run impossible to resume
        partial = file.with_suffix(".partial")
        partial.write_text(dump_config(config), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written: {error}. Choose another output.folder."
        ) from None
    return folder


def _refuse_other_settings(file: Path, config: Config) -> None:
    if not file.exists():
        return

    # what adapters would be like says nothing of a run that has none
    before = _read_first_settings(file)
    has_adapters = config.model.lora_rank or before["model"]["lora_rank"]
    harmless = HARMLESS if has_adapters else (*HARMLESS, "model.lora_")
    changed = [
        f"{name} was {old!r}, is {new!r}"
        for name, old, new in list_changes(before, config.model_dump(mode="json"))
        if not name.startswith(harmless)
    ]
    if changed:
        raise UserError(
            f"The run in {file.parent} was started with other settings: {'; '.join(changed)}. "
            f"Resume with the same ones, or start a new run in another output.folder."
        )


def _refuse_other_run(folder: Path) -> None:
    if (folder / "metrics.jsonl").exists() or checkpoints.latest(folder / "checkpoints"):
        raise UserError(
            f"The folder {folder} already holds a run. Go on with it by --resume, or choose another output.folder."
        )


def _read_first_settings(file: Path) -> dict[str, Any]:
    """The config that a run was started with, in today's terms: keys that it did not know have
    their defaults.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return parse_config(content, str(file)).model_dump(mode="json")
    except UserError as error:
        raise UserError(
            f"The run in {file.parent} cannot be resumed: its config is not understood by this version of gpg_vl. {error}\n"
            f"Go on with the version that started it, or start a new run in another output.folder."
        ) from None


def list_changes(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of every key of a config that has changed."""
    for section, keys in now.items():
        for key, value in keys.items():
            old = before.get(section, {}).get(key)
            if old != value:
                yield f"{section}.{key}", old, value
