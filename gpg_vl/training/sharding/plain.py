"""Every process holds everything: one process, or several that add up their gradients once a step.

No wrapper is used. The last backward of a micro-batch in chunks touches only a part of the weights, and a wrapper that
sums gradients as they come would wait for the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from gpg_vl.activity import in_collective
from gpg_vl.models.adapter_folder import load_adapters
from gpg_vl.models.adapters import adapter_parameters, has_adapters, merged_weights
from gpg_vl.models.load import load_model, quiet
from gpg_vl.models.policy import Policy
from gpg_vl.models.save import save_model
from gpg_vl.models.weight_precision import hold_matrices
from gpg_vl.training.sharding.moments import check_state
from gpg_vl.training.sharding.offload import move_to_cpu, refuse_offload, step_in_pages
from gpg_vl.training.sharding.protocol import ShardingSetup, StepResult
from gpg_vl.training.tensor_file import DamagedFileError, load_tensors

FILE = "optimizer.pt"
"""In a checkpoint: the moments, and the names of the weights that they are of."""
CRITIC = "critic.pt"
"""In a checkpoint: the value head, where there is one."""
WEIGHTS = "weights"
"""The folder in a checkpoint with the weights as they are, where those in `model/` are rounded."""
BUCKET_ELEMENTS = 2**24
"""Numbers that are summed over processes in one collective: 64 MB in float32."""


class Plain:
    """The `none` sharding. See `Sharding` for its methods."""

    name = "none"
    calls_must_match = False
    holds_whole = True
    any_processes = False
    trains_critic = True

    def __init__(self, setup: ShardingSetup) -> None:
        self.check(setup.offload)
        self._setup = setup
        self._policy: Policy
        self._optimizer: torch.optim.Optimizer

    @staticmethod
    def check(offload: str) -> None:
        """Raises UserError if weights are to wait elsewhere."""
        if offload == "all":
            refuse_offload(Plain.name)

    def wrap(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> nn.Module:
        self._policy = policy.to(self._setup.device)
        self._hold_trained()
        self._optimizer = make_optimizer(self._policy)
        if self._setup.processes > 1:
            for tensor in [*policy.parameters(), *policy.buffers()]:
                with in_collective():
                    torch.distributed.broadcast(tensor.detach(), src=0)
        return self._policy

    def spread(self, policy: Policy) -> nn.Module:
        return policy.to(self._setup.device)

    def start(self, learning_rate: Callable[[str], float]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(group["part"])

    def backward(self, loss: Tensor, *, last: bool) -> None:
        # whatever comes last, the sum over processes waits for `clip_and_step`, which all of them reach
        loss.backward()

    def clip_and_step(self, max_norm: float, *, loss_is_finite: bool) -> StepResult:
        parameters = self._trained_parameters()

        # a weight that nothing has touched has gradient 0, not none: the optimizer's moments fade in any case, and do
        # so on all processes alike
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        # a GPU only queues the sums, so it is the norm that waits for the other processes
        with in_collective() if self._setup.processes > 1 else nullcontext():
            if self._setup.processes > 1:
                _sum_over_processes([p.grad for p in parameters if p.grad is not None])
            norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
        if not (loss_is_finite and isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            return StepResult(norm, applied=False)

        if self._setup.offload == "none":
            self._optimizer.step()
        else:
            step_in_pages(self._optimizer)
        return StepResult(norm, applied=True)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self._policy.model)

    def full_adapters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in adapter_parameters(self._policy.model).items()}

    def save(self, folder: Path) -> None:
        if self._setup.is_main:
            state = {**self._optimizer.state_dict(), "names": list(self._trained())}
            torch.save(state, folder / FILE)
            if self._policy.critic is not None:
                torch.save(self._policy.critic.state_dict(), folder / CRITIC)
            if self._setup.keeps_weights and not has_adapters(self._policy.model):
                save_model(self._policy.model, self.full_weights(), folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        model = self._policy.model
        if has_adapters(model):
            load_adapters(model, folder)
        else:
            own = folder / WEIGHTS
            _load_weights(model, own if own.is_dir() else folder / "model")

        if self._policy.critic is not None:
            _load_critic(self._policy.critic, folder)
        saved = load_tensors(folder / FILE)
        self._optimizer.load_state_dict(check_state(saved, self._trained(), self._optimizer))
        if self._setup.offload != "none":
            move_to_cpu(self._optimizer)

    def _hold_trained(self) -> None:
        """In the dtype that was asked for, with gradients in float32: many small ones add up in there."""
        if self._setup.weights is None:
            return
        trained = [p for p in self._policy.parameters() if p.requires_grad]
        hold_matrices(trained, self._setup.weights)
        for parameter in trained:
            parameter.grad_dtype = torch.promote_types(parameter.dtype, torch.float32)

    def _trained(self) -> dict[str, nn.Parameter]:
        """The weights that the optimizer moves, by name and in its order."""
        names = {parameter: name for name, parameter in self._policy.named_parameters()}
        return {names[parameter]: parameter for parameter in self._trained_parameters()}

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]


def _sum_over_processes(gradients: Sequence[Tensor]) -> None:
    """Each gradient becomes the sum of those of all processes; few large collectives instead of one per tensor."""
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        full = held + gradient.numel() > BUCKET_ELEMENTS
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            _sum_bucket(bucket)
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.numel()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    torch.distributed.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _load_critic(critic: nn.Module, folder: Path) -> None:
    """Raises DamagedFileError if what was saved is something else than this critic."""
    saved, own = load_tensors(folder / CRITIC), critic.state_dict()
    shapes = {k: v.shape for k, v in saved.items()} if isinstance(saved, dict) else {}
    if shapes != {name: tensor.shape for name, tensor in own.items()}:
        raise DamagedFileError(f"{CRITIC} is of another critic than this run trains")
    critic.load_state_dict(saved)


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Saved weights have names of their own; reading them as a checkpoint gives them back those of the model.

    Raises DamagedFileError if they are of another model.
    """
    with quiet():
        saved = load_model(str(folder)).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in saved or saved[name].shape != tensor.shape:
            raise DamagedFileError(
                f"{folder.name} is of another model: {name} is not as it is here"
            )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[name])
