"""Every use of a parameter is a call of the policy: whatever wraps it sees all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import scene_example
from rich.console import Console
from test_policy import COMPLETIONS, prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpg_vl.algorithms.grpo import grpo
from gpg_vl.model import Model
from gpg_vl.models.layout import pack
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import make_reference
from gpg_vl.models.requests import CastHead, CastMatrices, Features, Prefill, Score
from gpg_vl.rewards.scoring import Scored
from gpg_vl.rollout.engine import EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.collect import Collector, EngineResponder, Quota
from gpg_vl.training.display import Display
from gpg_vl.training.learner import Learner, LearnerSettings
from gpg_vl.training.micro_batch import Layout, make_step_batch
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.training.state import RunState
from gpg_vl.training.step_totals import count_step
from gpg_vl.types import Group

SAMPLING = Sampling(group_size=3, temperature=1.0, max_new_tokens=4, seed=7)


class OutsideOfForward(TorchDispatchMode):
    """Notes every operation outside of the policy's forward with an argument that shares memory with a parameter."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0
        self._inside = 0
        self._memory = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        self._hooks = [
            policy.register_forward_pre_hook(self._enter),
            policy.register_forward_hook(self._leave, always_call=True),
        ]

    def _enter(self, *_: Any) -> None:
        self._inside += 1
        self.calls += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self._inside:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and self._is_parameter(value):
                    self.found.append(str(function))
        return function(*args, **(kwargs or {}))

    def _is_parameter(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._memory

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


@contextmanager
def nothing_outside(policy: torch.nn.Module) -> Iterator[OutsideOfForward]:
    watch = OutsideOfForward(policy)
    try:
        with watch:
            yield watch
    finally:
        watch.remove()
    assert not watch.found, sorted(set(watch.found))
    assert watch.calls, "nothing was computed"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return Model.load(tiny_checkpoint, device="cpu")


def test_the_watch_sees_what_it_should(model: Model) -> None:
    """A product with a weight, a view of one and a copy of one are found."""
    weight = model.policy.model.get_output_embeddings().weight
    for use in (
        lambda: torch.ones(1, 64) @ weight.detach().T,
        lambda: weight[3],
        lambda: weight.to(torch.bfloat16),
        lambda: torch.cat([torch.zeros(1, 64), weight]),
    ):
        watch = OutsideOfForward(model.policy)
        with watch:
            use()
        watch.remove()
        assert watch.found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept", [False, True])
def test_answering_touches_weights_in_calls_alone(
    tiny_checkpoint: Path, kept: bool, dtype: Any
) -> None:
    model = Model.load(tiny_checkpoint, dtype=dtype, device="cpu")
    store = PrefixStore()
    engine = model.engine(
        options=EngineOptions(prompts_per_batch=1, slots=4), prefixes=store if kept else None
    )
    requests = [RolloutRequest(prompt=p, draw=n) for n, p in enumerate(prompts(tiny_checkpoint))]
    with nothing_outside(model.policy), engine.step():
        answers = engine.generate(requests, SAMPLING)
        assert (store.take(pack([r.prompt for r in requests], COMPLETIONS)) is not None) == kept
    assert len(answers) == 2


class Unequal:
    """Rewards that differ within a group."""

    def score(self, groups: Any) -> Scored:
        scored = [replace(group, rewards=(1.0, 0.0, 0.5)) for group in groups]
        return Scored(groups=scored, failures=[])


def test_collecting_credit_and_old_log_probs_touch_weights_in_calls_alone(model: Model) -> None:
    accelerator = Accelerator(cpu=True)
    examples = [scene_example(i) for i in range(3)]
    collector = Collector(
        PromptSource(examples=examples, encoder=model.encoder(), seed=0),
        EngineResponder(engine=model.engine(), sampling=SAMPLING),
        Unequal(),
        Quota(prompts_per_step=2, beta_th=0.0, max_resample_attempts=1),
        accelerator,
        drop_broken=False,
        progress=Display(Console(), steps=1, done=0, enabled=False),
    )
    algorithm = grpo(kl_beta=0.1, updates=2)
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    learner = Learner(
        model.policy,
        algorithm,
        shardings.get("none")(setup),
        LearnerSettings(
            layout=Layout(tokens_per_pass=60, shared_prefix=True),
            max_grad_norm=1.0,
            max_new_tokens=4,
            learning_rate=lambda step, part: 1e-3,
        ),
        accelerator,
        make_optimizer=partial(make_adamw, betas=(0.9, 0.99), weight_decay=0.0),
        reference=make_reference(model.policy, torch.float32),
    )
    with nothing_outside(model.policy):
        collection = collector.collect(RunState())
        kept = learner.keep_old_logps(collection.used)
        algorithm.credit(batch_of(accelerator, kept))
    assert len(kept) == 2
    assert [len(values) for values in kept[0].old_logps] == [
        len(completion.token_ids) for completion in kept[0].completions
    ]


def batch_of(accelerator: Accelerator, groups: tuple[Group, ...]) -> Any:
    counts, deviation = count_step(accelerator, groups)
    old = [p for group in groups for values in group.old_logps for p in values]
    return make_step_batch(
        groups,
        counts=counts,
        reward_std=deviation,
        max_new_tokens=4,
        old_logp_K=torch.tensor(old, dtype=torch.float64),
        reference_logp_K=torch.zeros(len(old), dtype=torch.float64),
    )


def test_every_request_is_answered_in_a_call_alone(model: Model, tiny_checkpoint: Path) -> None:
    """Also what training asks of the policy, forward."""
    packed = pack(prompts(tiny_checkpoint), COMPLETIONS)
    requests = (
        Score(packed=packed),
        Prefill(packed=packed),
        Features(packed=packed),
        CastMatrices(dtype=torch.bfloat16),
        CastHead(),
    )
    with nothing_outside(model.policy):
        for request in requests:
            model.policy(request)
