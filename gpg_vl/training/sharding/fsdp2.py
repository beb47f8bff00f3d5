"""Weights, gradients and moments spread over processes by torch's own `fully_shard` (FSDP2).

A unit of weights is gathered when it is computed with, and its gradient is summed into the parts that the processes hold:
each decoder layer, each block of the vision tower, and a root with what is left. Embedding and head are in the root, which
is gathered for the whole of a forward call, because the head is read outside of its own module and may be tied.

A frozen vision tower is not spread. Which images a process has to encode depends on what it remembers of earlier ones, and
calls of a tower that every process holds need not match.
"""

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from gpg_vl.errors import UserError
from gpg_vl.models.adapters import adapter_parameters, merged_weights
from gpg_vl.models.policy import Policy
from gpg_vl.training.memory import Sizes, frozen_bytes, moment_bytes
from gpg_vl.training.sharding.offload import move_to_cpu, step_in_pages
from gpg_vl.training.sharding.protocol import ShardingSetup, StepResult
from gpg_vl.training.sharding.sharded_checkpoint import load_parts, save_parts

FOLDER = "parts"
"""In a checkpoint: what each process has written of the trained weights and their moments."""


class Fsdp2:
    """The `fsdp2` sharding. See `Sharding` for its methods. Raises UserError if there is one process."""

    name = "fsdp2"
    calls_must_match = True
    holds_whole = False
    any_processes = True

    def __init__(self, setup: ShardingSetup) -> None:
        if setup.processes == 1:
            raise UserError(
                "train.sharding is fsdp2, but this run has one process, so no weights can be shared. Start two or "
                "more (torchrun --nproc-per-node 2 -m gpg_vl train ...), or set train.sharding to none."
            )
        self._setup = setup
        self._mesh: DeviceMesh = init_device_mesh(setup.device.type, (setup.processes,))
        self._policy: Policy
        self._units: list[FSDPModule]
        self._optimizer: torch.optim.Optimizer

    @staticmethod
    def memory(sizes: Sizes, processes: int) -> dict[str, float]:
        """Bytes of one process, by what takes them; see `weight_memory`. The largest units are whole for a while.

        The root is gathered for a whole call, its gradient for a whole backward; of the layers two at a time, because the
        next one comes while one is computed with, and the gradient of one.
        """
        kept_whole = 0 if sizes.trained_vision else sizes.vision
        spread = sizes.parameters - kept_whole
        root, largest = spread - sum(sizes.layers), max(sizes.layers)

        # frozen weights are alike; of what is trained the parts are float32, whatever is computed with
        frozen = frozen_bytes(sizes)
        whole = frozen * kept_whole / max(sizes.parameters - sizes.trained, 1)
        per_trained = sizes.widths.trained * sizes.trained / spread
        per_gathered = per_trained + (frozen - whole) / spread
        return {
            "weights": (4.0 * sizes.trained + frozen - whole) / processes + whole,
            "gradients": (4.0 / processes + sizes.widths.waiting) * sizes.trained,
            "optimizer": moment_bytes(sizes) / processes,
            "gathered layers": per_gathered * (root + 2 * largest) + per_trained * (root + largest),
        }

    def wrap(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> nn.Module:
        self._policy = policy
        self._units = self._spread(policy, self._setup.weights)
        self._optimizer = make_optimizer(policy)
        return policy

    def spread(self, policy: Policy) -> nn.Module:
        # nothing comes back for its root, which a backward would have given back
        self._spread(policy, None, reshard_after_forward=True)
        return policy

    def start(self, learning_rate: Callable[[str], float]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(group["part"])

    def backward(self, loss: Tensor, *, last: bool) -> None:
        # each backward sums into the parts: no process ever holds a gradient of more than a unit, unless it is to wait
        if self._setup.defer_reduction:
            self._root.set_requires_gradient_sync(last)
        loss.backward()

    def clip_and_step(self, max_norm: float, *, loss_is_finite: bool) -> StepResult:
        self._give_back()
        parameters = self._trained().values()

        # a weight that nothing has touched has gradient 0, not none: see `Plain`
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [_part(p.grad) for p in parameters if p.grad is not None]

        norm = self._norm(gradients)
        if not (loss_is_finite and isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            return StepResult(norm, applied=False)

        scale = min(1.0, max_norm / (norm + 1e-6))
        for gradient in gradients if scale < 1.0 else ():
            gradient.mul_(scale)
        if self._setup.offload == "optimizer":
            step_in_pages(self._optimizer)
        else:
            self._optimizer.step()
        return StepResult(norm, applied=True)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        self._give_back()
        return merged_weights(self._policy.model, self._gather)

    def full_adapters(self) -> dict[str, Tensor]:
        self._give_back()
        adapters = adapter_parameters(self._policy.model)
        return {name: self._gather(parameter.detach()) for name, parameter in adapters.items()}

    def save(self, folder: Path) -> None:
        self._give_back()
        save_parts(self._trained(), self._optimizer, folder / FOLDER)

    def load(self, folder: Path) -> None:
        self._give_back()
        load_parts(self._trained(), self._optimizer, folder / FOLDER)
        if self._setup.offload == "optimizer":
            move_to_cpu(self._optimizer)

    def _spread(
        self,
        policy: Policy,
        gathered: torch.dtype | None,
        reshard_after_forward: bool | None = None,
    ) -> list[FSDPModule]:
        """Unit by unit, so that a device never holds more than one whole unit next to its parts.

        gathered: dtype of what is computed with, while the parts stay as they are; None gathers them as they are.
        """
        model, family = policy.model, policy.family
        vision = [] if policy.images.is_trained else family.vision_modules(model)
        kept_whole = {parameter for module in vision for parameter in module.parameters()}
        blocks = family.vision_blocks(model) if policy.images.is_trained else []

        # what comes into a unit is left alone: autocast knows better which products are to be rounded
        rounding = MixedPrecisionPolicy(
            param_dtype=gathered,
            reduce_dtype=torch.float32 if gathered else None,
            cast_forward_inputs=False,
        )
        units = []
        for module in [*family.layers(model), *blocks, policy]:
            self._equalize([*module.parameters(), *module.buffers()])
            unit = fully_shard(
                module,
                mesh=self._mesh,
                mp_policy=rounding,
                reshard_after_forward=reshard_after_forward,
                ignored_params=kept_whole,
                offload_policy=self._offload_policy(),
            )
            # the losses of all processes are parts of one sum
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
            units.append(unit)
        return units

    def _offload_policy(self) -> OffloadPolicy:
        if self._setup.offload == "all":
            return CPUOffloadPolicy(pin_memory=self._setup.device.type == "cuda")
        return OffloadPolicy()

    def _equalize(self, tensors: Iterable[Tensor]) -> None:
        """The main process's numbers, on this process's device, in what is not spread yet."""
        for tensor in tensors:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(self._setup.device)
                torch.distributed.broadcast(tensor.data, src=0)

    @property
    def _root(self) -> FSDPModule:
        """The policy itself, which speaks for all units."""
        return self._units[-1]

    def _give_back(self) -> None:
        """What the last forward calls have left gathered: a root waits for a backward that scoring does not have."""
        for unit in self._units:
            unit.reshard()

    def _trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer moves, by name."""
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self._policy.named_parameters() if id(p) in moved}

    def _norm(self, gradients: list[Tensor]) -> float:
        """Over all parts of all processes, each of which holds its own."""
        square = nn.utils.get_total_norm(gradients).double().square().to(self._setup.device)
        torch.distributed.all_reduce(square)
        return float(square.sqrt())

    def _gather(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            here: DTensor = tensor.to(self._setup.device)  # type: ignore[assignment]  # a DTensor stays one
            return here.full_tensor()
        return tensor


def _part(tensor: Tensor) -> Tensor:
    """What this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
