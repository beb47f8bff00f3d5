"""What is read and set inside of DeepSpeed's ZeRO optimizers; the version range of the extra `deepspeed` is for this file.

An optimizer is of stage 2 or of stage 3. Both step on flat float32 tensors, one for each parameter group or a part of it, of
which each process holds a part; where gradients wait until then is what differs.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.training.sharding.sharded_checkpoint import MOMENT, NUMBER, WEIGHT


def compile_nothing(deepspeed: Any) -> None:
    """No extension is built for sums over processes on a CPU: Gloo has them.

    Building takes minutes, and a build that is killed leaves a lock for which every later start waits silently.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def is_spread(tensor: Tensor) -> bool:
    """Whether stage 3 has taken this parameter apart."""
    from deepspeed.runtime.zero.partition_parameters import is_zero_param

    spread: bool = is_zero_param(tensor)
    return spread


# ---- gradients


def forget_gradients(optimizer: Any) -> None:
    """Zeros where stage 3, or an optimizer on the CPU, would leave the last step's gradient of a weight that gets none."""
    for gradient in _lasting_gradients(optimizer):
        gradient.zero_()


def begin_backward(optimizer: Any) -> None:
    """Each backward is one of its own: what goes on through a prefix is no second phase of the chunk before, and a chunk
    may reach no weight at all.
    """
    optimizer.clear_backward_seen_flag()
    if not _is_stage_3(optimizer):
        optimizer.setup_buckets()


def complete_gradients(optimizer: Any) -> list[Tensor]:
    """This process's parts of the mean gradient, when all backward calls of a step are done. What is written into them counts."""
    if _is_stage_3(optimizer):
        optimizer.independent_gradient_partition_epilogue()
    optimizer.finalize_gradient_accumulation_boundary()
    return _gradients(optimizer)


def drop_step(optimizer: Any) -> None:
    """Forget the gradient of a step. DeepSpeed does so itself with one that is no number."""
    for gradient in _gradients(optimizer):
        gradient.fill_(nan)
    if _is_offloaded(optimizer):
        for number in optimizer.norm_for_param_grads:
            optimizer.norm_for_param_grads[number] = torch.tensor(nan)

    optimizer.step()
    assert optimizer.overflow, "DeepSpeed has applied a gradient that is no number"
    optimizer.zero_grad()


def _gradients(optimizer: Any) -> list[Tensor]:
    lasting = list(_lasting_gradients(optimizer))
    return lasting or list(chain.from_iterable(optimizer.averaged_gradients.values()))


def _lasting_gradients(optimizer: Any) -> Iterator[Tensor]:
    """Gradients in memory that is there for the whole run; stage 2 on a device has none such."""
    if _is_stage_3(optimizer) and not optimizer.offload_optimizer:
        yield optimizer.grad_partitions_flat_buffer
    elif _is_offloaded(optimizer):
        for flat in _flat_weights(optimizer):
            if flat.grad is not None:
                yield flat.grad


# ---- weights and moments


def state_shapes(optimizer: Any, trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Size]:
    """The shape of each tensor of `full_state`, by its key."""
    kept: Mapping[str, Tensor] = optimizer.optimizer.state.get(_flat_weights(optimizer)[0], {})
    shapes: dict[str, torch.Size] = {}
    for name, shape in whole_shapes(trained).items():
        shapes[f"{WEIGHT}/{name}"] = shape
        for kind, value in kept.items():
            is_number = value.dim() == 0
            key = f"{NUMBER if is_number else MOMENT}/{kind}/{name}"
            shapes[key] = torch.Size([1]) if is_number else shape
    return shapes


def whole_shapes(trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Size]:
    """The shape of each weight, of which this process may hold a part."""
    return {
        name: parameter.ds_shape if is_spread(parameter) else parameter.shape  # type: ignore[attr-defined]  # DeepSpeed's
        for name, parameter in trained.items()
    }


def full_state(optimizer: Any, trained: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    """Master weights and moments, whole, one after the other, under the keys of `parts`. All processes iterate to the end."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    kept: Mapping[str, Tensor] = optimizer.optimizer.state.get(_flat_weights(optimizer)[0], {})
    if kept and not _is_stage_3(optimizer):
        _find_moments(optimizer)
    for name, parameter in trained.items():
        yield f"{WEIGHT}/{name}", safe_get_full_fp32_param(parameter)
        for kind, value in kept.items():
            if value.dim() == 0:
                yield f"{NUMBER}/{kind}/{name}", value.reshape(1)
            else:
                yield f"{MOMENT}/{kind}/{name}", safe_get_full_optimizer_state(parameter, kind)


def restore_state(
    optimizer: Any, trained: Mapping[str, nn.Parameter], state: Iterator[tuple[str, Tensor]]
) -> None:
    """Put back what `full_state` has given. The tensors are the same on all processes, and so are their order."""
    for key, value in state:
        what, *kind, name = key.split("/")
        if what == NUMBER:
            _set_number(optimizer, "/".join(kind), value.reshape(()))
            continue
        if what == MOMENT:
            _make_room(optimizer, "/".join(kind))
        _set_part(optimizer, trained[name], value, "/".join(kind) or None)
    _take_over_weights(optimizer)


def _find_moments(optimizer: Any) -> None:
    """DeepSpeed looks for them once, when its first parameter group has stepped, and so misses those of all others."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _set_number(optimizer: Any, kind: str, value: Tensor) -> None:
    for flat in _flat_weights(optimizer):
        optimizer.optimizer.state[flat][kind] = value.to(flat.device).clone()


def _make_room(optimizer: Any, kind: str) -> None:
    """A moment of a run that has not stepped yet."""
    for flat in _flat_weights(optimizer):
        if kind not in optimizer.optimizer.state[flat]:
            optimizer.optimizer.state[flat][kind] = torch.zeros_like(flat.detach())


def _set_part(optimizer: Any, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
    """This process's part of a whole tensor, of the weight itself if there is no kind."""
    if _is_stage_3(optimizer):
        part, _ = optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=kind
        )
        start = part.numel() * optimizer._get_param_partition_rank(parameter)
        held = value.flatten()[start : start + part.numel()]
        part[: held.numel()].data.copy_(held)
        return

    # a process may hold nothing of a parameter
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's
    if mapping is None:
        return
    where = mapping.lp_fragment_address
    held = value.flatten()[where.start : where.start + where.numel]
    if kind is None:
        mapping.hp_fragment.data.copy_(held)
        return
    at = mapping.get_hp_fragment_address()
    flat = _flat_weights(optimizer)[mapping.param_group_index]
    optimizer.optimizer.state[flat][kind].narrow(0, at.start, at.numel).copy_(held)


def _take_over_weights(optimizer: Any) -> None:
    """The weights that are computed with, from those that are stepped on."""
    if not _is_stage_3(optimizer):
        optimizer.update_lp_params()
        return
    for number in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


# ---- which optimizer it is


def _is_stage_3(optimizer: Any) -> bool:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    return isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)


def _is_offloaded(optimizer: Any) -> bool:
    offloaded: bool = (
        optimizer.offload_optimizer if _is_stage_3(optimizer) else optimizer.cpu_offload
    )
    return offloaded


def _flat_weights(optimizer: Any) -> list[Tensor]:
    flat: list[Tensor] = (
        optimizer.fp32_partitioned_groups_flat
        if _is_stage_3(optimizer)
        else optimizer.single_partition_of_fp32_groups
    )
    return flat
