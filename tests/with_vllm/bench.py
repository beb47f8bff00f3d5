"""A policy and a vLLM engine beside it, and how far apart their log-probs are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from conftest import scene_example
from test_learner import adamw, make_learner
from torch import Tensor

from gpg_vl.algorithms.gpg import gpg
from gpg_vl.model import Model
from gpg_vl.models.layout import pack
from gpg_vl.models.requests import Score
from gpg_vl.rollout.engine import Engine, EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Completion, Example, Group, Prompt

Images = Literal["pixels", "features"]
Prepare = Callable[[Any, Any], None] | None
SAMPLING = Sampling(group_size=4, temperature=1.0, max_new_tokens=8, seed=5)
FAULT = 1e-4
"""A mean gap above it stops a run in float32; every planted fault must lie above."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences between the log-probs of engine and policy, of every sampled token."""

    mean: float
    largest: float

    def is_rounding(self) -> bool:
        return self.mean <= 2e-6 and self.largest <= 5e-5


@dataclass(slots=True, kw_only=True)
class Bench:
    """An engine and the policy that it should sample from."""

    model: Model
    engine: Engine
    prompts: list[Prompt]
    version: int = 0

    def answer(
        self,
        sampling: Sampling = SAMPLING,
        draws: Sequence[int] | None = None,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        numbers = range(len(self.prompts)) if draws is None else draws
        requests = [
            RolloutRequest(prompt=prompt, draw=draw)
            for prompt, draw in zip(self.prompts, numbers, strict=True)
        ]
        return self.engine.generate(requests, sampling, done)

    def gap(self, sampling: Sampling = SAMPLING) -> Gap:
        answers = self.answer(sampling)
        return compare(self.model, self.prompts, answers)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.model.policy.model.state_dict().items())

    def sync(self) -> None:
        self.version += 1
        self.engine.sync(self.weights, self.version)

    def shake(self, part: str, size: float = 0.2) -> None:
        """Change the weights of a part ("" for all) by noise of `size` times their spread."""
        generator = torch.Generator().manual_seed(self.version)
        family = self.model.processing.family
        with torch.no_grad():
            for name, weight in self.model.policy.model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator) * size * weight.std()
                if part in ("", family.part_of(name)):
                    weight.add_(noise)

    def train(self, rate: float = 3e-3) -> None:
        """One optimizer step on what the engine has answered."""
        groups = [
            Group(
                example=Example(id=str(n), prompt="", answer=""),
                prompt=prompt,
                completions=completions,
                rewards=tuple(float(place == 0) for place in range(len(completions))),
                reward_parts={"r": tuple(float(place == 0) for place in range(len(completions)))},
                draw=n,
            )
            for n, (prompt, completions) in enumerate(zip(self.prompts, self.answer(), strict=True))
        ]
        learner = make_learner(self.model.policy, gpg(), optimizer=adamw, rate=rate)
        assert learner.update(groups, step=0).applied


def compare(
    model: Model, prompts: Sequence[Prompt], answers: Sequence[tuple[Completion, ...]]
) -> Gap:
    packed = pack(prompts, [[c.token_ids for c in completions] for completions in answers])
    was_training = model.policy.training
    with torch.no_grad():
        mine = model.policy.eval()(Score(packed=packed)).logp_K
    model.policy.train(was_training)

    said = [logp for completions in answers for c in completions for logp in c.logprobs]
    difference = (mine - torch.tensor(said)).abs()
    return Gap(mean=difference.mean().item(), largest=difference.max().item())


def make_prompts(model: Model) -> list[Prompt]:
    """Prompts with 1, 1, 1, 2, 5 and 0 images of several sizes; two of them show one picture. Text alone for text models."""
    encoder = model.encoder()
    plain = Example(id="plain", prompt="How many balls are there?", answer="1")
    longer = replace(plain, id="longer", prompt="Name the objects from left to right, please.")
    if not model.processing.family.has_vision:
        return [encoder.encode(example) for example in (plain, longer)]

    scenes = [scene_example(number) for number in range(5)]
    pictures = [scene.images[0] for scene in scenes]
    examples = [
        scenes[0],
        scenes[1],
        replace(scenes[1], id="again", prompt="What is on the left?"),
        replace(scenes[2], id="two", images=tuple(pictures[:2])),
        replace(scenes[3], id="five", images=tuple(pictures)),
        plain,
    ]
    return [encoder.encode(example) for example in examples]


def make_bench(
    checkpoint: Path,
    *,
    images: Images = "pixels",
    prepare: Prepare = None,
    servers: tuple[str, ...] = (),
) -> Bench:
    """With vLLM in this process, or with the servers that are given."""
    model = Model.load(checkpoint, device="cpu", prepare=prepare)
    options = EngineOptions(slots=32, images=images, servers=servers, server_wait=300)
    engine = model.engine("vllm_server" if servers else "vllm", options=options)
    return Bench(model=model, engine=engine, prompts=make_prompts(model))


def assert_beside(bench: Bench, both: Sequence[tuple[Completion, ...]]) -> None:
    """That `both` is what is drawn without a greedy answer, and that answer behind it."""
    plain = bench.answer(SAMPLING)
    likeliest = bench.answer(replace(SAMPLING, group_size=1, temperature=0.0))
    for (*group, last), sampled, (greedy,) in zip(both, plain, likeliest, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in sampled]
        assert last.token_ids == greedy.token_ids
