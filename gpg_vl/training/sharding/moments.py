"""What an optimizer keeps of each weight, compared before it is loaded: a fused step does not check shapes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpg_vl.training import eight_bit
from gpg_vl.training.adamw import MOMENTS, SCALE, NarrowAdamW, takes_codes
from gpg_vl.training.tensor_file import DamagedFileError

STEP = "step"
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor that is kept of a weight, by its name."""


def layout_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Layout:
    """What this run's AdamW keeps of a weight once it has stepped; of one that is spread, shapes of the whole."""
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {STEP: ((), torch.float32)}
    shape = tuple(parameter.shape)
    dtype, as_codes = parameter.dtype, False
    if isinstance(optimizer, NarrowAdamW):
        dtype, as_codes = torch.float32, optimizer.keeps_codes and takes_codes(parameter)
    for name in MOMENTS:
        layout[name] = (shape, torch.uint8 if as_codes else dtype)
        if as_codes:
            layout[name + SCALE] = (eight_bit.scale_shape(parameter.shape), torch.float32)
    return layout


def refuse_other_moments(name: str, saved: Layout, expected: Layout) -> None:
    """Raises DamagedFileError if what was saved of the weight `name` is not what the optimizer keeps of it."""
    if saved.keys() != expected.keys():
        raise DamagedFileError(
            f"of {name} the optimizer's state has {', '.join(sorted(saved)) or 'nothing'}, not "
            f"{', '.join(sorted(expected))}"
        )
    for kind, (shape, dtype) in expected.items():
        if saved[kind] != (shape, dtype):
            old_shape, old_dtype = saved[kind]
            raise DamagedFileError(
                f"{kind} of {name} is {old_dtype} of shape {list(old_shape)}, not {dtype} of {list(shape)}"
            )


def check_state(
    saved: Any, names: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """`state_dict` of an optimizer as it was saved, with the settings of this run's.

    saved: what a file held, see `Plain.save`; nothing is taken for granted. names: the weights by name, in the order of the
    optimizer. Raises DamagedFileError.
    """
    own = optimizer.state_dict()
    state = saved.get("state") if isinstance(saved, dict) else None
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise DamagedFileError("optimizer.pt holds no state of an optimizer")

    # an earlier version wrote no names
    ordered = saved.get("names", list(names))
    sizes = [len(g["params"]) if isinstance(g, dict) and "params" in g else None for g in groups]
    if ordered != list(names) or sizes != [len(group["params"]) for group in own["param_groups"]]:
        raise DamagedFileError("optimizer.pt is of other weights than this run trains")

    # before its first step an optimizer keeps nothing
    if state and state.keys() != set(range(len(names))):
        raise DamagedFileError("optimizer.pt has the state of some weights, not of all")
    for number, (name, parameter) in enumerate(names.items() if state else ()):
        refuse_other_moments(
            name, _read_layout(name, state[number]), layout_of(optimizer, parameter)
        )
    return {"state": state, "param_groups": own["param_groups"]}


def _read_layout(name: str, kept: Any) -> Layout:
    if not isinstance(kept, dict) or not all(isinstance(v, Tensor) for v in kept.values()):
        raise DamagedFileError(f"of {name} optimizer.pt has something else than tensors")
    return {kind: (tuple(value.shape), value.dtype) for kind, value in kept.items()}
