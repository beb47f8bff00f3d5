"""The totals of an optimizer step: counts over its groups before it, and sums over micro-batches and processes after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

import torch
from accelerate import Accelerator
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.algorithm import Algorithm, to_dtype
from gpg_vl.models.requests import ScoreOutput
from gpg_vl.training.collectives import maximum, sum_named
from gpg_vl.training.micro_batch import NOT_SAMPLED, MicroBatch, count_groups
from gpg_vl.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """The result of a step's updates, over all processes. For several updates the means are reported."""

    applied: bool
    """False if there was nothing to train: weights and optimizer are unchanged."""
    counts: StepCounts
    metrics: Mapping[str, float | None]
    """What the algorithm reports, such as alpha."""
    loss: float = 0.0
    grad_norm: float = 0.0
    entropy: float = 0.0
    """Mean over the trained tokens, in nats."""
    logp_gap_mean: float | None = None
    """Mean absolute difference between the engine's log-probs and the trainer's, over the trained tokens sampled by the
    weights of this step; None if there are none."""
    logp_gap_max: float | None = None
    logp_gap_stale_mean: float | None = None
    """The same over tokens sampled by older weights: mostly how far the policy has moved since."""
    logp_gap_stale_max: float | None = None
    micro_batches: int = 0
    trained_tokens: int = 0
    """Tokens that went through the language model."""
    vision_patches: int = 0
    """Patches that went through the vision tower."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of this process, by part of the update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapReport:
    """The gap between the engine's log-probs and the trainer's, over all processes, in nats.

    Example: `GapReport(mean=2e-7, largest=1e-6, stale_mean=0.03, stale_largest=0.4)`
    """

    mean: float | None
    """The mean over tokens sampled by the weights before the update; None if there are none."""
    largest: float | None
    stale_mean: float | None
    """The mean over tokens sampled by older weights; None if there are none."""
    stale_largest: float | None

    def exceeds(self, limit: float) -> bool:
        """Whether the gap shows that the engine does not sample from the policy.

        For older weights any gap is allowed, but a NaN is always wrong.
        """
        mean, stale_mean = self.mean or 0.0, self.stale_mean or 0.0
        return mean > limit or not isfinite(mean) or not isfinite(stale_mean)


@dataclass(slots=True, kw_only=True)
class _Gap:
    """Absolute differences of log-probs on this process."""

    total: float = 0.0
    largest: float = 0.0
    tokens: int = 0

    def add(self, gap_K: Tensor) -> None:
        if len(gap_K):
            self.total += gap_K.sum().item()
            self.largest = max(self.largest, gap_K.nan_to_num(nan=inf).max().item())
            self.tokens += len(gap_K)


@dataclass(slots=True, kw_only=True)
class Totals:
    """The sums over the micro-batches of an update on this process."""

    algorithm: Algorithm
    """It says what is observed."""
    version: int
    """The version of the weights before the step: tokens they sampled are fresh, tokens of older versions are stale."""
    loss: float = 0.0
    entropy: float = 0.0
    fresh: _Gap = field(default_factory=_Gap)
    stale: _Gap = field(default_factory=_Gap)
    tokens: int = 0
    """Completion tokens that were trained."""
    observed: dict[str, float] = field(default_factory=dict)
    logps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Indices of tokens in the step, and their log-probs."""
    broken: list[str] = field(default_factory=list)
    """Examples of micro-batches whose loss is not finite."""
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train_forward": 0.0, "train_backward": 0.0}
    )

    def add(self, micro_batch: MicroBatch, output: ScoreOutput) -> None:
        loss = output.loss.item()
        self.loss += loss
        if not isfinite(loss):
            self.broken += micro_batch.examples
        if not len(micro_batch.index_K):
            return

        self.tokens += len(micro_batch.index_K)
        self.entropy += output.entropy_K.sum().item()
        self.logps.append((micro_batch.index_K, output.logp_K))
        for name, seen_K in self._observe(micro_batch, output).items():
            add_to(self.observed, name, seen_K.sum().item())

        # select by version and not by the recorded value, so that a NaN is noticed
        gap_K = (output.logp_K.float().cpu() - micro_batch.sampled_logp_K).abs()
        version_K = micro_batch.version_K
        self.fresh.add(gap_K[version_K >= self.version])
        self.stale.add(gap_K[(version_K != NOT_SAMPLED) & (version_K < self.version)])

    def _observe(self, micro_batch: MicroBatch, output: ScoreOutput) -> dict[str, Tensor]:
        observe, critic = self.algorithm.observe, self.algorithm.critic
        seen: dict[str, Tensor] = {}
        if observe is not None:
            inputs = to_dtype(micro_batch.inputs, output.logp_K)
            seen |= observe(output.logp_K, inputs)
        if critic is not None and critic.observe is not None:
            assert output.value_K is not None
            inputs = to_dtype(micro_batch.inputs, output.value_K)
            seen |= critic.observe(output.value_K, inputs)
        return seen

    def additive(self) -> dict[str, float]:
        """The values that can be summed over processes."""
        return {
            "loss": self.loss,
            "entropy": self.entropy,
            "tokens": float(self.tokens),
            "gap": self.fresh.total,
            "gap_tokens": float(self.fresh.tokens),
            "stale_gap": self.stale.total,
            "stale_gap_tokens": float(self.stale.tokens),
            **{f"observed/{name}": value for name, value in self.observed.items()},
        }

    def merge_logp(self, old_logp_K: Tensor) -> Tensor:
        """`old_logp_K`, with missing values filled by the log-probs of this update."""
        merged_K = old_logp_K.clone()
        for index_K, logp_K in self.logps:
            known_K = old_logp_K[index_K]
            merged_K[index_K] = torch.where(known_K.isnan(), logp_K.to(known_K), known_K)
        return merged_K


def report_gap(accelerator: Accelerator, totals: Totals, summed: Mapping[str, float]) -> GapReport:
    """The gap over all processes. `summed`: their `Totals.additive`."""
    largest = maximum(accelerator, totals.fresh.largest)
    stale_largest = maximum(accelerator, totals.stale.largest)
    fresh, stale = summed["gap_tokens"], summed["stale_gap_tokens"]
    return GapReport(
        mean=summed["gap"] / fresh if fresh else None,
        largest=largest if fresh else None,
        stale_mean=summed["stale_gap"] / stale if stale else None,
        stale_largest=stale_largest if stale else None,
    )


def count_step(
    accelerator: Accelerator, groups: Sequence[Group]
) -> tuple[StepCounts, float | None]:
    """The step's counts and the standard deviation (ddof 1) of its rewards, over all processes."""
    counts = count_groups(groups)
    names = ("groups", "valid_groups", "completions", "tokens", "valid_tokens")
    rewards = [reward for group in groups for reward in group.rewards]
    local = {name: float(getattr(counts, name)) for name in names}
    summed = sum_named(accelerator, {**local, "rewards": len(rewards), "reward": sum(rewards)})

    number = summed["rewards"]
    mean = summed["reward"] / number if number else 0.0
    squares = sum_named(accelerator, {"squares": sum((r - mean) ** 2 for r in rewards)})["squares"]
    deviation = (squares / (number - 1)) ** 0.5 if number > 1 else None
    return StepCounts(**{name: int(summed[name]) for name in names}), deviation


def add_to(seconds: dict[str, float], name: str, more: float) -> None:
    seconds[name] = seconds.get(name, 0.0) + more


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_metrics(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in metrics[0]:
        values = [given[name] for given in metrics]
        known = [value for value in values if value is not None]
        means[name] = mean(known) if known else None
    return means
