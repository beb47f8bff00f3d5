"""Weights spread over processes: what one process would compute, whatever each of them has to do, and nobody waits for ever.

All cases of one number of processes run in one start of torchrun (tests/spread.py), which prints its stacks when it hangs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import environment
from spread import CASES, TIME_LIMIT, compute, groups_of, make_sharding, make_trainer
from test_learner import make_groups
from test_policy import relative

from gpg_vl.errors import UserError
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.types import Group

TESTS = Path(__file__).parent
GRADIENTS = [name for name, case in CASES.items() if not case.rate]
WEIGHTS = [name for name, case in CASES.items() if case.rate]
SAVED = ("three steps", "three steps of adapters")
ON_TWO = [*CASES, "held", "broken", "answered", *(f"saved {name}" for name in SAVED)]
ON_THREE = [
    "cut differently",
    "text on one process, in chunks",
    "three steps of adapters",
    *(f"saved {name}" for name in SAVED),
]


def start(processes: int, checkpoint: Path, folder: Path, names: list[str]) -> list[dict]:
    out = folder / str(processes)
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    script = [str(TESTS / "spread.py"), str(checkpoint), str(out), *names]
    result = subprocess.run(
        [sys.executable, *launcher, *script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT + 30,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-500:] + result.stderr
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spread")


@pytest.fixture(scope="module")
def two(tiny_checkpoint: Path, folder: Path) -> list[dict]:
    return start(2, tiny_checkpoint, folder, ON_TWO)


@pytest.fixture(scope="module")
def three(tiny_checkpoint: Path, folder: Path, two: list[dict]) -> list[dict]:
    """After the two, because they go on from what those have saved."""
    return start(3, tiny_checkpoint, folder, ON_THREE)


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, groups: list[Group]) -> dict[str, dict]:
    """The same cases by one process that holds everything."""
    found = {}
    for name, case in CASES.items():
        sharding = make_sharding("none", 1, True)
        found[name] = compute(case, tiny_checkpoint, groups_of(case, groups), sharding)
    return found


# ---- the numbers of one process


@pytest.mark.parametrize("name", GRADIENTS)
def test_two_processes_have_the_gradient_of_one(two: list[dict], alone: dict, name: str) -> None:
    expected = alone[name]["gradient"]
    assert expected.norm() > 1e-3, "the comparison of two zero gradients would prove nothing"
    for rank in two:
        assert relative(rank[name]["gradient"], expected) <= 1e-6
        assert rank[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5, abs=1e-9)
        assert rank[name]["norms"] == pytest.approx(alone[name]["norms"], rel=1e-6)


@pytest.mark.parametrize("name", ["cut differently", "text on one process, in chunks"])
def test_three_processes_have_it_too(three: list[dict], alone: dict, name: str) -> None:
    for rank in three:
        assert relative(rank[name]["gradient"], alone[name]["gradient"]) <= 1e-6


@pytest.mark.parametrize("name", WEIGHTS)
def test_several_steps_come_to_the_same_weights(two: list[dict], alone: dict, name: str) -> None:
    """With AdamW, whose first steps turn a tiny difference of a tiny gradient into one of the size of the rate."""
    for rank in two:
        assert torch.equal(rank[name]["weights"], two[0][name]["weights"])
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-5
        assert rank[name]["norms"] == pytest.approx(alone[name]["norms"], rel=1e-6)
    assert alone["three steps"]["norms"][0] > 0.05, "nothing was clipped"


def test_parts_may_be_empty(three: list[dict], alone: dict) -> None:
    """Adapters of rank 2 on three processes."""
    name = "three steps of adapters"
    for rank in three:
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-5


@pytest.mark.parametrize("name", ["three steps", "three steps of adapters", "frozen tower"])
def test_whole_weights_have_the_names_of_an_ordinary_checkpoint(
    two: list[dict], alone: dict, name: str
) -> None:
    """In the same order, tied head and merged adapters included."""
    for rank in two:
        full, expected = rank[name]["full"], alone[name]["full"]
        assert list(full) == list(expected)
        assert "lm_head.weight" in full
        for key, tensor in full.items():
            assert torch.allclose(tensor, expected[key], atol=1e-4), key


def test_a_process_holds_its_part(two: list[dict]) -> None:
    for rank in two:
        (part, moments), (everything, all_moments) = rank["held"]["fsdp2"], rank["held"]["none"]
        assert part == pytest.approx(everything / 2, rel=0.01)
        assert moments == pytest.approx(all_moments / 2, rel=0.01)


# ---- what must not happen


def test_a_step_that_is_not_finite_on_one_process_is_not_applied(two: list[dict]) -> None:
    for rank in two:
        assert rank["broken"]["raised"]
        assert rank["broken"]["untouched"]
        assert rank["broken"]["norm"] > 0, "the run could not go on"


def test_answers_of_unequal_number_and_length_hang_nobody(two: list[dict]) -> None:
    """And are those of the weights that are trained, before the first step and after it."""
    for rank in two:
        assert rank["answered"]["synced"][0] == 1
        for mean, largest in rank["answered"]["gaps"]:
            assert mean < 1e-6
            assert largest < 1e-5


# ---- what is saved


@pytest.mark.parametrize("name", SAVED)
def test_what_was_saved_goes_on_bit_for_bit(two: list[dict], name: str) -> None:
    for rank in two:
        (weights, norms), (again, norms_again) = (
            rank[f"saved {name}"][way] for way in ("straight", "resumed")
        )
        assert torch.equal(weights, again)
        assert norms == norms_again


@pytest.mark.parametrize("name", SAVED)
def test_what_two_have_saved_three_go_on_from(
    two: list[dict], three: list[dict], name: str
) -> None:
    weights, norms = two[0][f"saved {name}"]["straight"]
    for rank in three:
        again, norms_again = rank[f"saved {name}"]["resumed"]
        assert relative(again, weights) <= 1e-5
        assert norms_again == pytest.approx(norms, rel=1e-6)


def test_nothing_that_is_saved_could_hold_code(two: list[dict], folder: Path) -> None:
    files = [file for file in (folder / "saved").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors"}


# ---- what is refused


def test_one_process_has_nobody_to_share_with() -> None:
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    with pytest.raises(UserError, match=r"one process.*torchrun.*train\.sharding to none"):
        shardings.get("fsdp2")(setup)
