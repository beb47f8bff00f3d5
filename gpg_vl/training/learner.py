"""The learner: one optimizer update after the other on the groups of a step.

It knows the policy, the algorithm and the sharding by what they promise, and nothing of how they keep it. The gradient does
not know how the groups were cut or dealt out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch
from gpg_vl.clock import timed
from gpg_vl.errors import RunError
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed
from gpg_vl.models.phases import forward_backward
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.models.reference import Reference
from gpg_vl.models.requests import Prefix, Score, ScoreOutput
from gpg_vl.training.balance import Dealt, deal
from gpg_vl.training.collectives import gather, maximum, sum_named, sums
from gpg_vl.training.equal_calls import match_calls
from gpg_vl.training.failures import (
    LogpGapError,
    NonFiniteError,
    explain_logp_gap,
    explain_non_finite,
    explain_out_of_memory,
)
from gpg_vl.training.micro_batch import (
    Layout,
    MicroBatch,
    count_tokens,
    make_idle_micro_batch,
    make_micro_batches,
    make_step_batch,
)
from gpg_vl.training.sharding.protocol import Sharding
from gpg_vl.training.step_totals import (
    Totals,
    UpdateReport,
    add_to,
    count_step,
    mean,
    mean_metrics,
    report_gap,
)
from gpg_vl.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """The numbers of an update. Fields as in the config."""

    layout: Layout
    max_grad_norm: float
    max_new_tokens: int
    learning_rate: Callable[[int, str], float]
    """(step, part) -> rate; the part "" is that of all parts without a rate of their own."""
    parts: tuple[str, ...] = ()
    """Parts with a rate of their own."""
    autocast: torch.dtype | None = None
    """Of the forward pass; None computes in the weights' own dtype."""
    max_logp_gap: float = inf
    """Mean gap between the engine's log-probs and the trainer's from which on nothing is trained; inf: any."""


class Learner:
    """Trains a policy with an algorithm.

    policy: not wrapped yet; the sharding wraps it here.
    reference: needed by algorithms that say so.
    prefixes: prompts that the engine may have kept for training to go on from.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        sharding: Sharding,
        settings: LearnerSettings,
        accelerator: Accelerator,
        *,
        make_optimizer: Callable[[Policy], torch.optim.Optimizer],
        reference: Reference | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        assert reference is not None or "reference_logp" not in algorithm.needs
        assert (policy.critic is None) == (algorithm.critic is None)
        self._policy = policy
        self._algorithm = algorithm
        self._sharding = sharding
        self._settings = settings
        self._accelerator = accelerator
        self._reference = reference
        self._prefixes = prefixes
        self._module: nn.Module = sharding.wrap(policy, make_optimizer)
        self._largest = 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors of the trained model; see `rollout.engine.Weights`."""
        return self._sharding.full_weights()

    def learning_rates(self, step: int) -> dict[str, float]:
        """The rates of step `step` (0, 1, ...), as metrics: that of all parts, and those of parts with one of their own."""
        rates = {"learning_rate": self._settings.learning_rate(step, "")}
        for part in self._settings.parts:
            rates[f"learning_rate/{part}"] = self._settings.learning_rate(step, part)
        return rates

    def deal(self, groups: Sequence[Group]) -> Dealt:
        """The groups that this process trains on: some change over to a process that has sampled less to learn from."""
        if self._accelerator.num_processes == 1:
            return Dealt(groups=tuple(groups), moved=0, before=1.0, after=1.0)

        # reference and critic score every completion, whatever is trained of them
        credit = None
        if "reference_logp" not in self._algorithm.needs and self._algorithm.critic is None:
            credit = self._algorithm.credit(self._make_batch(groups))
        tokens = count_tokens(groups, credit, self._settings.layout)

        # what the rollout keeps of prompts stays where they were sampled
        return deal(self._accelerator, groups, tokens, may_move=self._prefixes is None)

    def update(self, groups: Sequence[Group], *, step: int) -> UpdateReport:
        """Train on the groups of step `step` (0, 1, ...).

        Raises NonFiniteError or LogpGapError, on all processes, with weights and optimizer as the last update that was
        applied has left them.
        """
        batch = self._make_batch(groups, self._reference_logp(groups), self._values(groups))
        counts = batch.counts

        work = self._policy.work
        self._policy.train()
        reports: list[UpdateReport] = []
        for _ in range(self._algorithm.updates):
            credit = self._algorithm.credit(batch)
            micro_batches = make_micro_batches(groups, credit, self._settings.layout)
            number = int(maximum(self._accelerator, len(micro_batches)))
            if number == 0:
                # AdamW would still move on zero gradients (momentum, decay), so nothing at all is done
                return UpdateReport(applied=False, counts=counts, metrics=credit.metrics)

            totals = self._accumulate(micro_batches, credit, step)
            reports.append(self._apply(totals, counts, credit, number, is_first=not reports))

            # what this update has just computed is what the next one starts from
            if batch.old_logp_K is not None:
                batch = replace(batch, old_logp_K=totals.merge_logp(batch.old_logp_K))

        return self._summarize(reports, work.tower_tokens, work.vision_patches)

    def keep_old_logps(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Groups that are trained on after the weights have changed, with the log-probs of the weights that sampled them.

        A group that has them already keeps them: the weights of now are not those that sampled it.
        """
        fresh = [group for group in groups if not group.old_logps]
        if "old_logp" not in self._algorithm.needs:
            return tuple(groups)

        logps = self._score(fresh, self._module, "logp_K").tolist()
        kept = []
        start = 0
        for group in groups:
            if group.old_logps:
                kept.append(group)
                continue
            old = []
            for completion in group.completions:
                end = start + len(completion.token_ids)
                old.append(tuple(logps[start:end]))
                start = end
            kept.append(replace(group, old_logps=tuple(old)))
        return tuple(kept)

    def _make_batch(
        self,
        groups: Sequence[Group],
        reference_logp_K: Tensor | None = None,
        value_K: Tensor | None = None,
    ) -> StepBatch:
        # everything that counts the whole step is known before the first backward
        counts, reward_std = count_step(self._accelerator, groups)
        return make_step_batch(
            groups,
            counts=counts,
            reward_std=reward_std,
            max_new_tokens=self._settings.max_new_tokens,
            old_logp_K=self._stored_logp(groups),
            reference_logp_K=reference_logp_K,
            value_K=value_K,
            total=partial(sums, self._accelerator),
        )

    # ---- log-probs that an algorithm needs

    def _stored_logp(self, groups: Sequence[Group]) -> Tensor | None:
        """NaN where the current weights sampled a token: its old log-prob is the one that is trained."""
        if "old_logp" not in self._algorithm.needs:
            return None
        values: list[float] = []
        for group in groups:
            for place, completion in enumerate(group.completions):
                known = group.old_logps[place] if group.old_logps else ()
                values += known or [torch.nan] * len(completion.token_ids)
        return torch.tensor(values, dtype=torch.float64)

    def _reference_logp(self, groups: Sequence[Group]) -> Tensor | None:
        if "reference_logp" not in self._algorithm.needs:
            return None
        assert self._reference is not None
        return self._score(groups, self._reference, "logp_K")

    def _values(self, groups: Sequence[Group]) -> Tensor | None:
        """Those of the weights before the first update, whoever has sampled."""
        has_critic = self._algorithm.critic is not None
        return self._score(groups, self._module, "value_K") if has_critic else None

    def _score(
        self,
        groups: Sequence[Group],
        score: Callable[[Score], ScoreOutput],
        name: Literal["logp_K", "value_K"],
    ) -> Tensor:
        """What is called so in the output [K], of all completion tokens of these groups, in one shared pass without gradient."""
        micro_batches = make_micro_batches(groups, None, self._settings.layout)
        scored_K = torch.zeros(sum(len(m.index_K) for m in micro_batches), dtype=torch.float64)
        for micro_batch in self._match(micro_batches, None):
            packed = micro_batch.packed.to(self._accelerator.device)
            with torch.no_grad(), self._autocast():
                output = score(Score(packed=packed))
            scored_K[micro_batch.index_K] = getattr(output, name).double().cpu()
        return scored_K

    def _match(
        self, micro_batches: Sequence[MicroBatch], credit: Credit | None
    ) -> Sequence[MicroBatch]:
        """Where every call is a collective, no process may wait for one that has nothing to do."""
        if not self._sharding.calls_must_match:
            return micro_batches
        idle = make_idle_micro_batch(credit)
        return match_calls(self._accelerator, micro_batches, idle, self._policy.blank_image())

    # ---- one update

    def _accumulate(self, micro_batches: Sequence[MicroBatch], credit: Credit, step: int) -> Totals:
        """Add up the gradient of this process's micro-batches."""
        self._sharding.start(partial(self._settings.learning_rate, step))

        queue = self._match(micro_batches, credit)
        totals = Totals(algorithm=self._algorithm, version=step)
        for place, micro_batch in enumerate(queue):
            is_last = place + 1 == len(queue)
            output = self._run(micro_batch, totals.seconds, is_last=is_last)
            totals.add(micro_batch, output)
        return totals

    def _run(
        self, micro_batch: MicroBatch, seconds: dict[str, float], *, is_last: bool
    ) -> ScoreOutput:
        """One micro-batch forward and backward. Raises RunError if the device has too little memory for it."""
        device = self._accelerator.device
        backward_before = seconds["train_backward"]
        try:
            with (
                timed(partial(add_to, seconds, "train_forward"), device),
                torch.enable_grad(),
            ):
                packed = micro_batch.packed.to(device)
                output = forward_backward(
                    self._module,
                    packed,
                    self._objective(micro_batch),
                    backward=partial(self._backward, seconds, is_last),
                    autocast=self._autocast,
                    prefix=self._kept_prefix(packed),
                )
        except torch.OutOfMemoryError as error:
            limit, fitted = self._settings.layout.tokens_per_pass, self._largest
            message = explain_out_of_memory(micro_batch.packed, limit, fitted, str(error))
            raise RunError(message) from error

        # the backward passes ran inside of what was timed as forward
        add_to(seconds, "train_forward", backward_before - seconds["train_backward"])
        self._largest = max(self._largest, micro_batch.packed.largest_call)
        return output

    def _backward(
        self, seconds: dict[str, float], is_last: bool, loss: Tensor, ends_micro_batch: bool
    ) -> None:
        with timed(partial(add_to, seconds, "train_backward"), self._accelerator.device):
            # text reaches no weight while the vision tower alone is trained; on all processes alike
            if loss.requires_grad:
                self._sharding.backward(loss, last=is_last and ends_micro_batch)

    def _kept_prefix(self, packed: Packed) -> Prefix | None:
        """With a kept prefix a micro-batch has fewer calls than other processes count on, where they must match."""
        if self._prefixes is None or self._sharding.calls_must_match:
            return None
        return self._prefixes.take(packed)

    def _objective(self, micro_batch: MicroBatch) -> Objective:
        critic = self._algorithm.critic
        return Objective(
            inputs=micro_batch.inputs,
            token_loss=self._algorithm.token_loss,
            whole_completions=self._algorithm.whole_completions,
            value_loss=critic.value_loss if critic else None,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = self._settings.autocast
        return torch.autocast(self._accelerator.device.type, dtype, enabled=dtype is not None)

    def _apply(
        self,
        totals: Totals,
        counts: StepCounts,
        credit: Credit,
        micro_batches: int,
        *,
        is_first: bool,
    ) -> UpdateReport:
        summed = sum_named(self._accelerator, totals.additive())

        # what others have said would be trained on as if the policy had; of a later update's weights nothing was sampled,
        # and a loss that is no number is reported below, with its examples
        gap, limit = report_gap(self._accelerator, totals, summed), self._settings.max_logp_gap
        if is_first and isfinite(summed["loss"]) and gap.exceeds(limit):
            raise LogpGapError(explain_logp_gap(gap, limit))

        with timed(partial(add_to, totals.seconds, "optimizer"), self._accelerator.device):
            result = self._sharding.clip_and_step(
                self._settings.max_grad_norm, loss_is_finite=isfinite(summed["loss"])
            )
        if not result.applied:
            by_process = gather(self._accelerator, totals.broken)
            broken = [name for names in by_process for name in names]
            raise NonFiniteError(explain_non_finite(summed["loss"], result.norm, broken))

        tokens = summed["tokens"]
        observed = {
            name.removeprefix("observed/"): value / max(tokens, 1)
            for name, value in summed.items()
            if name.startswith("observed/")
        }
        return UpdateReport(
            applied=True,
            counts=counts,
            metrics={**credit.metrics, **observed},
            loss=summed["loss"],
            grad_norm=result.norm,
            entropy=summed["entropy"] / max(tokens, 1),
            logp_gap_mean=gap.mean,
            logp_gap_max=gap.largest,
            logp_gap_stale_mean=gap.stale_mean,
            logp_gap_stale_max=gap.stale_largest,
            micro_batches=micro_batches,
            seconds=totals.seconds,
        )

    def _summarize(
        self, reports: Sequence[UpdateReport], tokens_before: int, patches_before: int
    ) -> UpdateReport:
        """One report of all updates of a step. The gap is that of the first: later weights are not those that sampled."""
        work = self._policy.work
        counted = sum_named(
            self._accelerator,
            {
                "tokens": work.tower_tokens - tokens_before,
                "patches": work.vision_patches - patches_before,
            },
        )
        seconds: dict[str, float] = {}
        for report in reports:
            for name, value in report.seconds.items():
                add_to(seconds, name, value)

        return replace(
            reports[0],
            metrics=mean_metrics([report.metrics for report in reports]),
            loss=mean([report.loss for report in reports]),
            grad_norm=mean([report.grad_norm for report in reports]),
            entropy=mean([report.entropy for report in reports]),
            micro_batches=sum(report.micro_batches for report in reports),
            trained_tokens=int(counted["tokens"]),
            vision_patches=int(counted["patches"]),
            seconds=seconds,
        )
