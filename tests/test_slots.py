"""Keys of a prompt held once for its answers: the numbers of plain attention over prompt and answer, and the room it takes."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpg_vl.models.key_sharing import WORTH, shares_prompts
from gpg_vl.rollout.slots import SharedSlots, Slots

CPU = torch.device("cpu")


class Sizes(NamedTuple):
    """Layers, heads of keys, query heads for each of them, size of a head."""

    layers: int = 2
    heads: int = 2
    share: int = 3
    size: int = 4


def make_prompt(length: int, sizes: Sizes, dtype: torch.dtype, chance: torch.Generator) -> Tensor:
    shape = (sizes.layers, 2, sizes.heads, length, sizes.size)
    return torch.randn(shape, generator=chance, dtype=torch.float64).to(dtype)


def attend_plainly(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[H * share, D] of one token that sees everything, in float64; keys and values [H, W, D]."""
    folded = query.double().reshape(keys.shape[0], -1, keys.shape[2])
    weights = (folded @ keys.double().transpose(1, 2) * scale).softmax(dim=-1)
    return (weights @ values.double()).reshape(-1, keys.shape[2])


class Oracle:
    """Every slot with its own list of keys."""

    def __init__(self) -> None:
        self.held: dict[int, list[Tensor]] = {}

    def admit(self, prompt: Tensor, slots: list[int]) -> None:
        for slot in slots:
            self.held[slot] = list(prompt)

    def __call__(
        self, slot: int, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        new = torch.stack([key, value])  # [2, H, 1, D]
        self.held[slot][layer] = torch.cat([self.held[slot][layer], new], dim=2)
        keys, values = self.held[slot][layer]
        return attend_plainly(query[:, 0], keys, values, scale)


def decode_tokens(
    slots: SharedSlots,
    oracle: Oracle,
    busy: list[int],
    longest: int,
    sizes: Sizes,
    chance: torch.Generator,
) -> float:
    """One token for every slot; the largest difference to the oracle among the busy ones."""
    count, dtype = len(slots.length_S), slots.cache.dtype
    worst = 0.0
    slots.attended = longest
    slots.begin()
    for layer in range(sizes.layers):
        q = torch.randn(
            count, sizes.heads * sizes.share, 1, sizes.size, generator=chance, dtype=torch.float64
        ).to(dtype)
        k, v = torch.randn(
            2, count, sizes.heads, 1, sizes.size, generator=chance, dtype=torch.float64
        ).to(dtype)
        got = slots(layer, q, k, v, 0.7)
        assert got.shape == q.shape
        assert got.dtype == dtype
        for slot in busy:
            expected = oracle(slot, layer, q[slot], k[slot], v[slot], 0.7)
            worst = max(worst, float((got[slot, :, 0].double() - expected).abs().max()))
    slots.end()
    return worst


@pytest.mark.parametrize(
    "dtype,allowed", [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)]
)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seats=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    again=st.sets(st.integers(0, 6)),
    seed=st.integers(0, 2**30),
)
def test_two_parts_joined_are_attention_over_both(
    dtype: torch.dtype,
    allowed: float,
    lengths: list[int],
    seats: list[int],
    again: set[int],
    seed: int,
) -> None:
    """Prompts of any lengths in slots of any order; then some slots take another prompt while the others go on."""
    sizes, chance = Sizes(), torch.Generator().manual_seed(seed)
    prompts = [make_prompt(length, sizes, dtype, chance) for length in lengths]
    slots, oracle = SharedSlots(prompts[0], slots=len(seats), width=6), Oracle()
    every = list(range(len(seats)))
    for number, prompt in enumerate(prompts):
        mine = [slot for slot in every if seats[slot] % len(prompts) == number]
        if mine:
            slots.admit(prompt, mine)
            oracle.admit(prompt, mine)
    for step in range(3):
        assert decode_tokens(slots, oracle, every, step + 1, sizes, chance) < allowed

    taken = [slot for slot in every if slot in again]
    if taken:
        slots.admit(prompts[-1], taken)
        oracle.admit(prompts[-1], taken)
    for step in range(3, 6):
        assert decode_tokens(slots, oracle, every, step + 1, sizes, chance) < allowed


def test_slots_that_are_kept_go_on_with_their_prompts() -> None:
    sizes, chance = Sizes(), torch.Generator().manual_seed(0)
    prompts = [make_prompt(length, sizes, torch.float64, chance) for length in (5, 9)]
    slots, oracle = SharedSlots(prompts[0], slots=5, width=4), Oracle()
    for prompt, mine in zip(prompts, ([0, 2, 4], [1, 3]), strict=True):
        slots.admit(prompt, mine)
        oracle.admit(prompt, mine)
    assert decode_tokens(slots, oracle, [0, 1, 2, 3, 4], 1, sizes, chance) < 1e-12
    slots.keep([3, 4])
    oracle.held = {0: oracle.held[3], 1: oracle.held[4]}
    for step in (2, 3):
        assert decode_tokens(slots, oracle, [0, 1], step, sizes, chance) < 1e-12


def test_a_prompt_takes_room_once_however_many_answers_it_has() -> None:
    """By hand, float64: 2 layers x 2 x 2 heads x 4 numbers are 256 bytes per token; 8 answers of 3 tokens to a prompt of 100."""
    sizes = Sizes()
    prompt = make_prompt(100, sizes, torch.float64, torch.Generator().manual_seed(0))
    shared = SharedSlots(prompt, slots=8, width=3)
    copied = Slots(prompt, slots=8, width=103)
    for slots in (shared, copied):
        slots.admit(prompt, list(range(8)))
    assert copied.key_bytes == 256 * 8 * (100 + 3)
    assert shared.key_bytes == 256 * (100 + 8 * 3)


def test_prompts_are_shared_from_the_bytes_on_that_pay_for_it() -> None:
    """What is not read again are the other answers' copies; where nothing is copied, or on CUDA, nothing is shared."""
    exactly = WORTH / (7 * 1024)
    assert shares_prompts(CPU, key_bytes=1024, prompt=exactly, answers=8)
    assert not shares_prompts(CPU, key_bytes=1024, prompt=exactly - 1, answers=8)
    assert not shares_prompts(CPU, key_bytes=1024, prompt=1e9, answers=1)
    assert not shares_prompts(torch.device("cuda"), key_bytes=1024, prompt=math.inf, answers=8)
