"""What an algorithm is: the credit of every completion token of a step, and the loss of a token given its credit.

An algorithm is two pure functions. `credit` turns the rewards of the step's groups into numbers of each token (weights,
old log-probs, ...). `token_loss` turns a token's log-prob and those numbers into its loss; its author writes the value
only, the slope comes from autograd over the log-probs. Everything else, the model, the tiles of the head, processes and
micro-batches, is out of its sight, so that it holds for all of them.

Every denominator counts the whole optimizer step and is part of the weights: the losses of all tokens of all processes
are added up, never averaged. The same data therefore has the same gradient however it is cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts

Need = Literal["old_logp", "reference_logp", "greedy_reward"]
"""What has to be computed for an algorithm besides the log-probs that are trained, and the rewards.

`old_logp`: log-probs under the weights that sampled the tokens. `reference_logp`: under the weights the run began with.
`greedy_reward`: the reward of one greedy answer to each prompt, which is sampled beside the group.
"""

TokenInputs = Any
"""A NamedTuple of tensors, each [K]: what `credit` gives of every completion token. Each algorithm has its own."""

Inputs = TypeVar("Inputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The scored groups of this process in one optimizer step, and what is known of the step as a whole.

    The K completion tokens are one behind the other: by prompt, then by member, then in the order of the answer.

    Example: two groups of two, lengths 2, 4 | 3, 1, the first with a signal: `rewards_P_G` [[1, 0], [1, 1]],
        `lengths_P_G` [[2, 4], [3, 1]], K = 10.
    """

    rewards_P_G: Float[Tensor, "P G"]
    """float64."""
    lengths_P_G: Int[Tensor, "P G"]
    """Completion tokens of each answer."""
    counts: StepCounts
    """Of all processes."""
    reward_std: float | None
    """Standard deviation (ddof 1) of all rewards of the step, over all processes; None if there is only one."""
    max_new_tokens: int
    """The longest answer that may be sampled."""
    old_logp_K: Float[Tensor, "K"] | None = None
    """Only if the algorithm needs it. NaN: the current weights sampled the token, so the ratio is exactly 1
    (see `ratio.log_ratio`)."""
    reference_logp_K: Float[Tensor, "K"] | None = None
    """Only if the algorithm needs it."""
    sampled_logp_K: Float[Tensor, "K"] = field(default_factory=lambda: torch.zeros(0))
    """What the engine recorded when it sampled the tokens; NaN where it recorded nothing."""
    greedy_reward_P: Float[Tensor, "P"] = field(default_factory=lambda: torch.zeros(0))
    """float64. Only if the algorithm needs it."""
    value_K: Float[Tensor, "K"] | None = None
    """float64. Only for an algorithm with a critic: its values under the weights before the first update of the step."""
    total: Callable[[Sequence[float]], list[float]] = list
    """Sums of numbers over all processes; every process must call it equally often. Here: of one process."""


class Credit(NamedTuple):
    """What an algorithm makes of the groups of a step."""

    inputs: TokenInputs
    """Of each of the K completion tokens."""
    trained_P_G: Bool[Tensor, "P G"]
    """False where an answer has exactly no gradient: it is not run at all."""
    metrics: Mapping[str, float | None]
    """What to log of the step, equal on all processes, such as alpha."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """How the value of a token is learned: what its completion is expected to be worth from there on.

    Values come from a linear layer on the hidden states that log-probs are computed from (`models.value_head`), so the loss
    of a value reaches the policy's weights too. It is added to that of the log-prob.
    """

    value_loss: Callable[[Tensor, TokenInputs], Tensor]
    """(value_K, inputs) -> loss_K, elementwise. Called with K of a micro-batch or less."""
    learning_rate: float
    """Peak of the layer's own rate; the schedule is that of the policy."""
    observe: Callable[[Tensor, TokenInputs], Mapping[str, Tensor]] | None = None
    """(value_K, inputs) -> values [K] whose means over the trained tokens are logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Two pure functions, and what they need.

    Example: `Algorithm(credit=..., token_loss=lambda logp_K, inputs: -inputs.weight_K * logp_K)`
    """

    credit: Callable[[StepBatch], Credit]
    token_loss: Callable[[Tensor, TokenInputs], Tensor]
    """(logp_K, inputs) -> loss_K, elementwise unless `whole_completions`. Called with K of a tile, a micro-batch or less."""
    observe: Callable[[Tensor, TokenInputs], Mapping[str, Tensor]] | None = None
    """(logp_K, inputs) -> values [K] whose means over the trained tokens are logged, such as a clipped share."""
    needs: frozenset[Need] = field(default_factory=frozenset)
    updates: int = 1
    """Optimizer updates on the same groups."""
    samples: bool = True
    """False: the gold answers are the completions, and nothing is sampled."""
    response: str = "{answer}"
    """What a gold answer looks like as a completion, where nothing is sampled."""
    whole_completions: bool = False
    """True: the loss of a token depends on the other tokens of its answer. `token_loss` is then given whole answers."""
    critic: Critic | None = None
    """Learns values of tokens, which `credit` then finds in `StepBatch.value_K`. None: there are no values."""


def select(inputs: Inputs, index: Tensor | slice) -> Inputs:
    """The inputs of some of the tokens."""
    return _map_tensors(inputs, lambda value_K: value_K[index])


def to_dtype(inputs: Inputs, like: Tensor) -> Inputs:
    """The inputs on the device of `like`, and those that are not whole numbers in its dtype."""
    return _map_tensors(inputs, lambda x: x.to(like if x.is_floating_point() else like.device))


def _map_tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """A NamedTuple of the same kind with every tensor changed, those of NamedTuples within it too."""
    changed = (
        change(value) if isinstance(value, Tensor) else _map_tensors(value, change)
        for value in inputs  # type: ignore[attr-defined]  # a NamedTuple
    )
    return type(inputs)(*changed)
