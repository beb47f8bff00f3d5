"""Kernels of attention over shared prefixes against loops that follow the definition, and the choice among them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpg_vl.models.attention import (
    Segments,
    choose_kernel,
    dense,
    make_attend,
    split,
    varlen,
    visible,
)

HEADS, KEY_HEADS, SIZE = 4, 2, 8


def by_definition(
    segments: Segments, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """One query at a time, plain softmax, over the keys it may see."""
    starts = [sum(segments.prefix_lengths[:i]) for i in range(len(segments.prefix_lengths))]
    seen: list[list[int]] = []
    for start, length in zip(starts, segments.prefix_lengths, strict=True):
        seen += [list(range(start, start + t + 1)) for t in range(length)]
    at = len(seen)
    for length, prefix in zip(segments.suffix_lengths, segments.prefixes, strict=True):
        prompt = list(range(starts[prefix], starts[prefix] + segments.prefix_lengths[prefix]))
        seen += [prompt + list(range(at, at + t + 1)) for t in range(length)]
        at += length
    if not segments.prefix_queries:
        seen = seen[sum(segments.prefix_lengths) :]
    out = torch.zeros_like(query)
    for h in range(HEADS):
        k, v = key[0, h * KEY_HEADS // HEADS], value[0, h * KEY_HEADS // HEADS]
        for i, keys in enumerate(seen):
            out[0, h, i] = torch.softmax(k[keys] @ query[0, h, i] * scale, dim=0) @ v[keys]
    return out


def inputs(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    keys = sum(segments.prefix_lengths) + sum(segments.suffix_lengths)
    queries = keys if segments.prefix_queries else sum(segments.suffix_lengths)
    generator = torch.Generator().manual_seed(keys)
    return (
        torch.randn(1, HEADS, queries, SIZE, generator=generator, dtype=torch.float64),
        torch.randn(1, KEY_HEADS, keys, SIZE, generator=generator, dtype=torch.float64),
        torch.randn(1, KEY_HEADS, keys, SIZE, generator=generator, dtype=torch.float64),
    )


def ragged_by_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
) -> Tensor:
    """What varlen_attn promises with window (-1, 0): each run alone, causal, last query aligned with last key."""
    out = torch.zeros_like(q)
    lengths_q, lengths_k = ends_q.diff(), ends_k.diff()
    assert (int(lengths_q.max()), int(lengths_k.max())) == (longest_q, longest_k)
    for run in range(len(lengths_q)):
        first_q, first_k = int(ends_q[run]), int(ends_k[run])
        for i in range(int(lengths_q[run])):
            until = first_k + int(lengths_k[run]) - int(lengths_q[run]) + i + 1
            for h in range(HEADS):
                keys = k[first_k:until, h * KEY_HEADS // HEADS]
                weights = torch.softmax(keys @ q[first_q + i, h] * scale, dim=0)
                out[first_q + i, h] = weights @ v[first_k:until, h * KEY_HEADS // HEADS]
    return out


@st.composite
def segmentations(draw: st.DrawFn) -> Segments:
    prefixes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    count = draw(st.integers(0, 5))
    return Segments(
        prefix_lengths=tuple(prefixes),
        suffix_lengths=tuple(draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))),
        prefixes=tuple(
            sorted(
                draw(st.lists(st.integers(0, len(prefixes) - 1), min_size=count, max_size=count))
            )
        ),
        prefix_queries=draw(st.booleans()) or count == 0,
    )


@settings(max_examples=60, deadline=None)
@given(segmentations())
def test_every_kernel_follows_the_definition(segments: Segments) -> None:
    query, key, value = inputs(segments)
    scale = 1 / math.sqrt(SIZE)
    expected = by_definition(segments, query, key, value, scale)
    device = torch.device("cpu")
    for attend in (
        dense(segments, device),
        split(segments, device),
        varlen(segments, device, ragged_by_loops),
    ):
        assert torch.allclose(attend(query, key, value, scale), expected, atol=1e-12)


def test_who_sees_whom_by_hand() -> None:
    """Prompts of 2 and 1; completions of 1 and 2 tokens for the first, of 1 for the second."""
    segments = Segments(prefix_lengths=(2, 1), suffix_lengths=(1, 2, 1), prefixes=(0, 0, 1))
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 0, 1],
    ]
    assert visible(segments, torch.device("cpu")).int().tolist() == expected
    later = Segments(
        prefix_lengths=(2, 1), suffix_lengths=(1, 2, 1), prefixes=(0, 0, 1), prefix_queries=False
    )
    assert visible(later, torch.device("cpu")).int().tolist() == expected[3:]


def test_completions_of_one_token_ask_nothing() -> None:
    segments = Segments(prefix_lengths=(3,), suffix_lengths=(0, 2, 0), prefixes=(0, 0, 0))
    kept = Segments(prefix_lengths=(3,), suffix_lengths=(2,), prefixes=(0,))
    query, key, value = inputs(kept)
    for kernel in ("dense", "split"):
        out = make_attend(kernel, segments, torch.device("cpu"))(query, key, value, 0.3)
        assert torch.allclose(out, by_definition(kept, query, key, value, 0.3), atol=1e-12)


def test_a_kernel_that_the_machine_lacks_is_replaced_with_a_reason() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_kernel("auto", cpu, torch.float32) == ("split", "")
    assert choose_kernel("dense", cpu, torch.float32) == ("dense", "")
    assert choose_kernel("varlen", cpu, torch.bfloat16) == (
        "split",
        "varlen needs a CUDA device, this is cpu; split is used instead",
    )
    assert choose_kernel("varlen", gpu, torch.float32) == (
        "split",
        "varlen needs bfloat16 or float16, this is float32; split is used instead",
    )
    assert choose_kernel("varlen", gpu, torch.bfloat16) == ("varlen", "")


@pytest.mark.parametrize("width", [1, 5])
def test_equal_lengths_need_no_gathering_and_give_the_same(width: int) -> None:
    segments = Segments(prefix_lengths=(4, 4), suffix_lengths=(width,) * 4, prefixes=(0, 0, 1, 1))
    query, key, value = inputs(segments)
    expected = by_definition(segments, query, key, value, 0.5)
    assert torch.allclose(
        split(segments, torch.device("cpu"))(query, key, value, 0.5), expected, atol=1e-12
    )
