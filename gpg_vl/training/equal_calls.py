"""Makes every process call the model equally often and in the same order, because calls of a sharded model are collectives.

Micro-batches of different processes are paired by their index. All of a pair are computed in as many phases as the one with the
most chunks needs, and with images if one of them has any. A process computes what it lacks on a tiny input whose contribution is
exactly zero.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from gpg_vl.models.families.family import Patches
from gpg_vl.models.layout import Chunk, Packed
from gpg_vl.training.collectives import gather
from gpg_vl.training.micro_batch import MicroBatch


def match_calls(
    accelerator: Accelerator,
    micro_batches: Sequence[MicroBatch],
    idle: MicroBatch,
    blank: Patches | None,
) -> list[MicroBatch]:
    """This process's micro-batches, changed so that they make the same calls as those of the others. All processes call it
    together.

    idle: the micro-batch to use where this process has none.
    blank: an image for micro-batches without one; None if calls of the vision tower are not collectives.
    """
    own_calls = [(len(m.packed.chunks), m.packed.pixel_values_N is not None) for m in micro_batches]
    everybodys = gather(accelerator, own_calls)

    matched: list[MicroBatch] = []
    for place in range(max(map(len, everybodys))):
        calls = [of_one[place] for of_one in everybodys if place < len(of_one)]
        chunks, shows_images = max(n for n, _ in calls), any(shows for _, shows in calls)
        micro_batch = micro_batches[place] if place < len(micro_batches) else idle

        packed = _cut_into(micro_batch.packed, chunks)
        if shows_images and blank is not None:
            packed = _show(packed, blank)
        matched.append(replace(micro_batch, packed=packed))
    return matched


def _cut_into(packed: Packed, number: int) -> Packed:
    """Split the same completions into this many chunks, each with at least one token, since an empty chunk makes no
    call."""
    if number == 1:
        return packed
    nothing = torch.zeros(0, dtype=torch.long)
    empty = Chunk(
        ids_U=nothing,
        positions_3_U=nothing.expand(3, 0),
        lengths=(),
        prefixes=(),
        targets_K=nothing,
        source_K=nothing,
        counts=(),
    )
    chunks = (*packed.chunks, *[empty] * (number - len(packed.chunks)))
    return replace(packed, chunks=tuple(_with_a_token(chunk) for chunk in chunks))


def _with_a_token(chunk: Chunk) -> Chunk:
    """A chunk that runs one token of an empty completion."""
    if len(chunk.ids_U):
        return chunk
    return replace(
        chunk,
        ids_U=torch.tensor([0]),
        positions_3_U=torch.zeros(3, 1, dtype=torch.long),
        lengths=(*chunk.lengths, 1),
        prefixes=(*chunk.prefixes, 0),
        counts=(*chunk.counts, 0),
    )


def _show(packed: Packed, blank: Patches) -> Packed:
    """Add an image that is at no position of a prompt, if there is none."""
    if packed.pixel_values_N is not None:
        return packed
    return replace(packed, pixel_values_N=blank.pixel_values_N, grid_thw_I_3=blank.grid_thw_I_3)
