"""How groups are laid out for one pass: each image once, each prompt once, the completions as branches of it.

    prefixes   [ prompt 1 | prompt 2 | ... ]             one behind the other, no padding
    suffixes   [ c11 | c12 | .. | c21 | c22 | ... ]      likewise; positions start again where the prompt's end
    sees       a prefix token: the tokens before it in its prompt
               a suffix token: its whole prompt, and the tokens before it in its own completion

Each branch computes what a row `[prompt | completion]` of its own would, but what the branches have in common is computed
once. The last token of a completion is a target and nothing else, so it is not run through the model. The naive layout
(`shared_prefix=False`) has a prefix `[prompt | completion]` for every completion, an image for every prefix, and no suffixes.
Source: prefix sharing as in arXiv:2506.05433 and arXiv:2410.20305; here with M-RoPE positions and images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gpg_vl.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffixes:
    """Some completions of a pass, and where their log-probs come from. `_U` suffix tokens, `_K` completion tokens."""

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
    """Completion tokens of each completion, in the order of the whole pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One pass. `_S` prefix tokens."""

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
    """Which distinct image stands at each image place of the prefixes, in order."""
    prompt_keys: tuple[str, ...]
    """What tells the prefixes apart: equal keys, equal tokens and images. Empty in the naive layout."""
    suffixes: tuple[Suffixes, ...]
    """One of them: the pass is computed in one piece. Several: prefixes first, then one piece after the other."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(n for part in self.suffixes for n in part.counts)

    @property
    def tokens(self) -> int:
        """Tokens that go through the language model."""
        return len(self.ids_S) + sum(len(part.ids_U) for part in self.suffixes)

    @property
    def patches(self) -> int:
        """Patches that go through the vision tower."""
        return 0 if self.pixel_values_N is None else len(self.pixel_values_N)

    def to(self, device: torch.device) -> "Packed":
        moved: Packed = _moved(self, device)
        return moved


def pack(
    prompts: Sequence[Prompt],
    completions_P_G_T: Sequence[Sequence[Sequence[int]]],
    *,
    shared_prefix: bool = True,
    tokens_per_pass: int | None = None,
) -> Packed:
    """Lay out P prompts, each with its completions' token ids. Groups may differ in size, completions in length.

    tokens_per_pass: a pass of more tokens is computed in pieces, none of which has more together with the prefixes (but
        at least one completion each). The naive layout has no suffixes to cut.
    """
    groups = list(zip(prompts, completions_P_G_T, strict=True))
    if not shared_prefix:
        return _pack_naive([(prompt, c) for prompt, cs in groups for c in cs])
    flat = [(p, tuple(c)) for p, (_, cs) in enumerate(groups) for c in cs]
    ends = list(accumulate(p.length for p in prompts))
    pieces = _pieces([len(c) for _, c in flat], ends[-1], tokens_per_pass)
    return Packed(
        **_prefixes(
            prompts,
            [p.input_ids_T for p in prompts],
            [p.positions_3_T for p in prompts],
            distinct=True,
        ),
        prompt_keys=tuple(_key(p) for p in prompts),
        suffixes=tuple(_suffixes(flat[piece], prompts, ends) for piece in pieces),
    )


def _key(prompt: Prompt) -> str:
    digest = hashlib.sha256(prompt.input_ids_T.numpy().tobytes())
    digest.update("".join(prompt.image_keys).encode())
    return digest.hexdigest()


def _pack_naive(rows: Sequence[tuple[Prompt, Sequence[int]]]) -> Packed:
    prompts = [prompt for prompt, _ in rows]
    inputs = [torch.tensor(list(c[:-1]), dtype=torch.long) for _, c in rows]
    ids = [torch.cat([p.input_ids_T, c]) for p, c in zip(prompts, inputs, strict=True)]
    positions = [
        torch.cat([p.positions_3_T, (torch.arange(len(c)) + p.next_position).expand(3, -1)], dim=1)
        for p, c in zip(prompts, inputs, strict=True)
    ]
    starts = [0, *accumulate(len(row) for row in ids)]
    source = [
        torch.arange(len(c)) + start + p.length - 1
        for (p, c), start in zip(rows, starts[:-1], strict=True)
        if len(c)
    ]
    empty = torch.zeros(0, dtype=torch.long)
    suffixes = Suffixes(
        ids_U=empty,
        positions_3_U=empty.expand(3, 0),
        lengths=(0,) * len(rows),
        prefixes=tuple(range(len(rows))),
        targets_K=torch.tensor([t for _, c in rows for t in c], dtype=torch.long),
        source_K=torch.cat(source or [empty]),
        counts=tuple(len(c) for _, c in rows),
    )
    return Packed(
        **_prefixes(prompts, ids, positions, distinct=False), prompt_keys=(), suffixes=(suffixes,)
    )


def _prefixes(
    prompts: Sequence[Prompt], ids: Sequence[Tensor], positions: Sequence[Tensor], *, distinct: bool
) -> dict[str, Any]:
    """The fields of `Packed` that describe prefixes and images; equal images are kept once if `distinct`."""
    mask = [
        torch.cat([p.image_mask_T, torch.zeros(len(row) - p.length, dtype=torch.bool)])
        for p, row in zip(prompts, ids, strict=True)
    ]
    shown = [image for prompt in prompts for image in _images(prompt)]
    names = [key if distinct else str(place) for place, (key, _, _) in enumerate(shown)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (_, patches, grid) in zip(names, shown, strict=True):
        found.setdefault(name, (patches, grid))
    number_of = {name: number for number, name in enumerate(found)}
    return {
        "ids_S": torch.cat(list(ids)),
        "positions_3_S": torch.cat(list(positions), dim=1),
        "image_mask_S": torch.cat(mask),
        "prefix_lengths": tuple(len(row) for row in ids),
        "pixel_values_N": torch.cat([patches for patches, _ in found.values()]) if found else None,
        "grid_thw_I_3": torch.stack([grid for _, grid in found.values()]) if found else None,
        "image_keys": tuple(found) if distinct else (),
        "image_places": tuple(number_of[name] for name in names),
    }


def _images(prompt: Prompt) -> list[tuple[str, Tensor, Tensor]]:
    """(key, patches, grid) of each image of the prompt."""
    if prompt.pixel_values_N is None or prompt.grid_thw_I_3 is None:
        return []
    sizes = prompt.grid_thw_I_3.prod(dim=1).tolist()
    return list(
        zip(
            prompt.image_keys,
            prompt.pixel_values_N.split(sizes),
            prompt.grid_thw_I_3.unbind(),
            strict=True,
        )
    )


def _pieces(lengths: Sequence[int], prefix_tokens: int, tokens_per_pass: int | None) -> list[slice]:
    """Consecutive completions; all of them if they fit into the pass together with the prefixes."""
    runs = [max(0, n - 1) for n in lengths]
    if tokens_per_pass is None or prefix_tokens + sum(runs) <= tokens_per_pass:
        return [slice(None)]
    pieces: list[slice] = []
    start = held = 0
    for i, run in enumerate(runs):
        if i > start and prefix_tokens + held + run > tokens_per_pass:
            pieces.append(slice(start, i))
            start, held = i, 0
        held += run
    return [*pieces, slice(start, len(runs))]


def _suffixes(
    completions: Sequence[tuple[int, tuple[int, ...]]],
    prompts: Sequence[Prompt],
    ends: Sequence[int],
) -> Suffixes:
    """completions: (prefix, token ids). ends: where each prefix ends among the prefix tokens."""
    at = ends[-1]
    ids: list[int] = []
    positions: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    source: list[int] = []
    for prefix, tokens in completions:
        run = max(0, len(tokens) - 1)
        ids += tokens[:-1]
        positions.append(torch.arange(run) + prompts[prefix].next_position)
        source += [ends[prefix] - 1, *range(at, at + run)][: len(tokens)]
        at += run
    return Suffixes(
        ids_U=torch.tensor(ids, dtype=torch.long),
        positions_3_U=torch.cat(positions).expand(3, -1),
        lengths=tuple(max(0, len(c) - 1) for _, c in completions),
        prefixes=tuple(p for p, _ in completions),
        targets_K=torch.tensor([t for _, c in completions for t in c], dtype=torch.long),
        source_K=torch.tensor(source, dtype=torch.long),
        counts=tuple(len(c) for _, c in completions),
    )


def _moved(record: Any, device: torch.device) -> Any:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, tuple) and value and isinstance(value[0], Suffixes):
            return tuple(_moved(part, device) for part in value)
        return value

    return type(record)(**{f.name: moved(getattr(record, f.name)) for f in fields(record)})
