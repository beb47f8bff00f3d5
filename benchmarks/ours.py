"""Our side: the only module here that knows the parts of gpg_vl that sample and train.

`shared` is the product: each picture and prompt once per group, in passes of the size that a config has by default. `reused`
is that with `train.reuse_prefill`: training goes on from the rollout's prompts. `one_group` gives each group a pass of its
own, which holds less. `naive` is that with the same kernels and one row per completion: the prompt of a completion is
prefilled for it alone and trained in a row of its own. It tells what is due to sharing and what to everything else.
"""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.anchor import Question, Row
from benchmarks.meter import Meter
from gpg_vl.algorithms.losses import Aggregation
from gpg_vl.config import TrainConfig
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import Tokens, load_model, load_processing, quiet
from gpg_vl.models.policy import Policy
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.rollout.engine import Sampling
from gpg_vl.rollout.native import NativeEngine
from gpg_vl.training.batch import Objective
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.step import global_counts, update
from gpg_vl.types import Completion, Example, Group, Prompt

LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0
LAYOUTS = ("shared", "reused", "one_group", "naive")


def forbidden(tokens: Tokens) -> tuple[int, ...]:
    """The ids that neither side may sample: those of vision, and those that would end a completion before its length."""
    return (*tokens.never_sampled, *(t for t in tokens.ends if t not in tokens.never_sampled))


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
        processing = load_processing(str(checkpoint))
        with quiet():
            model = load_model(str(checkpoint))
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        # no end token: every completion has its full length, and the sampling law is otherwise untouched
        tokens = replace(
            processing.tokens, ends=(), never_sampled=forbidden(processing.tokens) if masked else ()
        )
        self._processing = replace(processing, tokens=tokens)
        self.policy = Policy(model, processing.family, tokens)
        self._encoder = Encoder(
            processing=self._processing, style=PromptStyle(), limits=PixelLimits(), root=None
        )
        self._reuses = layout == "reused"
        rows = 1 if self._reuses else row.prompts_per_step if self.shared else row.completions
        self._engine = NativeEngine(self.policy, self._processing, prompts_per_batch=rows)
        self._optimizer = make_adamw(self.policy.model, betas=(0.9, 0.999), weight_decay=0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        self._accelerator = Accelerator(cpu=True)
        self._tokens_per_pass = (
            TrainConfig().tokens_per_pass if layout in ("shared", "reused") else None
        )

    def towers(self) -> tuple[nn.Module, nn.Module]:
        """Vision tower and text model, to hang counters on."""
        family = self._processing.family
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
            return self._engine.generate(prompts, sampling, range(draw, draw + len(prompts)))
        # a name of its own for each copy, or the engine would find out that the pictures are the same
        repeated = [
            replace(p, image_keys=tuple(f"{key} {member}" for key in p.image_keys))
            for p in prompts
            for member in range(size)
        ]
        single = self._engine.generate(
            repeated, sampling, range(draw * size, draw * size + len(repeated))
        )
        flat = [c for (c,) in single]
        return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]

    def train(
        self,
        groups: Sequence[Group],
        *,
        aggregation: Aggregation = "token",
        max_grad_norm: float = MAX_GRAD_NORM,
    ) -> None:
        """One optimizer step, with alpha = 1: a peer has no alpha."""
        objective = Objective(
            f_norm="one",
            age="off",
            aggregation=aggregation,
            max_new_tokens=self.row.completion_tokens,
        )
        counts, deviation = global_counts(self._accelerator, groups)
        outcome = update(
            self.policy,
            self._optimizer,
            self._accelerator,
            groups,
            counts=counts,
            batch_std=deviation,
            objective=objective,
            tokens_per_pass=self._tokens_per_pass
            or max(self._tokens_of(group) for group in groups),
            shared_prefix=self.shared,
            max_grad_norm=max_grad_norm,
        )
        assert outcome.applied, "no group carries a signal"

    def _tokens_of(self, group: Group) -> int:
        """What a group fills of a pass, at least as much as is run of it."""
        copies = 1 if self.shared else self.row.group_size
        return copies * group.prompt.length + sum(len(c.token_ids) for c in group.completions)

    def step(self, asked: Sequence[Question], draw: int, meter: Meter) -> None:
        """One whole step: pictures, sampling, rewards, update."""
        start = time.perf_counter()
        with self._keeping():
            encoded = self.encode(asked)
            answers = self.sample([prompt for _, prompt in encoded], draw)
            for group in answers:
                assert all(len(c.token_ids) == self.row.completion_tokens for c in group), (
                    "a completion ended early"
                )
            groups = [
                Group(
                    example=e,
                    prompt=p,
                    completions=c,
                    rewards=self.row.rewards(draw + i),
                    draw=draw + i,
                )
                for i, ((e, p), c) in enumerate(zip(encoded, answers, strict=True))
            ]
            meter.rollout_took(time.perf_counter() - start)
            self.train(groups)
        meter.step_ended()

    def _keeping(self) -> AbstractContextManager[None]:
        return self.policy.keeping_prefixes() if self._reuses else nullcontext()

    def gradient(
        self,
        asked: Sequence[Question],
        tokens_P_G_T: Sequence[Sequence[Sequence[int]]],
        rewards_P_G: Sequence[Sequence[float]],
        aggregation: Aggregation,
    ) -> dict[str, Tensor]:
        """The gradient of a step on given completions, unclipped, by the parameter's name in transformers."""
        groups = [
            Group(
                example=e,
                prompt=p,
                completions=tuple(
                    Completion(
                        token_ids=tuple(t),
                        logprobs=(0.0,) * len(t),
                        text="",
                        finish_reason="length",
                    )
                    for t in tokens
                ),
                rewards=tuple(rewards),
            )
            for (e, p), tokens, rewards in zip(
                self.encode(asked), tokens_P_G_T, rewards_P_G, strict=True
            )
        ]
        with self._keeping():
            if self._reuses:
                self.sample([group.prompt for group in groups], draw=0)
            self.train(groups, aggregation=aggregation, max_grad_norm=math.inf)
        return {
            name: p.grad.clone()
            for name, p in self.policy.model.named_parameters()
            if p.grad is not None
        }


def run(ours: Ours, asked: Sequence[Question], *, steps: int, warmup: int) -> Meter:
    """Measure `steps` steps after `warmup`, each on the next questions."""
    meter = Meter(*ours.towers(), warmup=warmup)
    size = ours.row.prompts_per_step
    torch.manual_seed(0)
    meter.start()
    for i in range(warmup + steps):
        ours.step(asked[i * size : (i + 1) * size], i * size, meter)
    return meter
