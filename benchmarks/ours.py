"""Our side: the engine and the learner of gpg_vl on the questions of a case.

`shared` is the product: each picture and prompt once per group, in passes of the size that a config has by default. `reused`
is that with `train.reuse_prefill`: training goes on from the rollout's prompts. `one_group` gives each group a pass of its
own, which holds less. `naive` is that with the same kernels and one row per completion: the prompt of a completion is
prefilled for it alone and trained in a row of its own. It tells what is due to sharing and what to everything else.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.anchor import GivenStep, Question, Row
from benchmarks.learner import gradient, make_learner
from benchmarks.meter import Meter
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.config import TrainConfig
from gpg_vl.model import Model
from gpg_vl.models.load import Tokens, load_processing, quiet
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import Reference
from gpg_vl.rollout.engine import EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.learner import Learner
from gpg_vl.training.micro_batch import Layout
from gpg_vl.types import Completion, Example, Group, Prompt

LAYOUTS = ("shared", "reused", "one_group", "naive")


def forbidden(tokens: Tokens) -> tuple[int, ...]:
    """The ids that neither side may sample: those of vision, and those that would end a completion before its length."""
    ends = [token for token in tokens.ends if token not in tokens.never_sampled]
    return (*tokens.never_sampled, *ends)


def load(checkpoint: Path, *, masked: bool, checkpointing: bool = False) -> Model:
    """A model whose answers never end before their length; the sampling law is otherwise untouched."""

    def prepare(model: Any, family: object) -> None:
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    processing = load_processing(str(checkpoint))
    never = forbidden(processing.tokens) if masked else ()
    tokens = replace(processing.tokens, ends=(), never_sampled=never)
    with quiet():
        return Model.load(
            checkpoint,
            device="cpu",
            processing=replace(processing, tokens=tokens),
            prepare=prepare,
        )


class Ours:
    """Steps of one policy over one case.

    masked: forbid ids in rollout and loss alike, as a run does. Without it the loss is over the whole vocabulary, which is
        what a peer's loss is over.
    layout: one of LAYOUTS.
    """

    def __init__(
        self,
        checkpoint: Path,
        row: Row,
        layout: str,
        *,
        checkpointing: bool = False,
        masked: bool = True,
    ) -> None:
        assert layout in LAYOUTS, layout
        self.row = row
        self.shared = layout != "naive"
        self._fills_passes = layout in ("shared", "reused")

        self.model = load(checkpoint, masked=masked, checkpointing=checkpointing)
        self.policy = self.model.policy
        self._encoder = self.model.encoder()

        # the rows of a naive rollout are computed together too, so that only sharing tells the two apart
        self._prefixes = PrefixStore() if layout == "reused" else None
        rows = row.prompts_per_step if self.shared else row.completions
        self._engine = self.model.engine(
            options=EngineOptions(prompts_per_batch=rows), prefixes=self._prefixes
        )
        self._learner: Learner | None = None

    def towers(self) -> tuple[nn.Module, nn.Module]:
        """Vision tower and text model, to hang counters on."""
        family = self.policy.family
        vision = family.vision_tower(self.policy.model)
        assert vision is not None, family.model_type
        return vision, family.language_model(self.policy.model)

    def encode(self, asked: Sequence[Question]) -> list[tuple[Example, Prompt]]:
        examples = [Example(id=q.name, images=(q.png,), prompt=q.text, answer="(A)") for q in asked]
        return [(example, self._encoder.encode(example)) for example in examples]

    def sample(self, prompts: Sequence[Prompt], draw: int) -> list[tuple[Completion, ...]]:
        """G completions of each prompt. `draw` is the number of the first prompt; it seeds the sampling."""
        size = self.row.group_size
        sampling = Sampling(
            group_size=size if self.shared else 1,
            temperature=1.0,
            max_new_tokens=self.row.completion_tokens,
            seed=0,
        )
        if self.shared:
            return self._engine.generate(_requests(prompts, draw), sampling)

        # a name of its own for each copy, or the engine would find out that the pictures are the same
        repeated = []
        for prompt in prompts:
            for member in range(size):
                keys = tuple(f"{key} {member}" for key in prompt.image_keys)
                repeated.append(replace(prompt, image_keys=keys))
        single = self._engine.generate(_requests(repeated, draw * size), sampling)
        flat = [completion for (completion,) in single]
        return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]

    def train(self, groups: Sequence[Group]) -> None:
        """One optimizer step, with alpha = 1: a peer has no alpha."""
        # made with the first groups, which say how many tokens a group fills; those of later steps are as long
        if self._learner is None:
            self._learner = make_learner(
                self.model,
                gpg(age="off"),
                layout=self._layout(groups),
                max_new_tokens=self.row.completion_tokens,
                prefixes=self._prefixes,
            )
        report = self._learner.update(groups, step=0)
        assert report.applied, "no group carries a signal"

    def step(self, asked: Sequence[Question], draw: int, meter: Meter) -> None:
        """One whole step: pictures, sampling, rewards, update."""
        start = time.perf_counter()
        with self._engine.step():
            encoded = self.encode(asked)
            answers = self.sample([prompt for _, prompt in encoded], draw)

            groups = []
            for place, (example, prompt) in enumerate(encoded):
                lengths = {len(completion.token_ids) for completion in answers[place]}
                assert lengths == {self.row.completion_tokens}, "a completion ended early"
                group = Group(
                    example=example,
                    prompt=prompt,
                    completions=answers[place],
                    rewards=self.row.rewards(draw + place),
                    draw=draw + place,
                )
                groups.append(group)

            meter.rollout_took(time.perf_counter() - start)
            self.train(groups)
        meter.step_ended()

    def gradient(
        self,
        asked: Sequence[Question],
        given: GivenStep,
        algorithm: Algorithm,
        reference: Reference | None = None,
    ) -> dict[str, Tensor]:
        """The gradient of a step on given completions, unclipped, by the weight's name in transformers."""
        groups = self.groups(asked, given)
        with self._engine.step():
            if self._prefixes is not None:
                self.sample([group.prompt for group in groups], draw=0)
            return gradient(
                self.model,
                algorithm,
                groups,
                layout=self._layout(groups),
                max_new_tokens=self.row.completion_tokens,
                reference=reference,
                prefixes=self._prefixes,
            )

    def groups(self, asked: Sequence[Question], given: GivenStep) -> list[Group]:
        """The groups of a step whose completions are given."""
        groups = []
        for place, (example, prompt) in enumerate(self.encode(asked)):
            completions = []
            for tokens in given.tokens_P_G_T[place]:
                completion = Completion(
                    token_ids=tuple(tokens), logprobs=(), text="", finish_reason="length"
                )
                completions.append(completion)

            old_logps_G_T = given.old_logps_P_G_T[place] if given.old_logps_P_G_T else ()
            group = Group(
                example=example,
                prompt=prompt,
                completions=tuple(completions),
                rewards=tuple(given.rewards_P_G[place]),
                old_logps=tuple(tuple(old_logps_T) for old_logps_T in old_logps_G_T),
            )
            groups.append(group)
        return groups

    def _layout(self, groups: Sequence[Group]) -> Layout:
        limit = TrainConfig().tokens_per_pass
        if not self._fills_passes:
            limit = max(self._tokens_of(group) for group in groups)
        return Layout(tokens_per_pass=limit, shared_prefix=self.shared)

    def _tokens_of(self, group: Group) -> int:
        """What a group fills of a pass, at least as much as is run of it."""
        copies = 1 if self.shared else self.row.group_size
        completions = sum(len(completion.token_ids) for completion in group.completions)
        return copies * group.prompt.length + completions


def _requests(prompts: Sequence[Prompt], draw: int) -> list[RolloutRequest]:
    numbered = enumerate(prompts, start=draw)
    return [RolloutRequest(prompt=prompt, draw=number) for number, prompt in numbered]


def run(ours: Ours, asked: Sequence[Question], *, steps: int, warmup: int) -> Meter:
    """Measure `steps` steps after `warmup`, each on the next questions."""
    meter = Meter(*ours.towers(), warmup=warmup)
    size = ours.row.prompts_per_step
    torch.manual_seed(0)
    meter.start()
    for i in range(warmup + steps):
        ours.step(asked[i * size : (i + 1) * size], i * size, meter)
    return meter
