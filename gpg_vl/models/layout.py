"""How groups are laid out in rows for one forward pass: each prompt once, its completions behind it.

    tokens     [ prompt | c1 | c2 | ... | cG | padding ]
    segments   [ 0 .. 0 | 1  | 2  | ... | G  | -1      ]
    positions  [ prompt | next, next+1, .. | next, next+1, .. | ... ]        on all three M-RoPE axes

A completion sees its prompt and itself, never a sibling, and starts where the prompt's positions end: the row computes
what G separate rows would. With `shared_prefix=False` every completion gets a row of its own.
Source: spec of the layout in prefix sharing work such as arXiv:2506.05433; here with M-RoPE and images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpg_vl.types import Prompt

PADDING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One forward pass. `_B` rows, `_S` padded row length, `_K` completion tokens of the pass in order of PG."""

    ids_B_S: Tensor
    positions_3_B_S: Tensor
    segments_B_S: Tensor
    """0 in the prompt, k in the k-th completion of the row, -1 in the padding."""
    image_mask_B_S: Tensor
    pixel_values_N: Tensor | None
    grid_thw_I_3: Tensor | None
    source_row_K: Tensor
    source_column_K: Tensor
    """Where the hidden state stands that predicts each completion token: the prompt's end for the first of each."""
    targets_K: Tensor
    lengths_PG: Tensor
    """Tokens of each completion."""

    def to(self, device: torch.device) -> "Rows":
        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return Rows(**{name: moved(getattr(self, name)) for name in self.__slots__})


def row_cost(prompt_length: int, completion_lengths: Sequence[int], *, shared_prefix: bool) -> tuple[int, int]:
    """(rows, tokens of the longest row) that a group will take."""
    if shared_prefix:
        return 1, prompt_length + sum(completion_lengths)
    return len(completion_lengths), prompt_length + max(completion_lengths, default=0)


def pack(
    prompts: Sequence[Prompt], completions_P_G_T: Sequence[Sequence[Sequence[int]]], *, pad: int, shared_prefix: bool
) -> Rows:
    """Lay out P prompts, each with its completions' token ids. Groups may differ in size, completions in length."""
    rows: list[tuple[Prompt, Sequence[Sequence[int]]]] = []
    for prompt, completions in zip(prompts, completions_P_G_T, strict=True):
        rows += [(prompt, completions)] if shared_prefix else [(prompt, [c]) for c in completions]
    size = max(p.length + sum(map(len, cs)) for p, cs in rows)
    shape = (len(rows), size)
    ids = torch.full(shape, pad, dtype=torch.long)
    positions = torch.zeros((3, *shape), dtype=torch.long)
    segments = torch.full(shape, PADDING, dtype=torch.long)
    image_mask = torch.zeros(shape, dtype=torch.bool)
    source_row: list[int] = []
    source_column: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for b, (prompt, completions) in enumerate(rows):
        at = prompt.length
        ids[b, :at], positions[:, b, :at], segments[b, :at] = prompt.input_ids_T, prompt.positions_3_T, 0
        image_mask[b, :at] = prompt.image_mask_T
        for k, tokens in enumerate(completions, start=1):
            n = len(tokens)
            ids[b, at : at + n] = torch.tensor(tokens, dtype=torch.long)
            positions[:, b, at : at + n] = torch.arange(n) + prompt.next_position
            segments[b, at : at + n] = k
            source_row += [b] * n
            source_column += [prompt.length - 1, *range(at, at + n - 1)][:n]
            targets += tokens
            lengths.append(n)
            at += n
    pictures = [p for p, _ in rows if p.pixel_values_N is not None]
    return Rows(
        ids_B_S=ids,
        positions_3_B_S=positions,
        segments_B_S=segments,
        image_mask_B_S=image_mask,
        pixel_values_N=torch.cat([p.pixel_values_N for p in pictures]) if pictures else None,
        grid_thw_I_3=torch.cat([p.grid_thw_I_3 for p in pictures]) if pictures else None,
        source_row_K=torch.tensor(source_row, dtype=torch.long),
        source_column_K=torch.tensor(source_column, dtype=torch.long),
        targets_K=torch.tensor(targets, dtype=torch.long),
        lengths_PG=torch.tensor(lengths, dtype=torch.long),
    )


def sibling_mask(segments_B_S: Tensor) -> Tensor:
    """bool [B, 1, S, S], True where query (third axis) may see key (fourth): earlier or equal, in the prompt or its own segment.

    A padding token sees itself alone, so that no softmax runs over nothing.
    """
    query, key = segments_B_S[:, :, None], segments_B_S[:, None, :]
    size = segments_B_S.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=segments_B_S.device).tril()
    visible = ((key == 0) & (query != PADDING)) | (key == query) & (query != PADDING)
    itself = torch.eye(size, dtype=torch.bool, device=segments_B_S.device)
    return (visible & causal | itself)[:, None]
