"""Bias and noise of estimators: the statistics on vectors whose mean and variance are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import run_python

from benchmarks import estimators
from benchmarks.estimators import cosine_of, cross, estimate, noise_of, products, summarise

ONCE = np.ones(4000)


def drawn(mean: list[float], deviation: float, seed: int) -> torch.Tensor:
    noise = torch.randn(len(ONCE), len(mean), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(mean) + deviation * noise


def test_noise_is_the_root_of_the_summed_variance_over_the_mean() -> None:
    """By hand: in three dimensions, each with a deviation of 2, around a vector of length 5: sqrt(12) / 5."""
    given = drawn([3.0, 4.0, 0.0], 2.0, 0)
    assert noise_of(products(given, given), ONCE) == pytest.approx(math.sqrt(12) / 5, rel=0.03)


def test_noise_does_not_lower_a_cosine() -> None:
    """The means are at 60 degrees; single samples are mostly noise."""
    first, second = drawn([1.0, 0.0], 2.0, 1), drawn([0.5, math.sqrt(0.75)], 2.0, 2)
    found = cosine_of(
        products(first, first), products(first, second), products(second, second), ONCE
    )
    assert found == pytest.approx(0.5, abs=0.1)
    scaled = cosine_of(
        products(7 * first, 7 * first),
        products(7 * first, second),
        products(second, second),
        ONCE,
    )
    assert scaled == pytest.approx(found), "a length is no bias"


def test_a_sample_is_not_compared_with_itself() -> None:
    """By hand: of (1, 0) and (0, 1) the mean product of different samples is 0, of three equal ones their square."""
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert cross(products(given, given), np.ones(2)) == 0.0
    assert cross(products(2 * torch.ones(3, 1), 2 * torch.ones(3, 1)), np.ones(3)) == 4.0
    assert math.isnan(cross(np.ones((1, 1)), np.ones(1)))
    assert noise_of(products(given, given), np.ones(2)) == math.inf


def test_an_interval_is_of_the_values_after_the_first() -> None:
    found = estimate([5.0, *np.linspace(0, 100, 1001)])
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 2.5, 97.5))
    assert f"{found:.2f}" == "5.00 [2.50, 97.50]"


def test_the_table_has_a_row_for_each_algorithm() -> None:
    first = drawn([1.0, 1.0], 0.1, 3)[:8]
    found = summarise({"rloo": first, "gpg": 3 * first})
    text = estimators.render(found, 8)
    assert "| rloo | 0." in text
    assert "| 1 by definition |" in text
    assert found["gpg"]["noise"].value == pytest.approx(found["rloo"]["noise"].value)
    assert found["gpg"]["cosine"].value == pytest.approx(1.0)


def test_every_algorithm_of_the_table_is_one() -> None:
    assert estimators.UNBIASED in estimators.make_algorithms()
    assert len(estimators.make_algorithms()) == 10


@pytest.mark.slow
def test_the_program_samples_one_step_and_writes_its_table(tmp_path: Path) -> None:
    """On the quickstart's own model and rows. RLOO and GPG by token have one direction: their weights are in proportion."""
    prepared = run_python(
        "-m", "gpg_vl", "quickstart", "--prepare-only", "--folder", tmp_path / "base", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    words = ["--base", tmp_path / "base", "--quick", "--out", tmp_path / "out"]
    root = Path(__file__).parent.parent
    result = run_python("-m", "benchmarks.estimators", *words, cwd=root)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out" / "estimators.json").read_text())
    assert list(found) == list(estimators.make_algorithms())
    assert found["gpg, aggregation token"]["cosine"]["value"] == pytest.approx(1.0, abs=0.01)
    assert (tmp_path / "out" / "estimators.md").is_file()
