"""Advantages: hand-computed values, leave-one-out and GRPO formulas of our own, and properties over random rewards.

`BATCH` is the running example of the specification: four groups of four, two of them without signal.
"""

import itertools
import statistics

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped

from gpg_vl.algorithms import advantages as module
from gpg_vl.algorithms.option_types import FNorm

# every call below is checked against the shapes that the annotations promise
advantages = jaxtyped(typechecker=beartype)(module.advantages)
valid_groups = jaxtyped(typechecker=beartype)(module.valid_groups)

BATCH = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
BATCH_STD = 0.512348  # of the sixteen rewards, ddof 1
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CONSTANTS = [0.1, 0.2, 0.3, 0.7, 1.0, 1.1, 2.9, 3.3, -0.7, 1e-9, 1e6 + 0.1, 0.0]
"""Rewards whose mean over some group size is off by a rounding step: `r - mean` alone would leave a residue."""

seeded = settings(max_examples=60, deadline=None, derandomize=True)
halves = st.integers(-40, 40).map(
    lambda k: k / 2
)  # sums and shifts of these are exact in float32 already


def groups(rewards: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """One to five groups of one size from two to nine."""
    sizes = st.integers(2, 9)
    return sizes.flatmap(
        lambda g: st.lists(st.lists(rewards, min_size=g, max_size=g), min_size=1, max_size=5)
    )


def close(actual: torch.Tensor, expected: list[list[float]], tolerance: float = 1e-12) -> bool:
    return torch.allclose(
        actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


@PRECISIONS
def test_gpg_subtracts_the_group_mean_and_divides_by_one(dtype: torch.dtype) -> None:
    expected = [[0.5, 0.5, -0.5, -0.5], [0.0] * 4, [0.0] * 4, [0.75, -0.25, -0.25, -0.25]]
    assert (
        advantages(torch.tensor(BATCH, dtype=dtype)).tolist() == expected
    )  # exact: every number is a multiple of 1/4
    assert advantages(torch.tensor([[0.0, 1.0, 2.0]], dtype=dtype)).tolist() == [[-1.0, 0.0, 1.0]]


@PRECISIONS
def test_group_std_divides_by_the_deviation_of_the_group(dtype: torch.dtype) -> None:
    """0.5 / (0.57735 + 1e-4) and 0.75, -0.25 / (0.5 + 1e-4)."""
    first, last = (
        [0.865875, 0.865875, -0.865875, -0.865875],
        [1.49970, -0.49990, -0.49990, -0.49990],
    )
    expected = [first, [0.0] * 4, [0.0] * 4, last]
    assert close(advantages(torch.tensor(BATCH, dtype=dtype), f_norm="group_std"), expected, 1e-5)


def test_batch_std_divides_by_the_deviation_of_the_step() -> None:
    """0.512348 + 1e-4 = 0.512448 under every centred reward."""
    first, last = (
        [0.975709, 0.975709, -0.975709, -0.975709],
        [1.463563, -0.487854, -0.487854, -0.487854],
    )
    expected = [first, [0.0] * 4, [0.0] * 4, last]
    assert statistics.stdev(itertools.chain(*BATCH)) == pytest.approx(BATCH_STD, abs=1e-6)
    assert close(
        advantages(torch.tensor(BATCH), f_norm="batch_std", batch_std=BATCH_STD), expected, 1e-5
    )
    with pytest.raises(ValueError, match="needs batch_std"):
        advantages(torch.tensor(BATCH), f_norm="batch_std")


def test_a_group_is_valid_if_its_rewards_are_not_all_equal() -> None:
    assert valid_groups(torch.tensor(BATCH)).tolist() == [True, False, False, True]
    # a difference that a tolerance of 1e-5 on the deviation would drop, and a spread without any zero
    nearly = torch.tensor([[0.5, 0.5, 0.5, 0.5 + 1e-9], [0.3, 0.3, 0.3, 0.3]], dtype=torch.float64)
    assert valid_groups(nearly).tolist() == [True, False]
    assert valid_groups(torch.tensor([[-1.0, -1.0, -0.5], [-1.0, -1.0, -1.0]])).tolist() == [
        True,
        False,
    ]


@PRECISIONS
@pytest.mark.parametrize("f_norm", ["one", "group_std", "batch_std"])
@pytest.mark.parametrize("size", [2, 3, 6, 7, 8])
def test_equal_rewards_give_exactly_zero(dtype: torch.dtype, f_norm: FNorm, size: int) -> None:
    """Eight times 2.9 in float32 is the known case: centred, it leaves 2.4e-7."""
    rewards = torch.tensor([[constant] * size for constant in CONSTANTS], dtype=dtype)
    result = advantages(rewards, f_norm=f_norm, batch_std=0.0)
    assert not valid_groups(rewards).any()
    assert torch.count_nonzero(result) == 0, "NaN counts as nonzero"


@pytest.mark.parametrize("f_norm", ["group_std", "batch_std"])
def test_a_spread_below_the_rounding_of_the_mean_stays_finite(f_norm: FNorm) -> None:
    rewards = torch.tensor([[1.0, 1.0 + 2**-23, 1.0, 1.0]])
    result = advantages(rewards, f_norm=f_norm, batch_std=0.0)
    assert valid_groups(rewards).all()
    assert result.isfinite().all()
    assert result.abs().max() < 1e-2, (
        "the 1e-4 under the line keeps a tiny deviation from blowing up"
    )


def test_leave_one_out_differs_by_g_over_g_minus_one() -> None:
    """RLOO's baseline is the mean of the others: group 1 gives 2/3, group 4 gives 1 and -1/3."""
    rloo = [[r - (sum(row) - r) / 3 for r in row] for row in BATCH]
    assert rloo[0] == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])
    assert rloo[3] == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert close(advantages(torch.tensor(BATCH, dtype=torch.float64)) * 4 / 3, rloo)


def test_wrong_shapes_and_types_are_refused_under_test() -> None:
    for wrong in (torch.ones(3), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(TypeCheckError):
            advantages(wrong)


@seeded
@given(groups(st.floats(-100, 100, width=32)))
def test_a_group_sums_to_zero(rewards_P_G: list[list[float]]) -> None:
    for f_norm in ("one", "group_std", "batch_std"):
        result = advantages(
            torch.tensor(rewards_P_G, dtype=torch.float64), f_norm=f_norm, batch_std=0.7
        )
        scale = result.abs().amax(dim=1).clamp(min=1.0)
        assert (result.sum(dim=1).abs() <= 1e-9 * scale * len(rewards_P_G[0])).all()


@seeded
@given(groups(st.floats(-100, 100, width=32)))
def test_advantages_are_the_formulas_written_out(rewards_P_G: list[list[float]]) -> None:
    """GPG and GRPO in plain Python with the standard library's mean and deviation."""
    rewards = torch.tensor(rewards_P_G, dtype=torch.float64)
    gpg = [[r - statistics.fmean(row) for r in row] for row in rewards_P_G]
    grpo = [
        [(r - statistics.fmean(row)) / (statistics.stdev(row) + 1e-4) for r in row]
        for row in rewards_P_G
    ]
    assert close(advantages(rewards), gpg, 1e-9)
    assert close(advantages(rewards, f_norm="group_std"), grpo, 1e-6)


@seeded
@given(groups(halves), st.randoms(use_true_random=False))
def test_permuting_members_permutes_advantages(rewards_P_G: list[list[float]], random) -> None:
    order = list(range(len(rewards_P_G[0])))
    random.shuffle(order)
    rewards = torch.tensor(rewards_P_G, dtype=torch.float64)
    for f_norm in ("one", "group_std"):
        turned, plain = (
            advantages(rewards[:, order], f_norm=f_norm),
            advantages(rewards, f_norm=f_norm),
        )
        assert torch.allclose(turned, plain[:, order], rtol=0, atol=1e-12)


@seeded
@given(groups(halves), halves)
def test_a_constant_bonus_changes_nothing(rewards_P_G: list[list[float]], bonus: float) -> None:
    rewards = torch.tensor(rewards_P_G, dtype=torch.float64)
    for f_norm in ("one", "group_std"):
        shifted, plain = (
            advantages(rewards + bonus, f_norm=f_norm),
            advantages(rewards, f_norm=f_norm),
        )
        assert torch.allclose(shifted, plain, rtol=0, atol=1e-12)
    assert torch.equal(valid_groups(rewards + bonus), valid_groups(rewards))


@seeded
@given(groups(halves), halves, st.integers(1, 64))
def test_scaling_keeps_the_valid_set_and_scales_gpg(
    rewards_P_G: list[list[float]], bonus: float, scale: int
) -> None:
    """a + b * r with b > 0: so 0/1, -1/+1 and 0/1 plus a format bonus agree on which groups teach something."""
    rewards = torch.tensor(rewards_P_G, dtype=torch.float64)
    assert torch.equal(valid_groups(bonus + scale * rewards), valid_groups(rewards))
    assert torch.allclose(
        advantages(bonus + scale * rewards), scale * advantages(rewards), rtol=0, atol=1e-9
    )


@seeded
@given(groups(st.floats(-3, 3)), groups(st.floats(-3, 3)))
def test_a_group_does_not_see_the_others(
    first: list[list[float]], second: list[list[float]]
) -> None:
    """To the bit: a process with more groups must not round differently."""
    size = min(len(first[0]), len(second[0]))
    rows = [row[:size] for row in first + second]
    for f_norm in ("one", "group_std"):
        whole = advantages(torch.tensor(rows, dtype=torch.float64), f_norm=f_norm)
        alone = torch.cat(
            [advantages(torch.tensor([row], dtype=torch.float64), f_norm=f_norm) for row in rows]
        )
        assert torch.equal(whole, alone)
