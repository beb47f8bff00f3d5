"""Writes the small files of a checkpoint once before training, so that a file that cannot be saved is found early."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpg_vl.config import Config
from gpg_vl.errors import UserError
from gpg_vl.models.adapter_folder import FOLDER, save_adapter_config
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import load_processing, read_generation_config
from gpg_vl.models.save import save_model_configs, save_processing
from gpg_vl.training.meta_model import make_meta_model


def refuse_unsavable(config: Config, encoder: Encoder) -> None:
    """Write config, generation config, tokenizer, processor and adapter config into a temporary folder, and read them back.

    Raises UserError for settings that the libraries can read but not write, and for files that would be read back
    differently.
    """
    path, revision = config.model.path, config.model.revision
    model = make_meta_model(config, encoder.processing.family)
    if (settings := read_generation_config(path, revision)) is not None:
        model.generation_config = settings

    with tempfile.TemporaryDirectory(prefix="gpg_vl_trial_") as name:
        folder = Path(name)
        _try("config", path, partial(save_model_configs, model, folder))
        _try(
            "tokenizer or processor",
            path,
            partial(save_processing, encoder.processing, encoder.limits, folder),
        )
        if config.model.lora_rank:
            adapter = partial(
                save_adapter_config, model, folder / FOLDER, base=path, revision=revision
            )
            _try("adapter config", path, adapter)
        _refuse_other_reading(encoder, folder, path)


def _try(what: str, path: str, write: Callable[[], Any]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(
            f"The {what} of {path} cannot be written into a temporary folder: {error}. Free disk space there, or set TMPDIR."
        ) from None
    # each library raises its own errors
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"The {what} of {path} can be read but not saved, so a run could not save what it has trained: "
            f"{type(error).__name__}: {error}. Correct the setting in the checkpoint's files."
        ) from error


def _refuse_other_reading(encoder: Encoder, folder: Path, path: str) -> None:
    """Raise UserError if the saved tokenizer is read back with other tokens or another chat template."""
    before, after = encoder.processing, load_processing(str(folder))
    if (before.tokens, before.chat_template) != (after.tokens, after.chat_template):
        raise UserError(
            f"The tokenizer of {path} changes when it is saved and read back: {before.tokens} became {after.tokens}, or "
            f"its chat template changed. Save it again with save_pretrained of the installed transformers, and check what "
            f"changes."
        )
