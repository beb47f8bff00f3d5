"""Optimizer steps made by hand, for the tests of algorithms."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.algorithm import StepBatch

LIMIT = 8
"""What a step says the longest answer may be; nothing looks whether one is longer."""

Rows = Sequence[Sequence[float]]
Lengths = Sequence[Sequence[int]]
VARIED: tuple[Rows, Lengths] = (
    [[1, 0, 0], [1, 1, 1], [0.2, 0.7, 0], [0, 0, 0]],
    [[2, 5, 1], [4, 3, 7], [6, 1, 2], [1, 1, 9]],
)
"""Rewards and lengths of four groups of three, two of them without signal, most lengths different."""


def counts_of(rewards: Rows, lengths: Lengths) -> StepCounts:
    valid = [len(set(row)) > 1 for row in rewards]
    return StepCounts(
        groups=len(valid),
        valid_groups=sum(valid),
        completions=sum(map(len, rewards)),
        tokens=sum(map(sum, lengths)),
        valid_tokens=sum(sum(row) for row, ok in zip(lengths, valid, strict=True) if ok),
    )


def deviation(rewards: Rows) -> float | None:
    """Of all rewards, ddof 1; None if there is only one."""
    everything = [r for row in rewards for r in row]
    return statistics.stdev(everything) if len(everything) > 1 else None


def make_batch(
    rewards: Rows,
    lengths: Lengths,
    *,
    step: tuple[Rows, Lengths] | None = None,
    old: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    sampled: Sequence[float] | None = None,
    greedy: Sequence[float] = (),
    total: Callable[[Sequence[float]], list[float]] = list,
) -> StepBatch:
    """The groups of one process; `step` are those of all processes, if there are more, and `total` adds up over them."""
    everything = step or (rewards, lengths)
    return StepBatch(
        rewards_P_G=torch.tensor(rewards, dtype=torch.float64),
        lengths_P_G=torch.tensor(lengths),
        counts=counts_of(*everything),
        reward_std=deviation(everything[0]),
        max_new_tokens=LIMIT,
        old_logp_K=None if old is None else torch.tensor(old, dtype=torch.float64),
        reference_logp_K=None
        if reference is None
        else torch.tensor(reference, dtype=torch.float64),
        sampled_logp_K=torch.tensor(
            [math.nan] * sum(map(sum, lengths)) if sampled is None else sampled, dtype=torch.float64
        ),
        greedy_reward_P=torch.tensor(greedy, dtype=torch.float64),
        total=total,
    )


def logp_of(lengths: Lengths) -> Tensor:
    """A log-prob for each token, all different, float64."""
    tokens = sum(map(sum, lengths))
    logp_K = -0.1 - (torch.arange(tokens, dtype=torch.float64) * 0.37) % 2.0
    return logp_K.requires_grad_()


def token_rows(lengths: Lengths) -> Tensor:
    """Which completion each of the K tokens belongs to, counted prompt by prompt."""
    flat = torch.tensor([n for row in lengths for n in row])
    return torch.arange(len(flat)).repeat_interleave(flat)


def taken(step: tuple[Rows, Lengths], groups: Sequence[int]) -> tuple[Rows, Lengths]:
    """A step of the given groups of another, some of them perhaps several times."""
    return [step[0][g] for g in groups], [step[1][g] for g in groups]


def made_steps(
    rewards: st.SearchStrategy[float], *, shortest: int = 1
) -> st.SearchStrategy[tuple[Rows, Lengths]]:
    """One to four groups of one size from two to five."""
    member = st.tuples(rewards, st.integers(shortest, 6))
    group_lists = st.integers(2, 5).flatmap(
        lambda g: st.lists(st.lists(member, min_size=g, max_size=g), min_size=1, max_size=4)
    )
    return group_lists.map(
        lambda groups: (
            [[reward for reward, _ in group] for group in groups],
            [[length for _, length in group] for group in groups],
        )
    )
