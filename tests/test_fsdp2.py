"""Weights spread over processes: what one process would compute, whatever each of them has to do, and nobody waits for ever.

All cases of one number of processes run in one start of torchrun (tests/spread.py), which prints its stacks when it hangs.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from runs import gpg_vl, kill_after, metrics, run_python, write_config, write_scenes
from safetensors.torch import load_file
from spread import CASES, TIME_LIMIT, compute, groups_of, make_sharding
from test_learner import make_groups, weights
from test_policy import relative

from gpg_vl.config import parse_config
from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.load import load_model
from gpg_vl.training.checkpoint import Checkpoints
from gpg_vl.training.rank_state import deal_carry
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.parts import load_parts
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.types import Group

TESTS = Path(__file__).parent
GRADIENTS = [name for name, case in CASES.items() if not case.rate]
WEIGHTS = [name for name, case in CASES.items() if case.rate]
SAVED = ("three steps", "three steps of adapters")
ON_TWO = [*CASES, "held", "broken", "answered", *(f"saved {name}" for name in SAVED)]
ON_THREE = [
    "cut differently",
    "root alone",
    "text on one process, in chunks",
    "three steps of adapters",
    *(f"saved {name}" for name in SAVED),
]


def start(processes: int, checkpoint: Path, folder: Path, names: list[str]) -> list[dict]:
    out = folder / str(processes)
    out.mkdir()
    script = [TESTS / "spread.py", checkpoint, out, *names]
    result = run_python(*script, processes=processes, timeout=TIME_LIMIT + 30)
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


@pytest.mark.parametrize(
    "name", ["cut differently", "root alone", "text on one process, in chunks"]
)
def test_three_processes_have_it_too(three: list[dict], alone: dict, name: str) -> None:
    for rank in three:
        assert relative(rank[name]["gradient"], alone[name]["gradient"]) <= 1e-6


@pytest.mark.parametrize("name", WEIGHTS)
def test_several_steps_come_to_the_same_weights(two: list[dict], alone: dict, name: str) -> None:
    """With AdamW, whose first steps turn a tiny difference of a tiny gradient into one of the size of the rate."""
    for rank in two:
        assert torch.equal(rank[name]["weights"], two[0][name]["weights"])
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-6
        assert rank[name]["norms"] == pytest.approx(alone[name]["norms"], rel=1e-6)
    assert alone["three steps"]["norms"][0] > 0.05, "nothing was clipped"


def test_parts_may_be_empty(three: list[dict], alone: dict) -> None:
    """Adapters of rank 2 on three processes."""
    name = "three steps of adapters"
    for rank in three:
        assert relative(rank[name]["weights"], alone[name]["weights"]) <= 1e-6


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
        (straight, norms), (again, norms_again) = (
            rank[f"saved {name}"][way] for way in ("straight", "resumed")
        )
        assert torch.equal(straight, again)
        assert norms == norms_again


@pytest.mark.parametrize("name", SAVED)
def test_what_two_have_saved_three_go_on_from(
    two: list[dict], three: list[dict], name: str
) -> None:
    straight, norms = two[0][f"saved {name}"]["straight"]
    for rank in three:
        again, norms_again = rank[f"saved {name}"]["resumed"]
        assert relative(again, straight) <= 1e-6
        assert norms_again == pytest.approx(norms, rel=1e-6)


def test_nothing_that_is_saved_could_hold_code(two: list[dict], folder: Path) -> None:
    files = [file for file in (folder / "saved").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors"}


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_that_is_missing_is_missed(
    two: list[dict], folder: Path, tiny_checkpoint: Path, tmp_path: Path, place: int
) -> None:
    """Torch itself says nothing if it is the first."""
    shutil.copytree(folder / "saved" / "three-steps" / "parts", tmp_path / "parts")
    sorted((tmp_path / "parts").iterdir())[place].unlink()
    policy = Model.load(tiny_checkpoint, device="cpu").policy
    parameters = dict(policy.named_parameters())
    before = weights(policy)
    with pytest.raises(ValueError, match="files are missing"):
        load_parts(parameters, torch.optim.AdamW(parameters.values()), tmp_path / "parts")
    assert torch.equal(weights(policy), before)


# ---- what is refused


def test_one_process_has_nobody_to_share_with() -> None:
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    with pytest.raises(UserError, match=r"one process.*torchrun.*train\.sharding to none"):
        shardings.get("fsdp2")(setup)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"train": {"reuse_prefill": True}}, r"reuse_prefill.*fsdp2.*keeps no graph.*to false"),
        ({"rollout": {"images": "features"}}, r"images is features.*fsdp2.*to pixels"),
    ],
)
def test_what_needs_the_whole_policy_is_refused(section: dict[str, Any], told: str) -> None:
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": "x"},
        "data": {"train": "x"},
        "rewards": {"weights": {"choice": 1.0}},
        "output": {"folder": "x"},
        "train": {"sharding": "fsdp2"},
    }
    for name, keys in section.items():
        tree[name] = {**tree.get(name, {}), **keys}
    with pytest.raises(UserError, match=told):
        parse_config(tree, "x.yaml")


def test_a_checkpoint_of_another_sharding_is_refused(tmp_path: Path) -> None:
    """One that says nothing is of a version that had only one."""
    checkpoints = Checkpoints(
        tmp_path,
        keep=1,
        model=SimpleNamespace(),
        sharding=SimpleNamespace(name="fsdp2", any_processes=True),
        source=SimpleNamespace(examples=()),
        accelerator=Accelerator(cpu=True),
    )
    counters = {"data": checkpoints._digest, "processes": 1}
    for written_by in ({}, {"sharding": "none"}, {"sharding": "zero2"}):
        (tmp_path / "state.json").write_text(json.dumps(counters | written_by))
        name = written_by.get("sharding", "none")
        told = rf"train\.sharding {name}; this run has fsdp2.*train\.sharding={name}.*an ordinary model"
        with pytest.raises(UserError, match=told):
            checkpoints.restore(tmp_path)


def test_surplus_groups_are_dealt_anew_in_the_order_of_the_data() -> None:
    rows = [[{"draw": 5}, {"draw": 2}], [{"draw": 3}], [], [{"draw": 9}]]
    assert deal_carry(rows, processes=3) == [
        [{"draw": 2}, {"draw": 9}],
        [{"draw": 3}],
        [{"draw": 5}],
    ]
    assert deal_carry([[], []], processes=2) == [[], []]


# ---- whole runs


def drop_paths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reward's path is in its name."""
    return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in rows]


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def settings(folder: Path, checkpoint: Path, sharding: str) -> Path:
    """Surplus groups are likely, and there is an evaluation in the middle."""
    folder.mkdir()
    write_scenes(folder / "test.parquet", 24, seed=12)
    evaluation = {"task": "cvbench", "data": str(folder / "test.parquet"), "every": 2, "limit": 8}
    return write_config(
        folder,
        checkpoint,
        train={"prompts_per_step": 6, "steps": 3, "sharding": sharding},
        algorithm={"beta_th": 1.0},
        rollout={"group_size": 2, "max_new_tokens": 2},
        eval=evaluation,
    )


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on two processes that was never stopped."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    result = gpg_vl("train", settings(folder, tiny_checkpoint, "fsdp2"), processes=2)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_is_that_of_processes_that_hold_everything(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The first step to rounding, from equal answers; what is sampled later may fall on the other side of a border."""
    config = settings(tmp_path / "none", tiny_checkpoint, "none")
    assert gpg_vl("train", config, "train.steps=1", processes=2).returncode == 0
    ours, theirs = metrics(run / "run")[0], metrics(tmp_path / "none" / "run")[0]
    for key in ("loss", "grad_norm", "reward", "entropy", "alpha", "length_all", "groups_seen"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert ours["loss"] != 0
    rows = metrics(run / "run")
    assert [(row["step"], row["kind"]) for row in rows] == [
        (1, "train"),
        (2, "train"),
        (2, "eval"),
        (3, "train"),
        (3, "eval"),
    ]
    assert all(row["logp_gap_max"] < 1e-4 for row in rows if row["kind"] == "train")


def test_its_checkpoint_is_an_ordinary_model(run: Path, tiny_checkpoint: Path) -> None:
    checkpoint = last_checkpoint(run / "run")
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(checkpoint / "model")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".visual." in name for name in changed)
    assert any(".language_model." in name for name in changed)
    assert len(list((checkpoint / "parts").iterdir())) == 2


def test_killed_and_resumed_is_never_stopped(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "killed", tiny_checkpoint, "fsdp2")
    kill_after(config, 2, processes=2)
    result = gpg_vl("train", config, "--resume", processes=2)
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    ours, theirs = tmp_path / "killed" / "run", run / "run"
    assert drop_paths(metrics(ours)) == drop_paths(metrics(theirs))
    assert any(row.get("carried_groups") for row in metrics(ours)), "no surplus group was carried"
    for name in ("model", "parts"):
        a, b = (tensors(last_checkpoint(one) / name) for one in (ours, theirs))
        assert a.keys() == b.keys()
        assert a
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_three_processes_go_on_where_two_have_stopped(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["output"]["folder"] = str(tmp_path / "run" / "run")
    config.write_text(yaml.safe_dump(tree))
    folder = tmp_path / "run" / "run"
    carried = metrics(folder)[-2]["carried_groups"]

    result = gpg_vl("train", config, "train.steps=4", "--resume", processes=3)
    assert result.returncode == 0, result.stderr
    rows = [row for row in metrics(folder) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["stale_groups"] == carried, "surplus groups of the two were lost"
    assert rows[-1]["logp_gap_max"] is None or rows[-1]["logp_gap_max"] < 1e-4
    assert len(list((last_checkpoint(folder) / "parts").iterdir())) == 3


def test_everything_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """bfloat16, adapters, checkpointing, old and reference log-probs: the gap is that of rounding."""
    gaps = {}
    for sharding in ("fsdp2", "none"):
        folder = tmp_path / sharding
        folder.mkdir()
        config = write_config(
            folder,
            tiny_checkpoint,
            model={"lora_rank": 2, "dtype": "bfloat16", "gradient_checkpointing": True},
            train={"steps": 2, "sharding": sharding, "prompts_per_step": 4},
            algorithm={"name": "grpo", "kl_beta": 0.1, "updates": 2},
        )
        result = gpg_vl("train", config, processes=2)
        assert result.returncode == 0, result.stderr
        gaps[sharding] = metrics(folder / "run")[0]["logp_gap_mean"]
        load_model(str(last_checkpoint(folder / "run") / "model"))
    assert gaps["fsdp2"] == pytest.approx(gaps["none"], rel=0.2)
    assert gaps["fsdp2"] > 0
