"""A learner of one process: what a run puts together from its config, here from the few things a benchmark varies."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import overload

import torch
from accelerate import Accelerator
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.model import Model
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import Reference
from gpg_vl.training.learner import Learner, LearnerSettings
from gpg_vl.training.micro_batch import Layout
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.types import Group

LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0

adamw = partial(make_adamw, betas=(0.9, 0.999), weight_decay=0.0)
"""The optimizer of every timed step, on both sides."""


def make_learner(
    model: Model,
    algorithm: Algorithm,
    *,
    layout: Layout,
    max_new_tokens: int,
    max_grad_norm: float = MAX_GRAD_NORM,
    make_optimizer: Callable[[Policy], torch.optim.Optimizer] = adamw,
    reference: Reference | None = None,
    prefixes: PrefixStore | None = None,
) -> Learner:
    """Trains the model at one rate, on the device it is on."""
    device = model.policy.device
    setup = ShardingSetup(device=device, processes=1, is_main=True)
    settings = LearnerSettings(
        layout=layout,
        max_grad_norm=max_grad_norm,
        max_new_tokens=max_new_tokens,
        learning_rate=lambda step, part: LEARNING_RATE,
        autocast=model.autocast,
    )
    return Learner(
        model.policy,
        algorithm,
        shardings.get("none")(setup),
        settings,
        Accelerator(cpu=device.type == "cpu"),
        make_optimizer=make_optimizer,
        reference=reference,
        prefixes=prefixes,
    )


def gradient(
    model: Model,
    algorithm: Algorithm,
    groups: Sequence[Group],
    *,
    layout: Layout,
    max_new_tokens: int,
    reference: Reference | None = None,
    prefixes: PrefixStore | None = None,
) -> dict[str, Tensor]:
    """The gradient of a step, unclipped, by the weight's name in transformers. The weights stay as they are."""
    learner = make_learner(
        model,
        algorithm,
        layout=layout,
        max_new_tokens=max_new_tokens,
        max_grad_norm=math.inf,
        make_optimizer=_StandStill,
        reference=reference,
        prefixes=prefixes,
    )
    report = learner.update(groups, step=0)
    assert report.applied, "nothing of this step is trained"

    found = {}
    for name, parameter in model.policy.model.named_parameters():
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad, None
    return found


class _StandStill(torch.optim.Optimizer):
    """Takes a gradient and leaves weights and memory as they are."""

    def __init__(self, policy: Policy) -> None:
        trained = [p for p in policy.parameters() if p.requires_grad]
        super().__init__([{"params": trained, "part": ""}], {})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Nothing moves. Returns the loss where there is a closure, as torch's optimizers do."""
        return None if closure is None else closure()
