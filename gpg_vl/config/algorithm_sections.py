"""The sections of the built-in algorithms: the keys of each algorithm, declared without importing torch."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from gpg_vl.algorithms.option_types import (
    Age,
    Aggregation,
    Baseline,
    ClipMode,
    CorrectionKind,
    FNorm,
    SftAggregation,
)
from gpg_vl.config.declaration import Section


class AlgorithmConfig(Section):
    """How rewards are turned into a gradient. The other keys of the section depend on the algorithm that is named."""

    name: str = "gpg"
    """The name of a built-in algorithm or of a plug-in; or your own factory as `my_algorithm.py:factory`, whose keyword
    arguments are then the other keys. docs/algorithms.md describes the built-in algorithms."""


class SampledConfig(AlgorithmConfig):
    """The keys of every algorithm that samples groups of answers."""

    beta_th: float = Field(0.0, ge=0.0, le=1.0)
    """Minimum share of groups with signal; below it more groups are sampled. 0 never resamples."""
    max_resample_attempts: int = Field(20, ge=1)
    """Maximum number of sampling rounds per step, including the first."""
    correction: CorrectionKind = "none"
    """Importance weight of tokens whose sampling probability differs from the trainer's (the engine rounds differently, or a
    group was carried over from an earlier step). It is the ratio of trainer to sampling probability: capped at the upper
    bound (`token_truncate`), 0 above the upper bound (`token_mask`), 0 outside both bounds (`icepop`); or the ratio of the
    whole answer, 0 outside both bounds (`sequence_mask`). `none` uses no weight."""
    correction_low: float | None = Field(None, ge=0.0)
    """Lower bound of that ratio, for `icepop` and `sequence_mask`. null: 0.5 and 0."""
    correction_high: float | None = Field(None, gt=0.0)
    """Upper bound of that ratio. null: 2 for `token_truncate`, 3 for both masks, 5 for `icepop`."""


class GpgConfig(SampledConfig):
    """Group Policy Gradient: the plain policy gradient, without clipping or KL term (arXiv:2504.02546)."""

    name: Literal["gpg"] = "gpg"
    """Group Policy Gradient."""
    f_norm: FNorm = "one"
    """Divisor of the advantage: 1 (GPG), the group's standard deviation (GRPO), or that of the whole step."""
    age: Age = "inverse_valid_fraction"
    """Correction for groups without signal: `inverse_valid_fraction` is the paper's alpha = B/(B-M); `token` counts tokens
    instead of groups; `off` is 1; `valid_fraction` is the inverse of the paper's alpha, kept because one article names it."""
    aggregation: Aggregation = "token"
    """Mean over all tokens of the step; per sequence then over sequences; by the constant length limit; per group."""
    beta_th: float = Field(0.4, ge=0.0, le=1.0)
    """Minimum share of groups with signal; below it more groups are sampled. 0 never resamples, 1 is DAPO-like."""

    @model_validator(mode="after")
    def _token_age(self) -> "GpgConfig":
        if self.age == "token" and self.aggregation != "token":
            raise ValueError(
                f"age 'token' works only with aggregation 'token'; aggregation is {self.aggregation!r}. Use age "
                f"'inverse_valid_fraction', which is exact for {self.aggregation!r}."
            )
        return self


class GrpoConfig(SampledConfig):
    """Group Relative Policy Optimization: a clipped ratio and a KL term towards the initial weights (arXiv:2402.03300)."""

    name: Literal["grpo"] = "grpo"
    """Group Relative Policy Optimization."""
    aggregation: Aggregation = "sequence"
    """Mean per sequence then over sequences; over all tokens of the step (DAPO); by the length limit; per group."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """Lower clip: a token has no gradient once its probability has fallen below 1 - clip_low (0.2: 0.8) times that at
    sampling."""
    clip_high: float = Field(0.2, ge=0.0)
    """Upper clip: a token has no gradient once its probability has risen above 1 + clip_high times that at sampling. DAPO
    uses 0.28."""
    clip_mode: ClipMode = "cut"
    """`cut`: a token beyond the clip has no gradient. `gradient_preserving`: it keeps the gradient it has at the clip
    (Klear-Reasoner, arXiv:2508.07629)."""
    kl_beta: float = Field(0.04, ge=0.0)
    """Weight of the KL term (k3 estimator) towards the weights at the start of the run. Above 0 a copy of those weights is kept
    in memory and every answer costs one more forward pass; 0 needs neither."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers. The ratio and its clip have an effect from the second update on."""


class DrGrpoConfig(SampledConfig):
    """Dr. GRPO: GRPO without the divisions by a group's deviation and an answer's length (arXiv:2503.20783)."""

    name: Literal["dr_grpo"] = "dr_grpo"
    """GRPO without its two divisions."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """Lower clip: a token has no gradient once its probability has fallen below 1 - clip_low times that at sampling."""
    clip_high: float = Field(0.2, ge=0.0)
    """Upper clip: a token has no gradient once its probability has risen above 1 + clip_high times that at sampling."""
    kl_beta: float = Field(0.0, ge=0.0)
    """Weight of the KL term (k3 estimator) towards the weights at the start of the run; 0 needs no copy of them."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers."""


class DapoConfig(SampledConfig):
    """DAPO: a higher upper clip, a mean over tokens, only groups with signal, a length penalty (arXiv:2503.14476)."""

    name: Literal["dapo"] = "dapo"
    """Decoupled clip and dynamic sampling."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """Lower clip: a token has no gradient once its probability has fallen below 1 - clip_low times that at sampling."""
    clip_high: float = Field(0.28, ge=0.0)
    """Upper clip: a token has no gradient once its probability has risen above 1 + clip_high times that at sampling."""
    overlong_tokens: int = Field(0, ge=0)
    """Length penalty: over the last N tokens before rollout.max_new_tokens the reward falls linearly by up to 1. 0: no
    penalty."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers."""
    beta_th: float = Field(1.0, ge=0.0, le=1.0)
    """Minimum share of groups with signal; 1 is DAPO's dynamic sampling."""


class RlooConfig(SampledConfig):
    """REINFORCE Leave-One-Out: the baseline of an answer is the mean reward of the group's other answers
    (arXiv:2402.14740)."""

    name: Literal["rloo"] = "rloo"
    """REINFORCE Leave-One-Out."""


class ReinforceConfig(SampledConfig):
    """REINFORCE with the mean reward of the step as its baseline (Williams, 1992)."""

    name: Literal["reinforce"] = "reinforce"
    """REINFORCE with the mean reward of the step as its baseline."""


class ReinforcePpConfig(SampledConfig):
    """REINFORCE++: token advantages, standardised over the whole step, and a clipped ratio (arXiv:2501.03262)."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    """REINFORCE++."""
    baseline: Baseline = "step"
    """The baseline: the mean over the step, or first the mean over the group (REINFORCE++-baseline)."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """Lower clip: a token has no gradient once its probability has fallen below 1 - clip_low times that at sampling."""
    clip_high: float = Field(0.2, ge=0.0)
    """Upper clip: a token has no gradient once its probability has risen above 1 + clip_high times that at sampling."""
    kl_beta: float = Field(0.0, ge=0.0)
    """Weight of the KL term towards the weights at the start of the run. It is part of the reward with baseline `step` and of
    the loss with `group`; 0 needs no copy of those weights."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers."""


class PpoConfig(SampledConfig):
    """PPO: a critic says what each token is compared with, and a clipped ratio (arXiv:1707.06347)."""

    name: Literal["ppo"] = "ppo"
    """Proximal Policy Optimization."""
    gamma: float = Field(1.0, gt=0.0, le=1.0)
    """What a reward one token later is multiplied by."""
    lam: float = Field(0.95, ge=0.0, le=1.0)
    """1 compares what followed a token with the critic's forecast; 0 trusts the forecast of the next token instead."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """How far a token may become rarer than when it was sampled before it has no more gradient."""
    clip_high: float = Field(0.2, ge=0.0)
    """How far a token may become likelier than when it was sampled before it has no more gradient."""
    value_clip: float = Field(0.2, gt=0.0)
    """How far a value may move from that of the weights before the step before its loss has no more gradient."""
    value_coef: float = Field(0.1, gt=0.0)
    """Weight of the critic's loss, whose gradient reaches the policy's weights too."""
    critic_learning_rate: float = Field(1e-4, gt=0.0)
    """Peak of the rate of the critic's own layer; the schedule is that of train.learning_rate."""
    kl_beta: float = Field(0.05, ge=0.0)
    """Weight of the divergence from the weights the run began with, which is taken off the reward; 0 needs no copy of them."""
    updates: int = Field(4, ge=1)
    """Optimizer updates on the same answers."""


class OpoConfig(SampledConfig):
    """OPO: the baseline of a group is the mean reward weighted by answer length (arXiv:2505.23585)."""

    name: Literal["opo"] = "opo"
    """Optimal reward baseline."""
    aggregation: Aggregation = "token"
    """Mean over all tokens of the step; per sequence then over sequences; by the constant length limit; per group."""


class RemaxConfig(SampledConfig):
    """ReMax: the baseline is the reward of the greedy answer to the same prompt (arXiv:2310.10505)."""

    name: Literal["remax"] = "remax"
    """ReMax."""


class GspoConfig(SampledConfig):
    """Group Sequence Policy Optimization: one clipped ratio per answer (arXiv:2507.18071)."""

    name: Literal["gspo"] = "gspo"
    """Group Sequence Policy Optimization."""
    clip_low: float = Field(3e-4, ge=0.0, lt=1.0)
    """Lower clip: an answer has no gradient once its ratio (a geometric mean over its tokens) has fallen below 1 -
    clip_low."""
    clip_high: float = Field(4e-4, ge=0.0)
    """Upper clip: an answer has no gradient once its ratio has risen above 1 + clip_high."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers."""


class CispoConfig(SampledConfig):
    """CISPO: the token's ratio is a clipped weight without gradient, so every token keeps a gradient (arXiv:2506.13585)."""

    name: Literal["cispo"] = "cispo"
    """Clipped importance sampling."""
    ratio_max: float = Field(5.0, gt=0.0)
    """Upper bound of a token's ratio weight."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers."""


class SftConfig(AlgorithmConfig):
    """Supervised fine-tuning: trains on the gold answers as completions and samples nothing."""

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    response: str = "{answer}"
    """The completion that is trained on; `{answer}` is replaced by the gold answer."""
    aggregation: SftAggregation = "token"
    """Mean over all tokens of the step; or per answer and then over answers, so that short ones count as much as long ones."""

    @model_validator(mode="after")
    def _an_answer(self) -> "SftConfig":
        if "{answer}" not in self.response:
            raise ValueError(
                f"response is {self.response!r}, which has no {{answer}}: every example would teach the same text. Write "
                f"{{answer}} where the gold answer goes, as in '<answer>{{answer}}</answer>'."
            )
        return self


BUILTIN_SECTIONS: Mapping[str, type[AlgorithmConfig]] = {
    "gpg": GpgConfig,
    "grpo": GrpoConfig,
    "dr_grpo": DrGrpoConfig,
    "dapo": DapoConfig,
    "rloo": RlooConfig,
    "reinforce": ReinforceConfig,
    "reinforce_pp": ReinforcePpConfig,
    "ppo": PpoConfig,
    "opo": OpoConfig,
    "remax": RemaxConfig,
    "gspo": GspoConfig,
    "cispo": CispoConfig,
    "sft": SftConfig,
}
