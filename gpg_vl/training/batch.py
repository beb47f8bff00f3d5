"""From collected groups to passes: the pure part of an optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.algorithms.advantages import FNorm, advantages
from gpg_vl.algorithms.age import Age, StepCounts, age_factor
from gpg_vl.algorithms.losses import Aggregation, coefficients, denominator
from gpg_vl.models.layout import Rows, pack, row_cost
from gpg_vl.types import Group, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The switches of the loss. Fields as in the config's `algorithm` section."""

    f_norm: FNorm
    age: Age
    aggregation: Aggregation
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward and backward pass."""

    rows: Rows
    coefficients_K: Tensor
    """Of each completion token: what multiplies -log pi in the loss. float32."""
    sampled_logp_K: Tensor
    """Log-probs that the engine recorded."""


def counts_of(groups: Sequence[Group]) -> StepCounts:
    """This rank's share of the step's counts."""
    tokens = [sum(len(c.token_ids) for c in group.completions) for group in groups]
    valid = [group.is_valid for group in groups]
    return StepCounts(
        groups=len(groups),
        valid_groups=sum(valid),
        completions=sum(len(g.completions) for g in groups),
        tokens=sum(tokens),
        valid_tokens=sum(t for t, v in zip(tokens, valid, strict=True) if v),
    )


def group_coefficients(group: Group, *, objective: Objective, counts: StepCounts, batch_std: float | None) -> Tensor:
    """c_i of each completion of the group, float64 [G]. `counts` and `batch_std` are those of the whole step."""
    rewards_P_G = torch.tensor([group.rewards], dtype=torch.float64)
    lengths_P_G = torch.tensor([[len(c.token_ids) for c in group.completions]])
    return coefficients(
        advantages(rewards_P_G, f_norm=objective.f_norm, batch_std=batch_std),
        lengths_P_G,
        aggregation=objective.aggregation,
        age=age_factor(counts, objective.age),
        denominator=denominator(counts, objective.aggregation, max_new_tokens=objective.max_new_tokens),
    )[0]


def make_passes(
    groups: Sequence[Group],
    *,
    objective: Objective,
    counts: StepCounts,
    batch_std: float | None,
    tokens_per_pass: int,
    pad: int,
    shared_prefix: bool,
) -> list[Pass]:
    """Cut this rank's groups into passes of at most `tokens_per_pass` padded tokens (a larger group gets a pass alone).

    Groups without signal have coefficient 0 everywhere and are left out: their counts are in `counts` already.
    """
    passes: list[Pass] = []
    for bunch in _bunches([g for g in groups if g.is_valid], tokens_per_pass, shared_prefix):
        c_PG = torch.cat(
            [group_coefficients(g, objective=objective, counts=counts, batch_std=batch_std) for g in bunch]
        )
        rows = pack(
            [g.prompt for g in bunch],
            [[c.token_ids for c in g.completions] for g in bunch],
            pad=pad,
            shared_prefix=shared_prefix,
        )
        sampled = [logp for g in bunch for c in g.completions for logp in c.logprobs]
        passes.append(
            Pass(
                rows=rows,
                coefficients_K=c_PG.repeat_interleave(rows.lengths_PG).float(),
                sampled_logp_K=torch.tensor(sampled),
            )
        )
    return passes


def idle_pass(pad: int) -> Pass:
    """A pass that computes next to nothing and adds exactly zero: it keeps a rank without work in step with the others."""
    prompt = Prompt(
        example_id="",
        text="",
        input_ids_T=torch.tensor([pad]),
        positions_3_T=torch.zeros(3, 1, dtype=torch.long),
        next_position=1,
        image_mask_T=torch.tensor([False]),
    )
    rows = pack([prompt], [[(pad,)]], pad=pad, shared_prefix=True)
    return Pass(rows=rows, coefficients_K=torch.zeros(1), sampled_logp_K=torch.zeros(0))


def _bunches(groups: Sequence[Group], tokens_per_pass: int, shared_prefix: bool) -> list[list[Group]]:
    bunches: list[list[Group]] = []
    rows, longest = 0, 0
    for group in groups:
        more, size = row_cost(
            group.prompt.length, [len(c.token_ids) for c in group.completions], shared_prefix=shared_prefix
        )
        if not bunches or (rows + more) * max(longest, size) > tokens_per_pass:
            bunches.append([])
            rows, longest = 0, 0
        bunches[-1].append(group)
        rows, longest = rows + more, max(longest, size)
    return bunches
