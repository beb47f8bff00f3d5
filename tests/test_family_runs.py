"""Whole runs of the other families with vision: on one process, and on two that share the weights in every way there is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import gpg_vl, metrics
from test_fsdp2 import settings

FAMILIES = ("newer_checkpoint", "deep_checkpoint", "tiled_checkpoint", "marked_checkpoint")
"""Qwen2.5-VL, Qwen3-VL, InternVL, SmolVLM. Qwen2-VL has more and faster tests: test_fsdp2.py, test_zero.py."""
SLOW = pytest.mark.slow
Run = Callable[[str, str, int], list[dict]]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that trains three steps and returns what metrics.jsonl says of them."""
    done: dict[tuple[str, str, int], list[dict]] = {}

    def train(family: str, sharding: str, processes: int) -> list[dict]:
        key = (family, sharding, processes)
        if key not in done:
            checkpoint: Path = request.getfixturevalue(family)
            folder = tmp_path_factory.mktemp("family") / "whole"
            words = ["train", settings(folder, checkpoint, sharding)]
            result = gpg_vl(*words) if processes == 1 else gpg_vl(*words, processes=processes)
            assert result.returncode == 0, result.stderr
            done[key] = [row for row in metrics(folder / "run") if row["kind"] == "train"]
        return done[key]

    return train


@SLOW
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_samples_what_it_trains(run: Run, family: str) -> None:
    """The engine's log-probs are the trainer's, also after steps that moved the vision tower."""
    steps = run(family, "none", 1)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["logp_gap_max"] < 1e-5 for row in steps)
    assert all(row["grad_norm"] > 1e-3 for row in steps)


@pytest.mark.proves("{sharding}")
@SLOW
@pytest.mark.parametrize("sharding", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_processes_that_share_the_weights_train_as_those_that_hold_them(
    run: Run, family: str, sharding: str
) -> None:
    """The first step to rounding; what is sampled later may fall on the other side of a border."""
    whole, shared = run(family, "none", 2), run(family, sharding, 2)
    for key in ("loss", "grad_norm", "reward", "entropy", "alpha", "length_all", "groups_seen"):
        assert shared[0][key] == pytest.approx(whole[0][key], rel=1e-5, abs=1e-8), key
    assert all(row["logp_gap_max"] < 1e-5 for row in shared)
