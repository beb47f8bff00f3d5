"""Adapters in a folder of peft's own format, which `PeftModel.from_pretrained` loads onto the base model.

adapter_config.json             rank, alpha, the layers that have adapters, the base model
adapter_model.safetensors       the two matrices of each of them
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
"""In a checkpoint."""
_EARLIER = "adapters.safetensors"
"""In a checkpoint of an earlier version, under the names that the weights have in the model."""
_PREFIX = "base_model.model."
"""Of the names in the file: peft wraps the model twice."""


def save_adapters(
    model: Any,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    base: str,
    revision: str | None = None,
) -> None:
    """Write the adapters of a transformers model.

    weights: whole tensors, under the names that they have in the model.
    base: the checkpoint that the adapters are to be put on, and its revision on the hub.
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
        # by which peft finds the class of the base when nobody says it
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
    }
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)  # sets, in one order
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapters(model: nn.Module, checkpoint: Path) -> None:
    """Put the adapter weights of a checkpoint into a model that has such adapters.

    Raises UserError if they are others, OSError or what reading a damaged file raises.
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
    """Without the name of the adapter, of which a folder holds one."""
    return _PREFIX + name.replace(f".{ADAPTER}.", ".")
