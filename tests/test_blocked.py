"""Products of few rows from weights in the blocked layout: the same numbers, and layers that are themselves again afterwards."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from test_policy import prompts
from torch import Tensor, nn

from gpg_vl.model import Model
from gpg_vl.models.blocked import WORTH, BlockedLayers, block, can_block, multiply
from gpg_vl.models.layout import pack
from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import BlockLayers, CastHead, Predict, Prefill
from gpg_vl.rollout.decode import Head, PlainDecoder
from gpg_vl.rollout.slots import Slots

pytestmark = pytest.mark.skipif(
    not can_block(torch.zeros(2, 2), torch.float32), reason="torch has no oneDNN on this machine"
)


@pytest.fixture
def policy(tiny_checkpoint: Path) -> Policy:
    return Model.load(tiny_checkpoint, device="cpu").policy


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("expected_rows", [1, 16])
@pytest.mark.parametrize("rows", [1, 3, 16, 130])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_that_of_float64(rows: int, expected_rows: int, with_bias: bool) -> None:
    """Whatever the number of rows that the copy was made for, and with rows in several dimensions."""
    weight, bias = drawn(77, 50), drawn(77, seed=1) if with_bias else None
    given = drawn(rows, 2, 50, seed=2)
    blocked = block(weight, expected_rows)
    assert blocked.is_mkldnn
    expected = given.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert torch.allclose(multiply(given, blocked, bias).double(), expected, rtol=0, atol=1e-4)
    assert torch.equal(multiply(given, weight, bias), nn.functional.linear(given, weight, bias))


def test_a_weight_without_such_a_layout_is_used_as_it_is() -> None:
    wide = drawn(4, 4).double()
    assert block(wide, 1) is wide
    assert not can_block(torch.zeros(2, 2, device="meta"), torch.float32)
    assert not can_block(torch.zeros(0), torch.float32), "what another process holds"


def test_layers_are_themselves_again_whatever_happens_inside() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4, bias=False))
    given = drawn(3, 8)
    before = module(given)
    layers = BlockedLayers(module, torch.float32, rows=3)
    with layers:
        assert "forward" in vars(module[0])
        assert torch.allclose(module(given), before, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError), layers:
        module(drawn(3, 7))
    assert not any("forward" in vars(layer) for layer in module)
    assert torch.equal(module(given), before)
    assert module(given).requires_grad


def test_a_copy_is_of_the_weights_at_its_time() -> None:
    """So one must be made for each set of weights, as every call of `generate` does."""
    layer = nn.Linear(4, 4, bias=False)
    layers = BlockedLayers(layer, torch.float32, rows=1)
    before = layer(drawn(1, 4))
    with torch.no_grad():
        layer.weight.zero_()
    with layers:
        assert torch.allclose(layer(drawn(1, 4)), before, rtol=0, atol=1e-6)


def test_all_linear_layers_of_the_text_tower_and_no_others_are_blocked(policy: Policy) -> None:
    with policy(BlockLayers(rows=2)):
        changed = {name for name, m in policy.named_modules() if "forward" in vars(m)}
    linear = {
        name
        for name, module in policy.named_modules()
        if type(module) is nn.Linear and ".language_model." in name
    }
    assert changed == linear
    assert linear


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_decoding_with_blocked_layers_differs_by_rounding_alone(
    dtype: torch.dtype | None, policy: Policy, tiny_checkpoint: Path
) -> None:
    """Against the same calls with the layers as they are: below 1e-5, or a rounding of bfloat16."""
    found = {}
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        prefix = policy(Prefill(packed=pack(prompts(tiny_checkpoint)[:1], [[]])))
        keys = torch.stack([torch.cat(pair) for pair in prefix.keys])
        for calls in (WORTH - 1, WORTH):
            length = keys.shape[3]
            slots = Slots(keys, slots=2, width=length + 4)
            slots.admit(keys, [0, 1])
            decoder = PlainDecoder(policy, slots, calls)
            head = Head(policy, rows=2, calls=calls, temperature=0.7)
            states = decoder(torch.tensor([5, 9]), torch.tensor([length, length]), length)
            found[calls] = (states, head(states))
            assert isinstance(decoder._layers, nullcontext) is (calls < WORTH)
            assert head._head_V_H.is_mkldnn is (calls >= WORTH)

    for few, many in zip(found[WORTH - 1], found[WORTH], strict=True):
        assert few.dtype == many.dtype
        reachable = few > -1e4
        error = (few - many)[reachable].abs().max() / few[reachable].abs().max()
        assert error < (1e-5 if dtype is None else 1e-2)


def test_logits_of_a_blocked_head_leave_unreachable_tokens_out_of_reach(policy: Policy) -> None:
    hidden = drawn(3, policy.model.get_output_embeddings().weight.shape[1])
    with torch.no_grad():
        plain, blocked = (
            policy(
                Predict(hidden_B_H=hidden, head_V_H=policy(CastHead(rows=rows)), temperature=0.5)
            )
            for rows in (0, 3)
        )
    never = policy.never_sampled_V
    assert torch.equal(plain[:, never], blocked[:, never])
    assert torch.allclose(plain, blocked, rtol=1e-5, atol=1e-4)
