"""The model of a run without weights, built from the checkpoint's config on the meta device."""

from typing import Any

import torch

from gpg_vl.config import Config
from gpg_vl.errors import UserError
from gpg_vl.models.adapters import add_adapters
from gpg_vl.models.families import Family
from gpg_vl.models.load import read_config
from gpg_vl.training.optimizer import freeze


def make_meta_model(config: Config, family: Family) -> Any:
    """The transformers model that would be trained, with adapters and frozen parts, without reading or allocating weights.

    Raises UserError for a config that describes no model, and for layers that cannot be adapted or frozen.
    """
    checkpoint = read_config(config.model.path, config.model.revision)
    with torch.device("meta"):
        return _build(config, family, checkpoint)


def make_empty_model(config: Config, family: Family, checkpoint: Any) -> Any:
    """The same for a given transformers config, but with real buffers on the CPU, which are computed from the config."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return _build(config, family, checkpoint)


def add_configured_adapters(model: Any, family: Family, config: Config) -> None:
    """Put the adapters of the config into a model, if it has any. Raises UserError for layers that cannot have one."""
    if config.model.lora_rank:
        add_adapters(
            model,
            family,
            rank=config.model.lora_rank,
            alpha=config.model.lora_alpha,
            parts=config.model.lora_on,
            targets=config.model.lora_targets,
            seed=config.train.seed,
        )


def _build(config: Config, family: Family, checkpoint: Any) -> Any:
    model = build_model(config.model.path, family, checkpoint)
    add_configured_adapters(model, family, config)
    freeze(model, family, config.model.freeze)
    return model


def build_model(path: str, family: Family, checkpoint: Any) -> Any:
    """The model that a transformers config describes, on the current device. Raises UserError, which names the path, if it
    describes none."""
    import transformers

    try:
        return getattr(transformers, family.model_class)(checkpoint)
    # each model class raises its own kind of error for inconsistent numbers and unknown names
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise UserError(
            f"config.json of {path} describes no {family.model_type} that transformers can build: "
            f"{type(error).__name__}: {error}. Copy the file from the original checkpoint."
        ) from error
