"""From collected groups to passes: the pure part of an optimizer step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.algorithms.advantages import advantages
from gpg_vl.algorithms.age import StepCounts, age_factor
from gpg_vl.algorithms.choices import Age, Aggregation, FNorm
from gpg_vl.algorithms.losses import coefficients, denominator
from gpg_vl.models.layout import Packed, pack
from gpg_vl.types import Completion, Group, Prompt


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

    packed: Packed
    coefficients_K: Tensor
    """Of each completion token: what multiplies -log pi in the loss. float32."""
    sampled_logp_K: Tensor
    """Log-probs that the engine recorded."""
    examples: tuple[str, ...]
    """The ids of the examples whose groups are in the pass."""


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


def group_coefficients(
    group: Group, *, objective: Objective, counts: StepCounts, batch_std: float | None
) -> Tensor:
    """c_i of each completion of the group, float64 [G]. `counts` and `batch_std` are those of the whole step."""
    rewards_P_G = torch.tensor([group.rewards], dtype=torch.float64)
    lengths_P_G = torch.tensor([[len(c.token_ids) for c in group.completions]])
    return coefficients(
        advantages(rewards_P_G, f_norm=objective.f_norm, batch_std=batch_std),
        lengths_P_G,
        aggregation=objective.aggregation,
        age=age_factor(counts, objective.age),
        denominator=denominator(
            counts, objective.aggregation, max_new_tokens=objective.max_new_tokens
        ),
    )[0]


def make_passes(
    groups: Sequence[Group],
    *,
    objective: Objective,
    counts: StepCounts,
    batch_std: float | None,
    tokens_per_pass: int,
    shared_prefix: bool,
) -> list[Pass]:
    """Cut this rank's groups into passes of at most `tokens_per_pass` tokens.

    Completions with coefficient 0, among them all of a group without signal, are left out: their counts are in `counts`
    already. Groups that show the same images stay in one pass, so that an image is encoded once; a group that is too large
    for a pass is a pass of several pieces.
    """
    branches = [
        (group, completion, c)
        for group in groups
        if group.is_valid
        for completion, c in zip(
            group.completions,
            group_coefficients(
                group, objective=objective, counts=counts, batch_std=batch_std
            ).tolist(),
            strict=True,
        )
        if c != 0.0
    ]
    units = _units(branches, tokens_per_pass, shared_prefix=shared_prefix)
    return [
        _pass(bunch, tokens_per_pass, shared_prefix)
        for bunch in _bunches(units, lambda unit: _size(unit, shared_prefix), tokens_per_pass)
    ]


_Branch = tuple[Group, Completion, float]


def _units(
    branches: Sequence[_Branch], tokens_per_pass: int, *, shared_prefix: bool
) -> list[list[_Branch]]:
    """What is not torn apart: the completions of groups with the same images, or each completion if naive.

    Prompts about the same images are torn apart after all where they alone would fill half of a pass: with little room beside
    them, their completions would be computed in many small pieces.
    """
    if not shared_prefix:
        return [[branch] for branch in branches]
    same: dict[object, list[tuple[Group, Prompt, list[_Branch]]]] = {}
    for group, prompt, members in _by_group(branches):
        same.setdefault(prompt.image_keys or id(group), []).append((group, prompt, members))
    units: list[list[_Branch]] = []
    for groups in same.values():
        held = tokens_per_pass
        for _, prompt, members in groups:
            if held + prompt.length > tokens_per_pass // 2:
                units.append([])
                held = 0
            units[-1] += members
            held += prompt.length
    return units


def _size(branches: Sequence[_Branch], shared_prefix: bool) -> int:
    """Tokens that these branches take in a pass."""
    prompts = (
        [prompt for _, prompt, _ in _by_group(branches)]
        if shared_prefix
        else [g.prompt for g, _, _ in branches]
    )
    return sum(p.length for p in prompts) + sum(len(c.token_ids) - 1 for _, c, _ in branches)


def _by_group(branches: Sequence[_Branch]) -> list[tuple[Group, Prompt, list[_Branch]]]:
    groups: dict[int, list[_Branch]] = {}
    for branch in branches:
        groups.setdefault(id(branch[0]), []).append(branch)
    return [(members[0][0], members[0][0].prompt, members) for members in groups.values()]


def _pass(branches: Sequence[_Branch], tokens_per_pass: int, shared_prefix: bool) -> Pass:
    grouped = _by_group(branches)
    ordered = [branch for _, _, members in grouped for branch in members]
    packed = pack(
        [prompt for _, prompt, _ in grouped],
        [[c.token_ids for _, c, _ in members] for _, _, members in grouped],
        shared_prefix=shared_prefix,
        tokens_per_pass=tokens_per_pass,
    )
    return Pass(
        packed=packed,
        coefficients_K=torch.tensor([c for _, _, c in ordered])
        .repeat_interleave(torch.tensor(packed.counts))
        .float(),
        sampled_logp_K=torch.tensor(
            [logp for _, completion, _ in ordered for logp in completion.logprobs]
        ),
        examples=tuple(group.example.id for group, _, _ in grouped),
    )


def idle_pass() -> Pass:
    """A pass that computes next to nothing and adds exactly zero: it keeps a rank without work in step with the others."""
    prompt = Prompt(
        example_id="",
        text="",
        input_ids_T=torch.tensor([0]),
        positions_3_T=torch.zeros(3, 1, dtype=torch.long),
        next_position=1,
        image_mask_T=torch.tensor([False]),
    )
    return Pass(
        packed=pack([prompt], [[(0,)]]),
        coefficients_K=torch.zeros(1),
        sampled_logp_K=torch.zeros(0),
        examples=(),
    )


def _bunches(
    units: Sequence[list[_Branch]], size: Callable[[list[_Branch]], int], most: int
) -> list[list[_Branch]]:
    """Consecutive units joined while they fit; a larger unit stands alone."""
    bunches: list[list[_Branch]] = []
    held = 0
    for unit in units:
        more = size(unit)
        if not bunches or held + more > most:
            bunches.append([])
            held = 0
        bunches[-1] += unit
        held += more
    return bunches
