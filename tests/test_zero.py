"""DeepSpeed's ZeRO: what one process would compute, a step that is not applied untouched, and a checkpoint without its files.

All cases of one stage and number of processes run in one start of torchrun (tests/spread.py).
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gpg_vl, kill_after, metrics
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from spread import CASES, ROUNDED, compute, groups_of, make_sharding
from test_fsdp2 import drop_paths, last_checkpoint, settings, start, tensors
from test_learner import make_groups
from test_policy import relative

from gpg_vl.errors import UserError
from gpg_vl.models.load import load_model
from gpg_vl.training.sharding import refuse_sharding, shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.training.sharding.whole_checkpoint import load_whole_parts
from gpg_vl.training.tensor_file import DamagedFileError

STAGES = ("zero2", "zero3")
HELD = {name: case for name, case in CASES.items() if not case.defer}
GRADIENTS = [name for name, case in HELD.items() if not case.rate]
WEIGHTS = [name for name, case in HELD.items() if case.rate]
SAVED = "three steps"
FAST = ("cut differently", "text on one process, in chunks", "frozen tower", "three steps")
"""The cases that are always tested; the others are slow, as are three processes and what waits on the CPU."""
SLOW = pytest.mark.slow
ON_TWO = [*FAST, "broken", f"saved {SAVED}"]
REST = [
    *(name for name in {**HELD, **ROUNDED} if name not in FAST),
    *("held", "answered", "saved steps of bfloat16 weights"),
]
ON_THREE = ["cut differently", "text on one process, in chunks", "three steps of adapters"]
OFFLOADED = ("zero2+optimizer", "zero3+optimizer", "zero3+all")
IN_MEMORY_OF_THE_CPU = ["cut differently", "three steps", "broken", f"saved {SAVED}"]


def marked(names: Iterable[str], always: Sequence[str] = FAST) -> list[Any]:
    """Parameters of a test, those that are not always tested marked."""
    return [name if name in always else pytest.param(name, marks=SLOW) for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


class Alone(dict[str, dict]):
    """What one process that holds everything makes of a case, computed when it is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._groups = make_groups(checkpoint)

    def __missing__(self, name: str) -> dict:
        case = {**HELD, **ROUNDED}[name]
        sharding = make_sharding("none", 1, True, case)
        groups = groups_of(case, self._groups)
        return self.setdefault(name, compute(case, self._checkpoint, groups, sharding))


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> Alone:
    return Alone(tiny_checkpoint)


@pytest.fixture(scope="module")
def two(tiny_checkpoint: Path, folder: Path) -> dict[str, list[dict]]:
    return {
        stage: start(2, tiny_checkpoint, folder / stage, ON_TWO, kind=stage) for stage in STAGES
    }


@pytest.fixture(scope="module")
def rest(tiny_checkpoint: Path, folder: Path) -> dict[str, list[dict]]:
    return {
        stage: start(2, tiny_checkpoint, folder / "rest" / stage, REST, kind=stage)
        for stage in STAGES
    }


@pytest.fixture
def found(request: pytest.FixtureRequest, stage: str, name: str) -> list[dict]:
    """What each process has found of a case."""
    of_stage: list[dict] = request.getfixturevalue("two" if name in ON_TWO else "rest")[stage]
    return of_stage


@pytest.fixture(scope="module")
def three(tiny_checkpoint: Path, folder: Path, two: dict) -> dict[str, list[dict]]:
    """After the two, because they go on from what those have saved."""
    names = [*ON_THREE, f"saved {SAVED}"]
    return {stage: start(3, tiny_checkpoint, folder / stage, names, kind=stage) for stage in STAGES}


@pytest.fixture(scope="module")
def offloaded(tiny_checkpoint: Path, folder: Path) -> dict[str, list[dict]]:
    return {
        kind: start(2, tiny_checkpoint, folder / kind, IN_MEMORY_OF_THE_CPU, kind=kind)
        for kind in OFFLOADED
    }


# ---- the numbers of one process


@pytest.mark.proves("{stage}", family="qwen2_vl")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", marked(GRADIENTS))
def test_two_processes_have_the_gradient_of_one(
    found: list[dict], alone: dict, stage: str, name: str
) -> None:
    expected = alone[name]["gradient"]
    assert expected.norm() > 1e-3, "the comparison of two zero gradients would prove nothing"
    for rank in found:
        assert relative(rank[name]["gradient"], expected) <= 1e-6
        assert rank[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5, abs=1e-9)
        # in float64, as here; what one process clips by is summed in float32, which is off by 1e-6
        assert rank[name]["norms"] == pytest.approx([float(expected.double().norm())], rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", marked(WEIGHTS))
def test_several_steps_come_to_the_same_weights(
    found: list[dict], alone: dict, stage: str, name: str
) -> None:
    for rank in found:
        assert torch.equal(rank[name]["weights"], found[0][name]["weights"])
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-6
        assert rank[name]["norms"] == pytest.approx(alone[name]["norms"], rel=2e-6)
    assert alone["three steps"]["norms"][0] > 0.05, "nothing was clipped"


@SLOW
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [name for name, case in ROUNDED.items() if not case.rate])
def test_under_bfloat16_they_are_about_as_near_to_float32_as_one_process(
    tiny_checkpoint: Path, found: list[dict], alone: dict, stage: str, name: str
) -> None:
    """DeepSpeed computes with norms and adapters in bfloat16 too, and what it adds up is float32."""
    exact = replace(ROUNDED[name], dtype="float32", weights=None)
    groups = groups_of(exact, make_groups(tiny_checkpoint))
    expected = compute(exact, tiny_checkpoint, groups, make_sharding("none", 1, True))["gradient"]
    of_one = relative(alone[name]["gradient"], expected)
    for rank in found:
        assert 0.5 * of_one < relative(rank[name]["gradient"], expected) < 2 * of_one


@SLOW
@pytest.mark.parametrize("stage", STAGES)
def test_three_processes_have_them_too(three: dict, alone: dict, stage: str) -> None:
    for rank in three[stage]:
        for name in ON_THREE[:2]:
            assert relative(rank[name]["gradient"], alone[name]["gradient"]) <= 1e-6
        name = ON_THREE[2]
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-6


@SLOW
@pytest.mark.parametrize("kind", OFFLOADED)
def test_moments_and_weights_may_wait_in_the_memory_of_the_cpu(
    offloaded: dict, alone: dict, kind: str
) -> None:
    for rank in offloaded[kind]:
        assert relative(rank["three steps"]["weights"], alone["three steps"]["weights"]) <= 1e-6
        for name in ("cut differently", "three steps"):
            assert rank[name]["norms"] == pytest.approx(alone[name]["norms"], rel=2e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", marked(["three steps", "three steps of adapters", "frozen tower"]))
def test_whole_weights_have_the_names_of_an_ordinary_checkpoint(
    found: list[dict], alone: dict, stage: str, name: str
) -> None:
    """In the same order, tied head and merged adapters included."""
    for rank in found:
        full, expected = rank[name]["full"], alone[name]["full"]
        assert list(full) == list(expected)
        for key, tensor in full.items():
            assert torch.allclose(tensor, expected[key], atol=1e-4), key


@SLOW
def test_a_process_holds_its_part(rest: dict) -> None:
    """Of stage 3: norms and biases are held by all."""
    for rank in rest["zero3"]:
        part, everything = rank["held"]["zero3"][0], rank["held"]["none"][0]
        assert part < 0.55 * everything
    for stage in STAGES:
        for rank in rest[stage]:
            moments, all_moments = rank["held"][stage][1], rank["held"]["none"][1]
            assert moments == pytest.approx(all_moments / 2, rel=0.02)


# ---- what must not happen


@pytest.mark.parametrize("kind", marked([*STAGES, *OFFLOADED], always=STAGES))
def test_a_step_that_is_not_finite_on_one_process_is_not_applied(
    request: pytest.FixtureRequest, kind: str
) -> None:
    for rank in request.getfixturevalue("two" if kind in STAGES else "offloaded")[kind]:
        assert rank["broken"]["raised"]
        assert rank["broken"]["untouched"]
        assert rank["broken"]["norm"] > 0, "the run could not go on"


@SLOW
@pytest.mark.parametrize("stage", STAGES)
def test_answers_of_unequal_number_and_length_hang_nobody(rest: dict, stage: str) -> None:
    for rank in rest[stage]:
        for mean, largest in rank["answered"]["gaps"]:
            assert mean < 1e-6
            assert largest < 1e-5


# ---- what is saved


@pytest.mark.parametrize("kind", marked([*STAGES, *OFFLOADED], always=STAGES))
def test_what_was_saved_goes_on_bit_for_bit(request: pytest.FixtureRequest, kind: str) -> None:
    saved = request.getfixturevalue("two" if kind in STAGES else "offloaded")[kind]
    for rank in saved:
        refuse_difference(rank[f"saved {SAVED}"])


@SLOW
@pytest.mark.parametrize("stage", STAGES)
def test_weights_in_bfloat16_go_on_from_their_float32_masters(rest: dict, stage: str) -> None:
    for rank in rest[stage]:
        refuse_difference(rank["saved steps of bfloat16 weights"])


def refuse_difference(ways: dict[str, Any]) -> None:
    """Between steps that were never interrupted and those from what was saved."""
    (straight, norms), (again, norms_again) = ways["straight"], ways["resumed"]
    assert torch.equal(straight, again)
    assert norms == norms_again


@SLOW
@pytest.mark.parametrize("stage", STAGES)
def test_what_two_have_saved_three_go_on_from(two: dict, three: dict, stage: str) -> None:
    straight, norms = two[stage][0][f"saved {SAVED}"]["straight"]
    for rank in three[stage]:
        again, norms_again = rank[f"saved {SAVED}"]["resumed"]
        assert relative(again, straight) <= 1e-6
        assert norms_again == pytest.approx(norms, rel=2e-6)


def test_weights_and_moments_are_saved_whole_in_one_plain_file(two: dict, folder: Path) -> None:
    found = {}
    for stage in STAGES:
        (file,) = (folder / stage / "saved" / "three-steps").rglob("*.*")
        found[stage] = load_file(file)
    keys = {stage: set(tensors) for stage, tensors in found.items()}
    assert keys["zero2"] == keys["zero3"]
    kinds = {key.rpartition("/")[0] for key in keys["zero2"]}
    assert kinds == {"weight", "moment/exp_avg", "moment/exp_avg_sq", "number/step"}
    for key, tensor in found["zero2"].items():
        assert torch.allclose(tensor, found["zero3"][key], atol=1e-4), key


# ---- whole runs


@pytest.fixture(scope="module", params=STAGES)
def run(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of three steps on two processes that was never stopped."""
    folder = tmp_path_factory.mktemp("run") / request.param
    result = gpg_vl("train", settings(folder, tiny_checkpoint, request.param), processes=2)
    assert result.returncode == 0, result.stderr
    assert "DeepSpeed" not in result.stdout, "it talks between our lines"
    return folder


def test_killed_and_resumed_is_never_stopped(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "killed", tiny_checkpoint, run.name)
    kill_after(config, 2, processes=2)
    result = gpg_vl("train", config, "--resume", processes=2)
    assert result.returncode == 0, result.stderr
    ours, theirs = tmp_path / "killed" / "run", run / "run"
    assert drop_paths(metrics(ours)) == drop_paths(metrics(theirs))
    for name in ("model", "parts"):
        a, b = (tensors(last_checkpoint(one) / name) for one in (ours, theirs))
        assert a.keys() == b.keys()
        assert a
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_its_checkpoint_is_an_ordinary_model_and_nothing_of_deepspeed(
    run: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = last_checkpoint(run / "run")
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(checkpoint / "model")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".visual." in name for name in changed)
    assert any(".language_model." in name for name in changed)
    files = {str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file()}
    own = {file for file in files if not file.startswith("model/")}
    assert own == {
        "manifest.json",
        "data.digests",
        "rank-0.pt",
        "rank-1.pt",
        "state.json",
        "parts/whole.safetensors",
    }


# ---- what is refused


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_has_nobody_to_share_with(stage: str) -> None:
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    with pytest.raises(
        UserError, match=rf"{stage}.*one process.*torchrun.*train\.sharding to none"
    ):
        shardings.get(stage)(setup)


def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_all_but_deepspeed(name: str, *rest: Any) -> Any:
        return None if name == "deepspeed" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_deepspeed)
    told = r"zero3.*not installed.*pip install 'gpg_vl\[deepspeed\]'.*fsdp2"
    with pytest.raises(UserError, match=told):
        refuse_sharding("zero3", "none")
    refuse_sharding("fsdp2", "none")


@pytest.mark.parametrize("name", ["none", "zero2"])
def test_weights_that_all_hold_cannot_wait_elsewhere(name: str) -> None:
    told = rf"offload is all.*train\.sharding {name}.*to optimizer.*fsdp2 or zero3"
    with pytest.raises(UserError, match=told):
        refuse_sharding(name, "all")
    refuse_sharding(name, "optimizer")


def test_a_damaged_file_is_told(two: dict, folder: Path, tmp_path: Path) -> None:
    (file,) = (folder / "zero2" / "saved" / "three-steps").rglob("*.safetensors")
    damaged = tmp_path / "parts" / file.name
    damaged.parent.mkdir()
    damaged.write_bytes(file.read_bytes()[:-100])
    tensors = load_file(file)
    shapes = {
        key.removeprefix("weight/"): tensor.shape
        for key, tensor in tensors.items()
        if key.startswith("weight/")
    }
    with pytest.raises(SafetensorError):
        list(load_whole_parts(damaged.parent, shapes))
    with pytest.raises(UserError, match=r"trained tensors; this run trains 1.*model section"):
        list(load_whole_parts(file.parent, {"lm_head.weight": torch.Size([2, 2])}))

    # what is whole, but of other shapes, dtypes or names
    assert len(list(load_whole_parts(file.parent, shapes))) == len(tensors)
    name = next(name for name, shape in shapes.items() if len(shape) == 2 and shape[0] != shape[1])
    key = f"moment/exp_avg_sq/{name}"
    for changes, message in (
        ({key: tensors[key].T.contiguous()}, "exp_avg_sq of .* of shape"),
        ({key: tensors[key].half()}, "is F16, not F32"),
        ({f"moment/max_exp_avg_sq/{name}": tensors[key].clone()}, "state has .*max_exp_avg_sq"),
        ({f"weight/{name}": tensors[key].T.contiguous()}, "the saved .* is torch.float32"),
        ({"moment/exp_avg/nothing": tensors[key].clone()}, "of nothing that this run trains"),
    ):
        save_file(tensors | changes, damaged)
        with pytest.raises(DamagedFileError, match=message):
            list(load_whole_parts(damaged.parent, shapes))
