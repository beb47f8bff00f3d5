"""LoRA adapters (peft), added to a model in place, so that the module tree stays that of transformers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.models.adapter_layers import choose_layers
from gpg_vl.models.families import Family

ADAPTER = "default"


def add_adapters(
    model: nn.Module,
    family: Family,
    *,
    rank: int,
    alpha: float,
    seed: int,
    parts: Sequence[str] = ("language",),
    targets: Sequence[str] | None = None,
) -> None:
    """Add adapters to linear layers of `parts` and freeze every other weight.

    targets: names of layers, see `choose_layers`; None takes all layers of the parts.

    Dropout is 0: the policy that samples and the one that trains must be the same. At the start adapters change nothing
    (B = 0). Raises UserError for parts or layers that the model does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r
        target_modules=choose_layers(model, family, parts=parts, targets=targets),
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, model, ADAPTER)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def has_adapters(model: nn.Module) -> bool:
    return bool(adapter_parameters(model))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the adapters, by their names in the model."""
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights without adapters, by their names in the plain model."""
    # return the parameter objects themselves, because a sharding identifies them as objects
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }


def merged_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight with merged adapters: in bfloat16 the sum would lose small changes."""
    return torch.promote_types(dtype, torch.float32)


def adapted_weights(model: nn.Module) -> set[str]:
    """The names in the plain model of the weights that have adapters."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }


def merged_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of each tensor that `merged_weights` yields."""
    adapted = adapted_weights(model)
    return {
        name: merged_dtype(tensor.dtype) if name in adapted else tensor.dtype
        for name, tensor in plain_weights(model).items()
    }


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def merged_weights(
    model: nn.Module, whole: Callable[[Tensor], Tensor] = _as_it_is
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the plain model with merged adapters, by their ordinary names.

    whole: a function that returns the full tensor for a sharded one. The model is not changed.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }

    for name, part in plain_weights(model).items():
        tensor = whole(part).detach()
        owner, _, kind = name.rpartition(".")
        if owner in layers and kind == "weight":
            layer = layers[owner]
            down = whole(layer.lora_A[ADAPTER].weight).detach()
            up = whole(layer.lora_B[ADAPTER].weight).detach()
            wide = merged_dtype(tensor.dtype)
            tensor = tensor.to(wide) + (up.to(wide) @ down.to(wide)) * layer.scaling[ADAPTER]

        yield name, tensor


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes without its adapters."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [p for p in adapter_parameters(model).values() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)

    # peft freezes adapters that it turns off; undo it, because image features count as constant if nothing is trained
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
