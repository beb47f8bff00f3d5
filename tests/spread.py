"""What processes that share the weights compute, beside what one process alone computes: run under torchrun by test_fsdp2.

    torchrun ... tests/spread.py CHECKPOINT FOLDER SHARDING NAME...

Each process writes what it has found of the named cases into FOLDER/rank-N.pt.
"""

import faulthandler
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from test_learner import adamw, aged, descent, make_groups, make_learner
from test_phases import adapters_everywhere, checkpointed, only, with_adapters
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.ppo import ppo
from gpg_vl.model import Model
from gpg_vl.models.families import Family
from gpg_vl.rollout.engine import RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.failures import NonFiniteError
from gpg_vl.training.learner import Learner
from gpg_vl.training.sharding import shardings, zero_internals
from gpg_vl.training.sharding.protocol import Sharding, ShardingSetup
from gpg_vl.training.sharding.zero import Zero
from gpg_vl.types import Group

TIME_LIMIT = 900
Prepare = Callable[[Any, Family], None]


def everything(model: Any, family: Family) -> None:
    pass


def without_vision(model: Any, family: Family) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part_of(name) == "language")


@dataclass(frozen=True)
class Case:
    """Steps of training, and who trains on which groups."""

    deals: dict[int, list[list[int]]]
    """Number of processes -> the groups of each."""
    tokens_per_pass: int = 10**6
    shared: bool = True
    prepare: Prepare = everything
    algorithm: Callable[[], Algorithm] = gpg
    steps: int = 1
    optimizer: Callable[..., Any] = descent
    rate: float = 0.0
    max_grad_norm: float = float("inf")
    old: bool = False
    """Whether every other group was sampled by older weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: torch.dtype | None = None
    """Of trained matrices; see `ShardingSetup`."""
    defer: bool = False
    one_unit: bool = False
    """Whether everything is gathered at once, in place of layer by layer."""


HALVES = {2: [[0, 1, 2, 3], [4, 5, 6, 7]], 3: [[0, 1, 2], [3, 4, 7], [5, 6]]}
IDLE = {2: [[], list(range(8))], 3: [[], list(range(8)), []]}
UNEQUAL = {2: [[0, 1, 2, 4, 5, 6], [3, 7]], 3: [[0, 1, 2, 4], [7], [3, 5, 6]]}
TEXT = {2: [[7], list(range(7))], 3: [[7], [0, 1, 2, 3], [4, 5, 6]]}
"""Group 7 alone has no picture."""
TEXT_LAST = {2: [[0, 1, 2, 3, 4, 5, 7], [6]]}
"""The last micro-batch has no picture on either process."""


def kl() -> Algorithm:
    return grpo(kl_beta=0.1)


def twice() -> Algorithm:
    return grpo(kl_beta=0.1, updates=2)


CASES = {
    "plain": Case(HALVES),
    "a process without groups": Case(IDLE),
    "cut differently": Case(UNEQUAL, tokens_per_pass=90),
    "each answer a chunk": Case(UNEQUAL, tokens_per_pass=1),
    "text on one process": Case(TEXT),
    "text on one process, in chunks": Case(TEXT, tokens_per_pass=1),
    "naive rows": Case(UNEQUAL, tokens_per_pass=90, shared=False),
    "frozen tower": Case(TEXT, tokens_per_pass=90, prepare=without_vision),
    "adapters": Case(UNEQUAL, tokens_per_pass=90, prepare=with_adapters),
    "adapters everywhere": Case(TEXT, tokens_per_pass=90, prepare=adapters_everywhere),
    "merger alone": Case(TEXT, tokens_per_pass=90, prepare=only(".visual.merger.")),
    "root alone": Case(UNEQUAL, tokens_per_pass=90, one_unit=True),
    "checkpointed": Case(UNEQUAL, tokens_per_pass=90, prepare=checkpointed),
    "deferred": Case(UNEQUAL, tokens_per_pass=90, defer=True),
    "deferred past the last image": Case(TEXT_LAST, tokens_per_pass=90, defer=True),
    "divergence": Case(UNEQUAL, tokens_per_pass=90, algorithm=kl, old=True),
    "divergence from no adapters": Case(
        UNEQUAL, tokens_per_pass=90, algorithm=kl, prepare=with_adapters, old=True
    ),
    "divergence from no adapters anywhere": Case(
        TEXT, tokens_per_pass=90, algorithm=kl, prepare=adapters_everywhere, old=True
    ),
    "three steps": Case(
        UNEQUAL, tokens_per_pass=90, steps=3, optimizer=adamw, rate=1e-3, max_grad_norm=0.05
    ),
    # AdamW divides a gradient by its own size: where that is 2.9e-8, near its epsilon, another order of addition moves an
    # adapter by a visible part of the rate. At 1e-3 one process in other chunks is 1.4e-6 from itself by one such weight.
    "three steps of adapters": Case(
        IDLE, tokens_per_pass=90, steps=3, optimizer=adamw, rate=1e-4, prepare=with_adapters
    ),
    "three steps of adapters everywhere": Case(
        UNEQUAL,
        tokens_per_pass=90,
        steps=3,
        optimizer=adamw,
        rate=1e-4,
        prepare=adapters_everywhere,
    ),
    "two updates a step": Case(
        UNEQUAL, tokens_per_pass=90, steps=2, optimizer=adamw, rate=1e-3, algorithm=twice, old=True
    ),
}
"""The first ones are measured in their gradient, those with a rate in their weights after so many steps."""

ROUNDED = {
    "frozen in bfloat16": Case(
        UNEQUAL, tokens_per_pass=90, dtype="bfloat16", prepare=with_adapters, algorithm=kl, old=True
    ),
    "frozen tower in bfloat16": Case(
        TEXT, tokens_per_pass=90, dtype="bfloat16", prepare=without_vision
    ),
    "bfloat16 weights": Case(UNEQUAL, tokens_per_pass=90, dtype="bfloat16", weights=torch.bfloat16),
    "steps of bfloat16 weights": Case(
        UNEQUAL,
        tokens_per_pass=90,
        dtype="bfloat16",
        weights=torch.bfloat16,
        steps=3,
        optimizer=adamw,
        rate=1e-3,
    ),
}
"""Under bfloat16."""


def with_values() -> Algorithm:
    return ppo(kl_beta=0.1, value_coef=0.7, updates=1)


WITH_CRITIC = {
    "critic": Case(UNEQUAL, tokens_per_pass=90, algorithm=with_values, old=True, rate=0.1),
    "critic, a process without groups": Case(IDLE, algorithm=with_values, old=True, rate=0.1),
}
"""Of algorithms with a critic, for shardings that train one."""

EIGHT_BIT = {
    "three steps of bytes": Case(
        UNEQUAL,
        tokens_per_pass=90,
        steps=3,
        optimizer=partial(adamw, bytes_of_moments=1),
        rate=1e-3,
    ),
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


@dataclass
class Watched:
    """A sharding whose gradients are looked at when they are complete, on one process at least."""

    inner: Sharding
    processes: int = 1
    optimizer: Any = None
    trained: list[Tensor] = field(default_factory=list)
    """In the order of the optimizer, which DeepSpeed gives other tensors."""
    gradients: list[list[Tensor]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def wrap(self, policy: Any, make_optimizer: Callable[[Any], Any]) -> Any:
        def make(policy: Any) -> Any:
            self.optimizer = make_optimizer(policy)
            self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            return self.optimizer

        return self.inner.wrap(policy, make)

    def weights(self) -> list[Tensor]:
        if isinstance(self.inner, Zero):
            return [self.inner._gather(p).detach().clone() for p in self.trained]
        return [whole(p.detach()) for p in self.trained]

    def state(self) -> list[Tensor]:
        """Weights and all that the optimizer keeps, whole."""
        if isinstance(self.inner, Zero):
            engine = self.inner._engine.optimizer
            kept = zero_internals.full_state(engine, self.inner._trained)
            return [*self.weights(), *(tensor.clone() for _, tensor in kept)]
        states = [v for p in self.trained for v in self.optimizer.state[p].values()]
        return [*self.weights(), *(whole(t.detach()) for t in states)]

    def clip_and_step(self, max_norm: float, *, loss_is_finite: bool) -> Any:
        if isinstance(self.inner, Zero):
            with watched_inside(self):
                return self.inner.clip_and_step(max_norm, loss_is_finite=loss_is_finite)
        if self.inner.holds_whole:
            given = [p.grad for p in self.trained]
        else:
            self.inner._give_back()
            given = [p.grad for p in self.trained]
        zeros = [torch.zeros(p.shape) for p in self.trained]
        pairs = zip(given, zeros, strict=True)
        self.gradients.append([z if g is None else whole(g) for g, z in pairs])
        return self.inner.clip_and_step(max_norm, loss_is_finite=loss_is_finite)


@contextmanager
def watched_inside(watched: Watched) -> Iterator[None]:
    """Within, gradients that DeepSpeed has put together are looked at; it has averaged what is summed elsewhere."""
    complete = zero_internals.complete_gradients

    def look(optimizer: Any) -> list[Tensor]:
        from deepspeed.utils import safe_get_full_grad

        parts = complete(optimizer)
        found = [safe_get_full_grad(p) for p in watched.trained]
        watched.gradients.append([watched.processes * g.float() for g in found])
        return parts

    zero_internals.complete_gradients = look
    try:
        yield
    finally:
        zero_internals.complete_gradients = complete


def make_sharding(name: str, processes: int, is_main: bool, case: Case | None = None) -> Watched:
    name, _, offload = name.partition("+")
    setup = ShardingSetup(
        device=torch.device("cpu"),
        processes=processes,
        is_main=is_main,
        offload=offload or "none",
        weights=case.weights if case else None,
        defer_reduction=case is not None and case.defer,
    )
    return Watched(shardings.get(name)(setup), processes)


@dataclass
class Trainer:
    """A learner with everything that a test looks at."""

    model: Model
    sharding: Watched
    learner: Learner


def make_trainer(checkpoint: Path, case: Case, sharding: Watched) -> Trainer:
    model = Model.load(
        checkpoint,
        device="cpu",
        dtype=case.dtype,
        placed=sharding.holds_whole,
        prepare=case.prepare,
        vision_cache_mb=16,
    )
    if case.one_unit:
        nothing: Callable[[Any], list[Any]] = lambda model: []  # noqa: E731
        policy = model.policy
        policy.family = replace(policy.family, layers=nothing, vision_blocks=nothing)
    algorithm = case.algorithm()
    if algorithm.critic is not None:
        model.policy.add_critic()
        layer = model.policy.critic.weight_H
        layer.data = torch.linspace(-0.04, 0.05, len(layer))
    learner = make_learner(
        model.policy,
        algorithm,
        optimizer=case.optimizer,
        rate=case.rate,
        tokens_per_pass=case.tokens_per_pass,
        shared=case.shared,
        max_grad_norm=case.max_grad_norm,
        sharding=sharding,
        spread=sharding.spread,
        autocast=model.autocast,
    )
    return Trainer(model, sharding, learner)


def train(trainer: Trainer, case: Case, mine: Sequence[Group], first: int = 0) -> list[Any]:
    reports = []
    for step in range(first, first + case.steps):
        reports.append(trainer.learner.update(mine, step=step))
    return reports


def groups_of(case: Case, groups: Sequence[Group]) -> list[Group]:
    return [aged(group, n) if case.old and n % 2 else group for n, group in enumerate(groups)]


def compute(case: Case, checkpoint: Path, mine: Sequence[Group], sharding: Watched) -> dict:
    """What a case comes to: gradient of the first update, weights after the last, what was reported.

    On one thread, whoever asks: how many there are decides the last digits, and AdamW's first steps make more of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = make_trainer(checkpoint, case, sharding)
        reports = train(trainer, case, mine)
    finally:
        torch.set_num_threads(threads)
    return {
        "gradient": torch.cat([g.flatten() for g in sharding.gradients[0]]),
        "weights": torch.cat([p.flatten() for p in sharding.weights()]),
        "adapters": {name: t.clone() for name, t in sharding.full_adapters().items()},
        "full": {name: tensor.clone() for name, tensor in trainer.learner.weights()},
        "norms": [report.grad_norm for report in reports],
        "losses": [report.loss for report in reports],
    }


# ---- more than a gradient


def held(accelerator: Accelerator, checkpoint: Path, kind: str) -> dict:
    """Numbers that this process holds of a policy that is spread, and of one that is not."""
    counts = {}
    for name in (kind, "none"):
        sharding = make_sharding(name, accelerator.num_processes, accelerator.is_main_process)
        trainer = make_trainer(checkpoint, replace(CASES["three steps"], steps=1), sharding)
        train(trainer, CASES["three steps"], make_groups(checkpoint)[:1])
        local = lambda t: t.to_local() if isinstance(t, DTensor) else getattr(t, "ds_tensor", t)  # noqa: E731
        weights = sum(local(p).numel() for p in trainer.model.policy.parameters())
        states = sharding.optimizer.state.values()
        moments = sum(local(state["exp_avg"]).numel() for state in states)
        counts[name] = [weights, moments]
    return counts


def replicated(accelerator: Accelerator, checkpoint: Path, kind: str) -> dict:
    """Three steps of bfloat16 weights that every process holds, each with random numbers of its own otherwise."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    case, groups = ROUNDED["steps of bfloat16 weights"], make_groups(checkpoint)
    sharding = make_sharding("none", processes, rank == 0, case)
    trainer = make_trainer(checkpoint, case, sharding)
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        train(trainer, case, [groups[n] for n in case.deals[processes][rank]])
    return {"weights": torch.cat([p.detach().flatten() for p in sharding.trained])}


def broken(accelerator: Accelerator, checkpoint: Path, name: str) -> dict:
    """A step that is not finite on the last process alone, between two that are."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    case, groups = CASES["three steps"], make_groups(checkpoint)
    mine = [groups[n] for n in case.deals[processes][rank]]
    sharding = make_sharding(name, processes, rank == 0)
    trainer = make_trainer(checkpoint, case, sharding)
    trainer.learner.update(mine, step=0)

    def look() -> list[Tensor]:
        return sharding.state()

    before, raised = look(), False
    bad = mine
    if rank == processes - 1:
        ids = mine[-1].prompt.pixel_values_N
        pixels = torch.full_like(groups[0].prompt.pixel_values_N, float("nan"))
        assert ids is None or len(ids)
        bad = [replace(groups[0], prompt=replace(groups[0].prompt, pixel_values_N=pixels))]
    try:
        trainer.learner.update(bad, step=1)
    except NonFiniteError as error:
        raised = "examples: 0" in str(error)
    same = [torch.equal(a, b) for a, b in zip(before, look(), strict=True)]
    report = trainer.learner.update(mine, step=1)
    return {"raised": raised, "untouched": all(same), "norm": report.grad_norm}


def answered(accelerator: Accelerator, checkpoint: Path, name: str) -> dict:
    """Unequal numbers of prompts and lengths of answers on each process; then a step; then again."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    case = replace(CASES["three steps"], rate=1e-2)
    sharding = make_sharding(name, processes, rank == 0)
    trainer = make_trainer(checkpoint, case, sharding)
    engine = trainer.model.engine(by_copy=True, awaits_sync=True)
    groups = make_groups(checkpoint)
    requests = [RolloutRequest(prompt=g.prompt, draw=g.draw) for g in groups[rank : 4 - rank]]
    found: dict[str, Any] = {"gaps": []}
    for step in range(2):
        synced = engine.sync(trainer.learner.weights, step)
        sampling = Sampling(group_size=3, temperature=1.0, max_new_tokens=3 + 6 * rank, seed=5)
        answers = engine.generate(requests, sampling)
        mine = [
            replace(g, completions=a, old_logps=())
            for g, a in zip(groups[rank : 4 - rank], answers, strict=True)
        ]
        mine = [replace(g, rewards=(1.0, 0.0, 0.5)) for g in mine]
        report = trainer.learner.update(mine, step=step)
        found["gaps"].append([report.logp_gap_mean, report.logp_gap_max])
        found["synced"] = [synced.version, synced.tensors]
    return found


def saved(accelerator: Accelerator, checkpoint: Path, folder: Path, name: str, kind: str) -> dict:
    """One step, saved; two more; and the same two from what was saved, by a learner that knows nothing else."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    case = replace({**CASES, **ROUNDED, **EIGHT_BIT}[name], steps=1)
    groups = make_groups(checkpoint)
    mine = [groups[n] for n in case.deals[processes][rank]]
    found: dict[str, Any] = {}

    def go_on(trainer: Trainer) -> tuple[Tensor, list[float]]:
        reports = train(trainer, replace(case, steps=2), mine, first=1)
        flat = [p.flatten() for p in trainer.sharding.weights()]
        return torch.cat(flat), [report.grad_norm for report in reports]

    if processes == 2:
        first = make_trainer(checkpoint, case, make_sharding(kind, processes, rank == 0, case))
        train(first, case, mine)
        first.sharding.save(folder)
        found["straight"] = go_on(first)

    second = make_trainer(checkpoint, case, make_sharding(kind, processes, rank == 0, case))
    second.sharding.load(folder)
    found["resumed"] = go_on(second)
    return found


def main(checkpoint: Path, folder: Path, kind: str, names: Sequence[str]) -> None:
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, processes = accelerator.process_index, accelerator.num_processes
    groups = make_groups(checkpoint)
    found: dict[str, Any] = {}
    for name in names:
        if (case := {**CASES, **ROUNDED, **EIGHT_BIT, **WITH_CRITIC}.get(name)) is not None:
            mine = [groups_of(case, groups)[n] for n in case.deals[processes][rank]]
            sharding = make_sharding(kind, processes, rank == 0, case)
            found[name] = compute(case, checkpoint, mine, sharding)
        elif name.startswith("saved "):
            trained = name.removeprefix("saved ")
            parts = folder.parent / "saved" / trained.replace(" ", "-")
            found[name] = saved(accelerator, checkpoint, parts, trained, kind)
        else:
            more = {
                "held": held,
                "replicated": replicated,
                "broken": broken,
                "answered": answered,
            }
            found[name] = more[name](accelerator, checkpoint, kind)
        print(f"process {rank}: {name}", flush=True)
    torch.save(found, folder / f"rank-{rank}.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
