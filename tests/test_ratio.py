"""Ratios: exactly 1 where nothing has changed, with the slope of log pi; and the divergence estimated from them."""

import math

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped

from gpg_vl.algorithms import ratio as module

log_ratio = jaxtyped(typechecker=beartype)(module.log_ratio)
k3 = jaxtyped(typechecker=beartype)(module.k3)

logps = st.floats(-12.0, 0.0)
seeded = settings(max_examples=60, deadline=None, derandomize=True)


@seeded
@given(st.lists(st.tuples(logps, st.one_of(logps, st.just(math.nan))), min_size=1, max_size=6))
def test_the_ratio_is_one_where_the_current_weights_sampled(
    tokens: list[tuple[float, float]],
) -> None:
    logp = torch.tensor([now for now, _ in tokens], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([then for _, then in tokens], dtype=torch.float64)
    expected = [0.0 if math.isnan(then) else now - then for now, then in tokens]
    result = log_ratio(logp, old)
    assert result.tolist() == expected

    (slope,) = torch.autograd.grad(result.exp().sum(), logp)
    assert slope.tolist() == pytest.approx([math.exp(x) for x in expected], rel=1e-12)
    assert all(s == 1.0 for s, x in zip(slope.tolist(), expected, strict=True) if x == 0.0)


def test_a_rounding_of_the_engine_is_a_ratio_not_a_slope_of_zero() -> None:
    """No threshold: a difference of 1e-7 counts as one."""
    logp = torch.tensor([-1.0], dtype=torch.float64)
    assert log_ratio(logp, torch.tensor([-1.0 - 1e-7], dtype=torch.float64)).item() != 0.0


@seeded
@given(logps, logps)
def test_k3_is_the_formula_and_never_below_zero(now: float, reference: float) -> None:
    logp = torch.tensor([now], dtype=torch.float64, requires_grad=True)
    value = k3(logp, torch.tensor([reference], dtype=torch.float64))
    gap = reference - now
    assert value.item() >= 0.0
    assert value.item() == pytest.approx(math.exp(gap) - gap - 1, rel=1e-9, abs=1e-15)
    value.backward()
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(1 - math.exp(gap), rel=1e-9, abs=1e-15)


def test_k3_keeps_the_digits_of_a_small_difference() -> None:
    """0.001 in float32: 0.001^2 / 2 = 5.0e-7, of which exp(d) - 1 - d would leave two digits."""
    value = k3(torch.tensor([-1.0]), torch.tensor([-0.999]))
    gap = torch.tensor([-0.999]).item() - (-1.0)
    assert value.item() == pytest.approx(gap**2 / 2 + gap**3 / 6, rel=1e-3)


def test_k3_by_hand() -> None:
    """The reference twice as likely: 2 - log 2 - 1; half as likely: 1/2 + log 2 - 1; alike: 0."""
    now = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    reference = now + torch.tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64)
    expected = [1 - math.log(2), math.log(2) - 0.5, 0.0]
    assert k3(now, reference).tolist() == pytest.approx(expected, rel=1e-12)


def test_wrong_shapes_are_refused_under_test() -> None:
    with pytest.raises(TypeCheckError):
        log_ratio(torch.zeros(4), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        k3(torch.zeros(4, 3), torch.zeros(4, 3))
