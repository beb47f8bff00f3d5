"""Low-rank adapters (peft), put into the language model in place: the module tree stays that of
transformers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.models.families import Family

ADAPTER = "default"


def add_adapters(
    model: nn.Module, family: Family, *, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> None:
    """Add adapters to the language model's linear layers called `targets` and freeze every other
    weight.

    Dropout is 0: the policy that samples and the one that trains must be the same. The start is the
    model itself (B = 0).
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = []
    for name, module in model.named_modules():
        is_target = isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
        if is_target and family.part_of(name + ".weight") == "language":
            names.append(name)
    if not names:
        raise UserError(
            f"model.lora_targets {list(targets)} names no linear layer of the language model. Usual names are q_proj, "
            f"k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."
        )

    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r
        target_modules=names,
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, model, ADAPTER)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def has_adapters(model: nn.Module) -> bool:
    return bool(_adapter_parameters(model))


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights without adapters, under the names of the plain model."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def merged_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a weight with adapters added in: in bfloat16 the sum would lose what is small beside the weight."""
    return torch.promote_types(dtype, torch.float32)


def merged_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Of each tensor that `merged_weights` gives."""
    from peft.tuners.lora import LoraLayer

    adapted = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    return {
        name: merged_dtype(tensor.dtype) if name in adapted else tensor.dtype
        for name, tensor in plain_weights(model).items()
    }


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def merged_weights(
    model: nn.Module, whole: Callable[[Tensor], Tensor] = _as_it_is
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the plain model with the adapters added in, under their ordinary names, one
    after the other.

    whole: gives all of a tensor of which a process holds a part. The model is left as it is.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }

    for name, part in plain_weights(model).items():
        tensor = whole(part)
        owner, _, kind = name.rpartition(".")
        if owner in layers and kind == "weight":
            layer = layers[owner]
            down = whole(layer.lora_A[ADAPTER].weight.detach())
            up = whole(layer.lora_B[ADAPTER].weight.detach())
            wide = merged_dtype(tensor.dtype)
            tensor = tensor.to(wide) + (up.to(wide) @ down.to(wide)) * layer.scaling[ADAPTER]

        yield name, tensor


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what it would without its adapters."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in _adapter_parameters(model).items()}


def load_adapter_state(model: nn.Module, file: Path) -> None:
    """Put saved adapter weights into a model that has adapters.

    Raises UserError if the names differ.
    """
    from safetensors.torch import load_file

    saved = load_file(file)
    here = _adapter_parameters(model)
    if saved.keys() != here.keys():
        raise UserError(
            f"The adapters in {file} are not those of this config ({len(saved)} saved, {len(here)} expected). Resume with the "
            f"lora settings that the run was started with."
        )

    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(saved[name])


def _adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}
