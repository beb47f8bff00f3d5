"""Makes micro-batches from the groups of a step: decides which completions are trained and which are computed together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.algorithm import Credit, StepBatch, TokenInputs, select
from gpg_vl.models.layout import Packed, pack
from gpg_vl.types import Completion, Group, Prompt

NOT_SAMPLED = -1
"""The version of tokens that no engine has sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How groups are arranged in micro-batches. Fields as in the config's `train` section."""

    tokens_per_pass: int
    shared_prefix: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The groups that are run forward and backward together."""

    packed: Packed
    index_K: Tensor
    """The indices of its completion tokens in the tokens of all the step's groups on this process."""
    inputs: TokenInputs | None
    """The algorithm's inputs for these tokens; None if they are only scored."""
    sampled_logp_K: Tensor
    """Log-probs that the engine recorded; NaN where a token was not sampled."""
    version_K: Tensor
    """Version of the weights that sampled each token; NOT_SAMPLED if none did."""
    examples: tuple[str, ...]
    """The ids of its groups' examples."""


def count_groups(groups: Sequence[Group]) -> StepCounts:
    """This process's share of the step's counts."""
    tokens = [sum(len(c.token_ids) for c in group.completions) for group in groups]
    valid = [group.is_valid for group in groups]
    return StepCounts(
        groups=len(groups),
        valid_groups=sum(valid),
        completions=sum(len(group.completions) for group in groups),
        tokens=sum(tokens),
        valid_tokens=sum(t for t, is_valid in zip(tokens, valid, strict=True) if is_valid),
    )


def count_tokens(groups: Sequence[Group], credit: Credit | None, layout: Layout) -> list[int]:
    """The number of tokens of each group that are run through the model, including its prompt; 0 if the credit trains none
    of them.

    Without credit every completion is run.
    """
    counted = []
    for number, group in enumerate(groups):
        run = [
            len(completion.token_ids) - 1
            for place, completion in enumerate(group.completions)
            if credit is None or bool(credit.trained_P_G[number, place])
        ]
        prompts = min(len(run), 1) if layout.shared_prefix else len(run)
        counted.append(prompts * group.prompt.length + sum(run))
    return counted


def make_step_batch(
    groups: Sequence[Group],
    *,
    counts: StepCounts,
    reward_std: float | None,
    max_new_tokens: int,
    old_logp_K: Tensor | None = None,
    reference_logp_K: Tensor | None = None,
    value_K: Tensor | None = None,
    total: Callable[[Sequence[float]], list[float]] = list,
) -> StepBatch:
    """The batch that an algorithm gets of this process's groups. `counts` and `reward_std` are those of the whole step."""
    rewards = [group.rewards for group in groups]
    lengths = [[len(c.token_ids) for c in group.completions] for group in groups]
    shape = (len(groups), len(rewards[0]) if rewards else 1)
    greedy = [group.greedy.reward for group in groups if group.greedy is not None]
    sampled: list[float] = []
    for group in groups:
        for completion in group.completions:
            sampled += completion.logprobs or [torch.nan] * len(completion.token_ids)

    return StepBatch(
        rewards_P_G=torch.tensor(rewards, dtype=torch.float64).reshape(shape),
        lengths_P_G=torch.tensor(lengths, dtype=torch.long).reshape(shape),
        counts=counts,
        reward_std=reward_std,
        max_new_tokens=max_new_tokens,
        old_logp_K=old_logp_K,
        reference_logp_K=reference_logp_K,
        sampled_logp_K=torch.tensor(sampled, dtype=torch.float64),
        greedy_reward_P=torch.tensor(greedy, dtype=torch.float64),
        value_K=value_K,
        total=total,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A completion that is run, and the positions of its tokens in the step."""

    group: Group
    completion: Completion
    tokens: range


def make_micro_batches(
    groups: Sequence[Group], credit: Credit | None, layout: Layout
) -> list[MicroBatch]:
    """Split this process's groups into micro-batches of at most `tokens_per_pass` tokens.

    Completions that the credit does not train, such as those of groups without signal, are left out; the step's counts
    already include them. Groups with the same images stay together, so that an image is encoded once. A group that is too
    large becomes a micro-batch of several chunks. Without credit all completions are included and scored.
    """
    members: list[_Member] = []
    start = 0
    for number, group in enumerate(groups):
        for place, completion in enumerate(group.completions):
            tokens = range(start, start + len(completion.token_ids))
            if credit is None or bool(credit.trained_P_G[number, place]):
                members.append(_Member(group=group, completion=completion, tokens=tokens))
            start = tokens.stop

    bundles = _bundle(members, layout)
    joined = _join_bundles(bundles, lambda bundle: _size(bundle, layout), layout.tokens_per_pass)
    return [_make_micro_batch(bundle, credit, layout) for bundle in joined]


def make_idle_micro_batch(credit: Credit | None) -> MicroBatch:
    """A tiny micro-batch whose contribution is exactly zero, for a process that has no work but must make the same
    calls."""
    prompt = Prompt(
        example_id="",
        text="",
        input_ids_T=torch.tensor([0]),
        positions_3_T=torch.zeros(3, 1, dtype=torch.long),
        next_position=1,
        image_mask_T=torch.tensor([False]),
    )
    nothing = torch.zeros(0, dtype=torch.long)
    return MicroBatch(
        packed=pack([prompt], [[()]]),
        index_K=nothing,
        inputs=None if credit is None else select(credit.inputs, nothing),
        sampled_logp_K=torch.zeros(0),
        version_K=nothing,
        examples=(),
    )


def _bundle(members: Sequence[_Member], layout: Layout) -> list[list[_Member]]:
    """Bundles of completions that stay together: those of groups with the same images, or single completions if naive.

    If prompts with the same images would fill half of a micro-batch, they are separated after all, because otherwise little
    space would be left and their completions would be computed in many small chunks.
    """
    if not layout.shared_prefix:
        return [[member] for member in members]

    by_images: dict[object, list[list[_Member]]] = {}
    for group in _by_group(members):
        images = group[0].group.prompt.image_keys or id(group[0].group)
        by_images.setdefault(images, []).append(group)

    bundles: list[list[_Member]] = []
    for same in by_images.values():
        held = layout.tokens_per_pass
        for group in same:
            length = group[0].group.prompt.length
            if held + length > layout.tokens_per_pass // 2:
                bundles.append([])
                held = 0
            bundles[-1] += group
            held += length
    return bundles


def _size(members: Sequence[_Member], layout: Layout) -> int:
    """Tokens that these completions and their prompts take in a micro-batch."""
    together = _by_group(members) if layout.shared_prefix else [[member] for member in members]
    prompts = sum(group[0].group.prompt.length for group in together)
    return prompts + sum(len(member.completion.token_ids) - 1 for member in members)


def _by_group(members: Sequence[_Member]) -> list[list[_Member]]:
    groups: dict[int, list[_Member]] = {}
    for member in members:
        groups.setdefault(id(member.group), []).append(member)
    return list(groups.values())


def _join_bundles(
    bundles: Sequence[list[_Member]], size: Callable[[list[_Member]], int], limit: int
) -> list[list[_Member]]:
    """Join consecutive bundles while they fit; a bundle that is too large stays alone."""
    joined: list[list[_Member]] = []
    held = 0
    for bundle in bundles:
        more = size(bundle)
        if not joined or held + more > limit:
            joined.append([])
            held = 0
        joined[-1] += bundle
        held += more
    return joined


def _make_micro_batch(
    members: Sequence[_Member], credit: Credit | None, layout: Layout
) -> MicroBatch:
    groups = _by_group(members)
    packed = pack(
        [group[0].group.prompt for group in groups],
        [[member.completion.token_ids for member in group] for group in groups],
        shared_prefix=layout.shared_prefix,
        tokens_per_pass=layout.tokens_per_pass,
    )

    index: list[int] = []
    sampled: list[float] = []
    versions: list[int] = []
    for group in groups:
        for member in group:
            completion, number = member.completion, len(member.tokens)
            index += member.tokens
            sampled += completion.logprobs or [torch.nan] * number
            versions += [completion.version if completion.logprobs else NOT_SAMPLED] * number
    index_K = torch.tensor(index, dtype=torch.long)

    return MicroBatch(
        packed=packed,
        index_K=index_K,
        inputs=None if credit is None else select(credit.inputs, index_K),
        sampled_logp_K=torch.tensor(sampled),
        version_K=torch.tensor(versions, dtype=torch.long),
        examples=tuple(group[0].group.example.id for group in groups),
    )
