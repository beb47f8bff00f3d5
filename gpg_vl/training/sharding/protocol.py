"""What the learner asks of a way to spread a model over processes. Nothing else knows of wrappers and collectives."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gpg_vl.models.policy import Policy


class StepResult(NamedTuple):
    """What became of the gradient of a step."""

    norm: float
    """Before clipping, over all weights of all processes."""
    applied: bool
    """False if loss or norm is not finite: weights and moments are as they were."""


class Sharding(Protocol):
    """Weights, gradients and optimizer of one training run, on one or several processes.

    In a step: `start`, forward calls and `backward` of each micro-batch, `clip_and_step`. The losses of all processes are
    parts of one sum: their gradients are added, not averaged.
    """

    name: str
    """As in the registry. A checkpoint is resumed with the sharding that wrote it."""
    calls_must_match: bool
    """True: every call of the wrapped policy is a collective, so each process must make the same ones in the same order."""
    holds_whole: bool
    """True: every process has all weights in its policy, so an engine can answer with it."""
    any_processes: bool
    """True: a checkpoint can be resumed by another number of processes than wrote it. A sharding that trains and keeps a critic
    says so besides, with `trains_critic = True`."""

    def wrap(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> nn.Module:
        """The module to call in training. Called once; every process has the main process's weights afterwards."""
        ...

    def spread(self, policy: Policy) -> nn.Module:
        """The same for a policy that is only scored with, and never trained: a reference."""
        ...

    def start(self, learning_rate: Callable[[str], float]) -> None:
        """Forget the gradient of the step before. `learning_rate`: of each part, see `optimizer.make_adamw`."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss. `last`: nothing follows on this process in this step."""
        ...

    def clip_and_step(self, max_norm: float, *, loss_is_finite: bool) -> StepResult:
        """Scale the gradient of the step down to `max_norm` and apply it, unless it or the loss is not finite."""
        ...

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors under the names of an ordinary checkpoint, adapters merged in. All processes iterate to the end."""
        ...

    def full_adapters(self) -> Mapping[str, Tensor]:
        """Whole tensors of the adapters under the names that they have in the model; none without adapters. All processes call
        it together."""
        ...

    def save(self, folder: Path) -> None:
        """Write what training needs beyond the ordinary checkpoint in `folder / "model"` and adapters in `folder / "adapter"`."""
        ...

    def load(self, folder: Path) -> None:
        """Put back weights and optimizer from a checkpoint. Raises UserError or what reading a damaged file raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingSetup:
    """What a sharding is made of."""

    device: torch.device
    processes: int
    is_main: bool
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in the memory of the CPU while it is not computed with: moments, or weights and gradients too."""
    weights: torch.dtype | None = None
    """Of trained matrices while they are computed with; None leaves them as they are. Moments are float32 at least, and a
    sharding that keeps float32 weights for the optimizer casts what it computes with."""
    keeps_weights: bool = False
    """Whether `model/` of a checkpoint is rounded, so that what is trained cannot be read from there again."""
    defer_reduction: bool = False
    """Whether gradients are summed over processes in the last backward of a step alone, where a sharding has the choice."""
