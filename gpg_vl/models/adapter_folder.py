"""Saves and loads adapters in peft's folder format, which `PeftModel.from_pretrained` loads onto the base model.

adapter_config.json             rank, alpha, the layers that have adapters, the base model
adapter_model.safetensors       the two matrices of each layer
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.models.adapters import ADAPTER, adapter_parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FOLDER = "adapter"
"""The adapter folder in a checkpoint."""
_EARLIER = "adapters.safetensors"
"""The adapter file in checkpoints of an earlier version, with the names of the model."""
_PREFIX = "base_model.model."
"""The prefix of names in the file, because peft wraps the model twice."""


def save_adapters(
    model: Any,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    base: str,
    revision: str | None = None,
) -> None:
    """Write the adapters of a transformers model.

    weights: whole tensors, with their names in the model.
    base: the checkpoint that the adapters belong to, and its revision on the hub.
    """
    from safetensors.torch import save_file

    assert weights.keys() == adapter_parameters(model).keys()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_saved_name(name): w.detach().cpu().contiguous() for name, w in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    save_adapter_config(model, folder, base=base, revision=revision)


def save_adapter_config(
    model: Any, folder: Path, *, base: str, revision: str | None = None
) -> None:
    """Write adapter_config.json of a model that has adapters; see `save_adapters`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = model.peft_config[ADAPTER].to_dict()
    alpha = settings["lora_alpha"]
    settings |= {
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        # some readers want a whole number
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        # peft uses it to find the class of the base model
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
    }
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)  # sets, in one order
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapters(model: nn.Module, checkpoint: Path) -> None:
    """Put the adapter weights of a checkpoint into a model that has such adapters.

    Raises UserError if the adapters differ, OSError or the errors of reading a damaged file.
    """
    from safetensors.torch import load_file

    file = checkpoint / FOLDER / WEIGHTS
    if file.is_file() or not (checkpoint / _EARLIER).is_file():
        saved = load_file(file)
    else:
        file = checkpoint / _EARLIER
        saved = {_saved_name(name): tensor for name, tensor in load_file(file).items()}

    here = {_saved_name(name): p for name, p in adapter_parameters(model).items()}
    if _shapes(saved) != _shapes(here):
        raise UserError(
            f"The adapters in {file} are not those of this config: {len(saved)} tensors are saved, {len(here)} expected, or "
            f"their shapes differ. Resume with the lora settings that the run was started with."
        )

    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(saved[name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _saved_name(name: str) -> str:
    """The name in the file, without the adapter's name, because a folder has only one adapter."""
    return _PREFIX + name.replace(f".{ADAPTER}.", ".")
