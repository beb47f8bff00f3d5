"""Gradients and moments, and with stage 3 the weights too, spread over processes by DeepSpeed's ZeRO.

DeepSpeed is driven by hand. Its own `engine.step()` knows a gradient's norm only after the step, and it averages over
processes where our losses are parts of one sum; so norm, finiteness and scale are settled here, and then its optimizer
steps. What is read and set of its insides for that is in `zero_internals`.

A frozen vision tower is not given to stage 3, for the reason that `fsdp2` has: its calls need not match.
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.errors import UserError
from gpg_vl.models.adapters import adapter_parameters, merged_weights
from gpg_vl.models.policy import Policy
from gpg_vl.training.memory import Sizes, moment_bytes
from gpg_vl.training.sharding import zero_internals
from gpg_vl.training.sharding.offload import refuse_offload
from gpg_vl.training.sharding.protocol import ShardingSetup, StepResult
from gpg_vl.training.sharding.whole_checkpoint import load_whole_parts, save_whole_parts

BUCKET_ELEMENTS = 5 * 10**7
"""Numbers that are reduced, or gathered ahead, in one collective: 200 MB in float32."""
FOLDER = "parts"
"""In a checkpoint: the trained weights and their moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroStage:
    """A stage of ZeRO, as the registry has it: makes the sharding, and says what it takes.

    Example: `zero3 = ZeroStage(name="zero3", stage=3, holds_whole=False)`
    """

    name: str
    stage: int
    holds_whole: bool

    def __call__(self, setup: ShardingSetup) -> "Zero":
        return Zero(setup, self)

    def check(self, offload: str) -> None:
        """Raises UserError if DeepSpeed is missing, or this stage cannot keep what it is asked to in the CPU's memory."""
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                f"train.sharding is {self.name}, which DeepSpeed does, and it is not installed. Install it with: "
                f"pip install 'gpg_vl[deepspeed]', or set train.sharding to fsdp2, which needs no package."
            )
        if self.holds_whole and offload == "all":
            refuse_offload(self.name)

    def memory(self, sizes: Sizes, processes: int) -> dict[str, float]:
        """Bytes of one process, by what takes them; see `weight_memory`.

        DeepSpeed computes in one dtype, and steps on a flat float32 copy of the weights whose moments a process holds. Of
        stage 3 the largest module and what is fetched ahead are whole for a while, and the gradient of the largest.
        """
        widths, has_frozen = sizes.widths, sizes.parameters > sizes.trained
        each = min(widths.trained, widths.frozen) if has_frozen else widths.trained
        held = {
            "weights": each * sizes.parameters,
            # the sum so far, and what is reduced into it; in the step, the flat copy that is stepped on
            "gradients": 8.0 * sizes.trained / processes,
            "optimizer": (moment_bytes(sizes) + 4.0 * sizes.trained) / processes,
            "reduction": 4.0 * min(BUCKET_ELEMENTS, sizes.trained),
        }
        if self.holds_whole:
            return held

        kept_whole = 0 if sizes.trained_vision else sizes.vision
        spread = sizes.parameters - kept_whole
        root = spread - sum(sizes.layers)
        return held | {
            "weights": each * (spread / processes + kept_whole),
            "gathered layers": each * (2 * root + min(BUCKET_ELEMENTS, spread)),
        }


zero2 = ZeroStage(name="zero2", stage=2, holds_whole=True)
zero3 = ZeroStage(name="zero3", stage=3, holds_whole=False)


class Zero:
    """The `zero2` and `zero3` shardings. See `Sharding` for the methods.

    Raises UserError if there is one process, or no DeepSpeed.
    """

    calls_must_match = True
    any_processes = True

    def __init__(self, setup: ShardingSetup, kind: ZeroStage) -> None:
        if setup.processes == 1:
            raise UserError(
                f"train.sharding is {kind.name}, but this run has one process, so nothing can be shared. Start two or more "
                f"(torchrun --nproc-per-node 2 -m gpg_vl train ...), or set train.sharding to none."
            )
        kind.check(setup.offload)
        self.name = kind.name
        self.holds_whole = kind.holds_whole
        self._setup = setup
        self._kind = kind
        self._deepspeed = _import_deepspeed(setup.device)
        self._policy: Policy
        self._engine: Any
        self._optimizer: torch.optim.Optimizer
        self._trained: dict[str, nn.Parameter]

    def wrap(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> nn.Module:
        # matrices are distinguished from norms by their shape, which stage 3 takes away
        self._policy = policy
        self._optimizer = make_optimizer(policy)
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._engine = self._initialize(policy, self._optimizer)
        return self._wrapped()

    def spread(self, policy: Policy) -> nn.Module:
        if self.holds_whole:
            return policy.to(self._setup.device)
        engine: nn.Module = self._initialize(policy, None)
        return engine

    def start(self, learning_rate: Callable[[str], float]) -> None:
        zero_internals.forget_gradients(self._engine.optimizer)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(group["part"])

    def backward(self, loss: Tensor, *, last: bool) -> None:
        zero_internals.begin_backward(self._engine.optimizer)
        self._engine.backward(loss, scale_wrt_gas=False)

    def clip_and_step(self, max_norm: float, *, loss_is_finite: bool) -> StepResult:
        optimizer, processes = self._engine.optimizer, self._setup.processes
        gradients = zero_internals.complete_gradients(optimizer)

        # DeepSpeed has averaged what is to be summed
        norm = processes * self._norm(gradients)
        applied = loss_is_finite and isfinite(norm)
        with _hidden(self._policy, self._left_out(self._policy)):
            if applied:
                scale = processes * min(1.0, max_norm / (norm + 1e-6))
                for gradient in gradients:
                    gradient.mul_(scale)
                optimizer.step()
                optimizer.zero_grad()
            else:
                zero_internals.drop_step(optimizer)
        return StepResult(norm, applied)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self._policy.model, self._gather)

    def full_adapters(self) -> dict[str, Tensor]:
        adapters = adapter_parameters(self._policy.model)
        return {name: self._gather(parameter).detach() for name, parameter in adapters.items()}

    def save(self, folder: Path) -> None:
        optimizer = self._engine.optimizer
        tensors = zero_internals.full_state(optimizer, self._trained)
        if self._setup.is_main:
            shapes = zero_internals.state_shapes(optimizer, self._trained)
            save_whole_parts(shapes, tensors, folder / FOLDER)
        for _ in tensors:  # those that do not write as well: each tensor is a collective
            pass

    def load(self, folder: Path) -> None:
        shapes = zero_internals.whole_shapes(self._trained)
        state = load_whole_parts(folder / FOLDER, shapes)
        zero_internals.restore_state(self._engine.optimizer, self._trained, state)

    def _wrapped(self) -> nn.Module:
        engine: nn.Module = self._engine
        return engine

    def _initialize(self, policy: Policy, optimizer: torch.optim.Optimizer | None) -> Any:
        """DeepSpeed's engine around a policy. Stage 3 takes weights from the CPU one by one, so no device ever holds all."""
        device, config = self._setup.device, self._config(policy)
        left_out = self._left_out(policy)
        for module in [policy] if self.holds_whole else left_out:
            _equalize(module, device)
        for buffer in policy.buffers():
            buffer.data = buffer.data.to(device)

        # what DeepSpeed's modules warn of when they are imported is for its developers
        with _hidden(policy, left_out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._computes_in_bfloat16(policy):
                for parameter in policy.parameters():
                    parameter.data = parameter.data.bfloat16()
            if not self.holds_whole:
                self._deepspeed.zero.Init(module=policy, config_dict_or_path=config)
            engine, *_ = self._deepspeed.initialize(
                model=policy, optimizer=optimizer, config=config, dist_init_required=False
            )
        return engine

    def _config(self, policy: Policy) -> dict[str, Any]:
        """The config that DeepSpeed gets. The boundary of a step is ours: it counts no micro-batches."""
        hidden_size = policy.model.get_output_embeddings().weight.shape[1]
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        zero: dict[str, Any] = {
            "stage": self._kind.stage,
            "overlap_comm": False,
            "reduce_bucket_size": max(1, min(BUCKET_ELEMENTS, trained)),
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_max_reuse_distance": 0,
            # norms and biases are not worth a collective each
            "stage3_param_persistence_threshold": 10 * hidden_size,
        }
        pin = {"device": "cpu", "pin_memory": self._setup.device.type == "cuda"}
        if self._setup.offload != "none":
            zero["offload_optimizer"] = pin
        if self._setup.offload == "all":
            zero["offload_param"] = pin

        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "bf16": {"enabled": self._computes_in_bfloat16(policy)},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }

    def _computes_in_bfloat16(self, policy: Policy) -> bool:
        """DeepSpeed has one dtype for all that it is given: that of the least bits."""
        held = {parameter.dtype for parameter in policy.parameters()}
        return torch.bfloat16 in held | {self._setup.weights}

    def _left_out(self, policy: Policy) -> list[nn.Module]:
        """What DeepSpeed must not know of."""
        if self.holds_whole or policy.images.is_trained:
            return []
        return policy.family.vision_modules(policy.model)

    def _norm(self, gradients: list[Tensor]) -> float:
        """Over all parts of all processes, each of which holds its own. A part may be all of the weights in one."""
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in gradients]
        square = torch.stack(norms).square().sum().to(self._setup.device)
        torch.distributed.all_reduce(square)
        return float(square.sqrt())

    def _gather(self, tensor: Tensor) -> Tensor:
        if self.holds_whole or not zero_internals.is_spread(tensor):
            return tensor
        with self._deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()


@contextmanager
def _hidden(policy: Policy, modules: list[nn.Module]) -> Iterator[None]:
    """Within, these modules are no part of the policy."""
    places = [
        (parent, name, child)
        for parent in policy.modules()
        for name, child in parent.named_children()
        if any(child is module for module in modules)
    ]
    for parent, name, _ in places:
        parent._modules[name] = nn.Identity()
    try:
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


def _equalize(module: nn.Module, device: torch.device) -> None:
    """On this process's device, with the main process's numbers."""
    module.to(device)
    for tensor in [*module.parameters(), *module.buffers()]:
        torch.distributed.broadcast(tensor.data, src=0)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, for this kind of device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

    # it calls some functions of torch by their old names, in every step
    old_names = r"`torch\.distributed\.\w+` is deprecated"
    warnings.filterwarnings("ignore", message=old_names, category=FutureWarning)
    deepspeed.utils.logger.setLevel(logging.WARNING)
    zero_internals.compile_nothing(deepspeed)
    return deepspeed
