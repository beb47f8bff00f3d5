"""The four means: weights and denominators by hand, and that shapes are kept."""

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from gpg_vl.algorithms import aggregation as module
from gpg_vl.algorithms.age import StepCounts
from gpg_vl.algorithms.option_types import Aggregation

# every call below is checked against the shapes that the annotations promise
token_weights = jaxtyped(typechecker=beartype)(module.token_weights)
per_token = jaxtyped(typechecker=beartype)(module.per_token)

COUNTS = StepCounts(groups=2, valid_groups=1, completions=4, tokens=10, valid_tokens=6)


@pytest.mark.parametrize(
    "aggregation,expected", [("token", 10.0), ("sequence", 4.0), ("constant", 32.0), ("group", 2.0)]
)
def test_a_sum_is_divided_by_tokens_completions_their_limit_or_groups(
    aggregation: Aggregation, expected: float
) -> None:
    """K, N, N * L_max and P of the whole step, those without signal included."""
    assert module.denominator(COUNTS, aggregation, max_new_tokens=8) == expected


@pytest.mark.parametrize(
    "aggregation,expected",
    [
        ("token", [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
        ("constant", [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
        ("sequence", [[1 / 2, 1 / 4], [1 / 3, 1.0], [1.0, 1.0]]),
        ("group", [[1 / 6, 1 / 6], [1 / 3, 1 / 3], [1.0, 1.0]]),
    ],
)
def test_the_weight_of_a_token(aggregation: Aggregation, expected: list[list[float]]) -> None:
    """A completion or group without tokens has weight 1, which multiplies nothing."""
    weights = token_weights(torch.tensor([[2, 4], [3, 0], [0, 0]]), aggregation)
    assert weights.tolist() == expected
    assert weights.dtype == torch.float64


def test_a_number_of_a_completion_is_repeated_over_its_tokens() -> None:
    values = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    repeated = per_token(values, torch.tensor([[2, 0], [1, 3]]))
    assert repeated.dtype == torch.float32
    assert torch.equal(repeated, torch.tensor([0.1, 0.1, 0.3, 0.4, 0.4, 0.4]))


def test_wrong_shapes_are_refused_under_test() -> None:
    with pytest.raises(TypeCheckError):
        token_weights(torch.ones(3, dtype=torch.long), "token")
    with pytest.raises(TypeCheckError):
        token_weights(torch.ones(3, 2), "token")
    with pytest.raises(TypeCheckError):
        per_token(torch.ones(3, 2), torch.ones(2, 3, dtype=torch.long))
