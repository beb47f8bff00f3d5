"""How groups are laid out for one micro-batch: each image once, each prompt once, the completions as their continuations.

    prefixes   [ prompt 1 | prompt 2 | ... ]             one behind the other, no padding
    suffixes   [ c11 | c12 | .. | c21 | c22 | ... ]      likewise; positions start again where the prompt's end
    sees       a prefix token: the tokens before it in its prompt
               a suffix token: its whole prompt, and the tokens before it in its own completion

Each completion computes what a row `[prompt | completion]` of its own would, but what completions have in common is
computed once. The last token of a completion is a target and nothing else, so it is not run through the model. A
micro-batch that is too large for one call has its suffixes cut into several chunks. The naive layout
(`shared_prefix=False`) has a prefix `[prompt | completion]` for every completion, an image for every prefix, and no
suffixes. Source: prefix sharing as in arXiv:2506.05433 and arXiv:2410.20305; here with M-RoPE positions and images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpg_vl.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some completions of a micro-batch, and where their log-probs come from. `_U` suffix tokens, `_K` completion tokens."""

    ids_U: Tensor
    positions_3_U: Tensor
    lengths: tuple[int, ...]
    """Tokens run of each completion: one less than it has, or none."""
    prefixes: tuple[int, ...]
    """The prefix that each completion continues."""
    targets_K: Tensor
    source_K: Tensor
    """Where the hidden state stands that predicts each token, in [prefix states | suffix states]."""
    counts: tuple[int, ...]
    """Completion tokens of each completion, in the order of the whole micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The layout of one micro-batch. `_S` prefix tokens."""

    ids_S: Tensor
    positions_3_S: Tensor
    image_mask_S: Tensor
    prefix_lengths: tuple[int, ...]
    pixel_values_N: Tensor | None
    """Patches of the distinct images, one image behind the other."""
    grid_thw_I_3: Tensor | None
    image_keys: tuple[str, ...]
    """What tells the distinct images apart; empty in the naive layout, which does not care."""
    image_places: tuple[int, ...]
    """Which distinct image stands at each image place of the prefixes, in order. Empty with images: they stand nowhere."""
    prompt_keys: tuple[str, ...]
    """What tells the prefixes apart: equal keys, equal tokens and images. Empty in the naive layout."""
    chunks: tuple[Chunk, ...]
    """One of them: prefixes and suffixes are computed in one joined call. Several: prefixes first, then chunk by chunk."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(n for chunk in self.chunks for n in chunk.counts)

    @property
    def tokens(self) -> int:
        """Tokens that go through the language model."""
        return len(self.ids_S) + sum(len(chunk.ids_U) for chunk in self.chunks)

    @property
    def largest_call(self) -> int:
        """Tokens of the largest of its calls: the prefixes, which may be computed already, and a chunk."""
        return len(self.ids_S) + max(len(chunk.ids_U) for chunk in self.chunks)

    @property
    def patches(self) -> int:
        """Patches that go through the vision tower."""
        return 0 if self.pixel_values_N is None else len(self.pixel_values_N)

    def to(self, device: torch.device) -> "Packed":
        packed: Packed = _to_device(self, device)
        return packed


def pack(
    prompts: Sequence[Prompt],
    completions_P_G_T: Sequence[Sequence[Sequence[int]]],
    *,
    shared_prefix: bool = True,
    tokens_per_pass: int | None = None,
) -> Packed:
    """Lay out P prompts, each with its completions' token ids. Groups may differ in size, completions in length.

    tokens_per_pass: a micro-batch of more tokens is cut into chunks, none of which has more together with the prefixes
        (but at least one completion each). The naive layout has no suffixes to cut.
    """
    if not shared_prefix:
        return _pack_naive(prompts, completions_P_G_T)

    completions = [
        _Completion(number, tuple(token_ids))
        for number, group in enumerate(completions_P_G_T)
        for token_ids in group
    ]
    ends = list(accumulate(prompt.length for prompt in prompts))
    cuts = _cut(completions, ends[-1], tokens_per_pass)

    return Packed(
        **_describe_prefixes(
            prompts,
            [prompt.input_ids_T for prompt in prompts],
            [prompt.positions_3_T for prompt in prompts],
            share_images=True,
        ),
        prompt_keys=tuple(_prompt_key(prompt) for prompt in prompts),
        chunks=tuple(_make_chunk(completions[cut], prompts, ends) for cut in cuts),
    )


class _Completion(NamedTuple):
    prompt: int
    token_ids: tuple[int, ...]

    @property
    def run(self) -> int:
        """Tokens that go through the model: nothing is predicted from the last one."""
        return max(0, len(self.token_ids) - 1)


def _prompt_key(prompt: Prompt) -> str:
    digest = hashlib.sha256(prompt.input_ids_T.numpy().tobytes())
    digest.update("".join(prompt.image_keys).encode())
    return digest.hexdigest()


def _pack_naive(
    prompts: Sequence[Prompt], completions_P_G_T: Sequence[Sequence[Sequence[int]]]
) -> Packed:
    """A prefix for each completion, its prompt and image repeated; every target is predicted inside of a prefix."""
    rows: list[Prompt] = []
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    sources: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    targets: list[int] = []
    start = 0

    for prompt, group in zip(prompts, completions_P_G_T, strict=True):
        for completion in group:
            run_T = torch.tensor(list(completion[:-1]), dtype=torch.long)
            following_T = torch.arange(len(run_T)) + prompt.next_position
            rows.append(prompt)
            ids.append(torch.cat([prompt.input_ids_T, run_T]))
            positions.append(torch.cat([prompt.positions_3_T, following_T.expand(3, -1)], dim=1))

            # the prompt's last token predicts the first of the completion
            if len(completion):
                sources.append(torch.arange(len(completion)) + start + prompt.length - 1)
            targets += completion
            start += len(ids[-1])

    empty = torch.zeros(0, dtype=torch.long)
    chunk = Chunk(
        ids_U=empty,
        positions_3_U=empty.expand(3, 0),
        lengths=(0,) * len(rows),
        prefixes=tuple(range(len(rows))),
        targets_K=torch.tensor(targets, dtype=torch.long),
        source_K=torch.cat(sources),
        counts=tuple(len(completion) for group in completions_P_G_T for completion in group),
    )
    described = _describe_prefixes(rows, ids, positions, share_images=False)
    return Packed(**described, prompt_keys=(), chunks=(chunk,))


def _describe_prefixes(
    prompts: Sequence[Prompt],
    ids: Sequence[Tensor],
    positions: Sequence[Tensor],
    *,
    share_images: bool,
) -> dict[str, Any]:
    """The fields of `Packed` that describe prefixes and images; equal images are kept once if `share_images`."""
    masks = []
    for prompt, row_T in zip(prompts, ids, strict=True):
        behind = torch.zeros(len(row_T) - prompt.length, dtype=torch.bool)
        masks.append(torch.cat([prompt.image_mask_T, behind]))

    # an image is known by its content, or in the naive layout by its place, so that none is shared
    images: dict[str, _Image] = {}
    names: list[str] = []
    for prompt in prompts:
        for image in _images_of(prompt):
            names.append(image.key if share_images else str(len(names)))
            images.setdefault(names[-1], image)
    number_of = {name: number for number, name in enumerate(images)}

    return {
        "ids_S": torch.cat(list(ids)),
        "positions_3_S": torch.cat(list(positions), dim=1),
        "image_mask_S": torch.cat(masks),
        "prefix_lengths": tuple(len(row_T) for row_T in ids),
        "pixel_values_N": torch.cat([x.patches_N for x in images.values()]) if images else None,
        "grid_thw_I_3": torch.stack([x.grid_3 for x in images.values()]) if images else None,
        "image_keys": tuple(images) if share_images else (),
        "image_places": tuple(number_of[name] for name in names),
    }


class _Image(NamedTuple):
    key: str
    patches_N: Tensor
    grid_3: Tensor


def _images_of(prompt: Prompt) -> list[_Image]:
    if prompt.pixel_values_N is None or prompt.grid_thw_I_3 is None:
        return []
    sizes = prompt.grid_thw_I_3.prod(dim=1).tolist()
    columns = (prompt.image_keys, prompt.pixel_values_N.split(sizes), prompt.grid_thw_I_3.unbind())
    return [_Image(*image) for image in zip(*columns, strict=True)]


def _cut(
    completions: Sequence[_Completion], prefix_tokens: int, tokens_per_pass: int | None
) -> list[slice]:
    """Consecutive completions; all of them if they fit into the micro-batch together with the prefixes."""
    everything = prefix_tokens + sum(completion.run for completion in completions)
    if tokens_per_pass is None or everything <= tokens_per_pass:
        return [slice(None)]

    cuts: list[slice] = []
    start = held = 0
    for i, completion in enumerate(completions):
        if i > start and prefix_tokens + held + completion.run > tokens_per_pass:
            cuts.append(slice(start, i))
            start, held = i, 0
        held += completion.run
    return [*cuts, slice(start, len(completions))]


def _make_chunk(
    completions: Sequence[_Completion], prompts: Sequence[Prompt], ends: Sequence[int]
) -> Chunk:
    """ends: where each prefix ends among the prefix tokens."""
    ids: list[int] = []
    positions: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    sources: list[int] = []
    targets: list[int] = []
    start = ends[-1]

    for completion in completions:
        ids += completion.token_ids[:-1]
        positions.append(torch.arange(completion.run) + prompts[completion.prompt].next_position)

        # the prompt's last token predicts the first of the completion, and each token the one behind it
        predicting = [ends[completion.prompt] - 1, *range(start, start + completion.run)]
        sources += predicting[: len(completion.token_ids)]
        targets += completion.token_ids
        start += completion.run

    return Chunk(
        ids_U=torch.tensor(ids, dtype=torch.long),
        positions_3_U=torch.cat(positions).expand(3, -1),
        lengths=tuple(completion.run for completion in completions),
        prefixes=tuple(completion.prompt for completion in completions),
        targets_K=torch.tensor(targets, dtype=torch.long),
        source_K=torch.tensor(sources, dtype=torch.long),
        counts=tuple(len(completion.token_ids) for completion in completions),
    )


def _to_device(record: Any, device: torch.device) -> Any:
    values: dict[str, Any] = {}
    for entry in fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
        elif entry.name == "chunks":
            value = tuple(_to_device(chunk, device) for chunk in value)
        values[entry.name] = value
    return type(record)(**values)
