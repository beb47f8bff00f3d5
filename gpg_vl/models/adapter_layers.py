"""Selects the layers of a model that get adapters, by the names and parts in a config."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.registry import did_you_mean

PARTS = {"language": "the language model", "merger": "the merger", "vision": "the vision tower"}


def choose_layers(
    model: nn.Module, family: Family, *, parts: Sequence[str], targets: Sequence[str] | None
) -> list[str]:
    """The full names of the linear layers of these parts that `targets` selects.

    targets: names, or last parts of dotted names. Each must match a layer in one of the parts, and each part must have a
    match. None selects all linear layers of the parts. The head is never included. Raises UserError.
    """
    if not family.has_vision and (wrong := [part for part in parts if part != "language"]):
        raise UserError(
            f"model.lora_on names {', '.join(wrong)}, but {family.model_type} has no vision. Set model.lora_on to [language]."
        )

    layers = _linear_layers(model, family)
    for target in targets or ():
        _refuse_unadaptable(target, model, layers)
        _refuse_unknown(target, layers, parts)

    chosen: list[str] = []
    for part in parts:
        names = [name for name in layers[part] if targets is None or _is_called(name, targets)]
        if not names:
            raise UserError(
                f"model.lora_targets is {targets and list(targets)}, but no linear layer of {PARTS[part]}, which is in "
                f"model.lora_on, has such a name. Known: {_known(layers[part])}. Name one of them, leave "
                f"model.lora_targets out for all of them, or take {part} out of model.lora_on."
            )
        chosen += names
    return chosen


def _linear_layers(model: nn.Module, family: Family) -> Mapping[str, list[str]]:
    """Names of the linear layers of each part, in the model's order. Without the head, whose weight is read directly and
    not through its module."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # every transformers model has it
    layers: dict[str, list[str]] = {part: [] for part in PARTS}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            layers[family.part_of(name + ".weight")].append(name)
    return layers


def _refuse_unadaptable(target: str, model: nn.Module, layers: Mapping[str, list[str]]) -> None:
    """Refuse a name that matches only modules without adapters: the head, embeddings, norms, convolutions, blocks."""
    adaptable = {name for names in layers.values() for name in names}
    called = [name for name, _ in model.named_modules() if name and _is_called(name, [target])]
    if not called or adaptable & set(called):
        return

    kind = type(model.get_submodule(called[0])).__name__
    raise UserError(
        f"model.lora_targets names {target!r}, the {kind} {called[0]}, on which gpg_vl puts no adapters: only linear "
        f"layers other than the head can have one. Known: {_known(n for names in layers.values() for n in names)}. Take "
        f"{target!r} out of model.lora_targets; to train it, train all weights (model.lora_rank 0)."
    )


def _refuse_unknown(target: str, layers: Mapping[str, list[str]], parts: Sequence[str]) -> None:
    having = [part for part in layers if any(_is_called(name, [target]) for name in layers[part])]
    if any(part in parts for part in having):
        return
    if having:
        raise UserError(
            f"model.lora_targets names {target!r}, a layer of {PARTS[having[0]]}, but model.lora_on is {list(parts)}. Add "
            f"{having[0]} to model.lora_on, or take {target!r} out of model.lora_targets."
        )

    chosen = " and ".join(PARTS[part] for part in parts)
    known = _short_names(name for part in parts for name in layers[part])
    raise UserError(
        f"model.lora_targets names {target!r}, but no linear layer of {chosen} has such a name. "
        f"{did_you_mean(target, known)} Correct the name, or leave model.lora_targets out for all of them."
    )


def _is_called(name: str, targets: Iterable[str]) -> bool:
    """Whether a target matches the name, by peft's rule."""
    return any(name == target or name.endswith("." + target) for target in targets)


def _known(names: Iterable[str]) -> str:
    return ", ".join(_short_names(names)) or "(none)"


def _short_names(names: Iterable[str]) -> list[str]:
    """`q_proj`, `fc1`; with the part before it if it is only a number: `mlp.0`. Each once, in order."""
    short = []
    for name in names:
        owner, _, last = name.rpartition(".")
        short.append(f"{owner.rpartition('.')[2]}.{last}" if last.isdecimal() else last)
    return list(dict.fromkeys(short))
