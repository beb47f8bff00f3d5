"""Which checkpoints stay, what is passed on of them, and what they say of themselves."""

import json
import stat
from pathlib import Path

import pytest
import torch
import yaml
from runs import gpg_vl, metrics, write_config, write_scenes
from safetensors.torch import load_file, save_file

from gpg_vl.config import load_config
from gpg_vl.errors import UserError
from gpg_vl.models.licence import read_licence
from gpg_vl.models.save import follow_umask
from gpg_vl.training.evaluation import make_evaluation
from gpg_vl.training.model_card import make_card
from gpg_vl.training.prepare import make_encoder
from gpg_vl.training.state import Best, RunState, better, dump_state, read_state

EVAL = {"task": "cvbench", "every": 1, "max_new_tokens": 2, "prompt": "plain"}


@pytest.fixture(scope="module")
def resumed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was stopped after two: evaluated after each, rounded checkpoints, one kept and the best."""
    folder = tmp_path_factory.mktemp("resumed")
    held_out = write_scenes(folder / "test.parquet", 8, seed=5)
    config = write_config(
        folder,
        tiny_checkpoint,
        eval={**EVAL, "data": str(held_out)},
        output={"keep_checkpoints": 1, "keep_best": "micro", "weights": "bfloat16"},
    )
    first = gpg_vl("train", config, "train.steps=2")
    assert first.returncode == 0, first.stderr
    second = gpg_vl("train", config, "--resume")
    assert second.returncode == 0, second.stderr
    return folder


def test_the_best_checkpoint_stays_beside_the_newest(resumed: Path) -> None:
    """Of equal evaluations the earlier one, which a resumed run remembers."""
    scores = {
        row["step"]: row["micro"] for row in metrics(resumed / "run") if row["kind"] == "eval"
    }
    best = min(step for step, score in scores.items() if score == max(scores.values()))
    folder = resumed / "run" / "checkpoints"
    kept = sorted({f"step-{best:06d}", "step-000004"})
    assert sorted(p.name for p in folder.iterdir() if not p.is_symlink()) == kept
    assert (folder / "best").resolve().name == f"step-{best:06d}"
    assert (folder / "best" / "model" / "config.json").is_file()
    state = json.loads((folder / "step-000004" / "state.json").read_text())
    assert state["best"] == {"metric": "micro", "step": best, "value": scores[best]}


def test_what_is_passed_on_is_rounded_and_what_is_resumed_is_exact(
    resumed: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The weights are those of a run that was never stopped, evaluated or rounded, bit for bit."""
    whole = gpg_vl("train", write_config(tmp_path, tiny_checkpoint))
    assert whole.returncode == 0, whole.stderr
    expected = load_file(tmp_path / "run/checkpoints/step-000004/model/model.safetensors")

    newest = resumed / "run" / "checkpoints" / "step-000004"
    exact = load_file(newest / "weights" / "model.safetensors")
    rounded = load_file(newest / "model" / "model.safetensors")
    assert exact.keys() == rounded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(exact[name], tensor), name
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert json.loads((newest / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (tmp_path / "run/checkpoints/step-000004/weights").exists()


def test_a_checkpoint_says_what_it_is(resumed: Path) -> None:
    """Step, base and licence, the digest of the data, the evaluation with its protocol, and the command to run it again."""
    newest = resumed / "run" / "checkpoints" / "step-000004"
    text = (newest / "model" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {"library_name": "transformers", "tags": ["gpg_vl", "gpg"]}
    data = json.loads((newest / "manifest.json").read_text())["run"]["data"]
    row = next(
        row for row in metrics(resumed / "run") if row["kind"] == "eval" and row["step"] == 4
    )
    low, high = row["ci95"]["micro"]
    for line in (
        "4 steps of gpg by gpg_vl ",
        "| licence of the base model | unknown |",
        f"| SHA-256 of its rows and pictures | {data} |",
        "After step 4: cvbench on ",
        "8 rows; greedy answers of at most 2 tokens, prompt plain, scorer strict.",
        f"| micro | {100 * row['micro']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % |",
        "| transformers | ",
        "  group_size: 3",
    ):
        assert line in text, line
    again = next(
        line for line in text.splitlines() if line.startswith("    ") and " train " in line
    )
    assert "--resume" not in again


def test_files_are_readable_as_the_umask_says(resumed: Path, tmp_path: Path) -> None:
    """safetensors makes files for their owner alone."""
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    wanted = stat.S_IMODE((tmp_path / "b").stat().st_mode)
    follow_umask(tmp_path)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == wanted
    newest = resumed / "run" / "checkpoints" / "step-000004"
    modes = {stat.S_IMODE(f.stat().st_mode) for f in newest.rglob("*") if f.is_file()}
    assert modes == {wanted}


# ---- which is best


def test_only_a_larger_score_is_better() -> None:
    first = better(None, "micro", 10, {"micro": 0.5})
    assert first == Best(metric="micro", step=10, value=0.5)
    assert better(first, "micro", 20, {"micro": 0.5}) == first
    assert better(first, "micro", 20, {"micro": 0.4}) == first
    assert better(first, "micro", 20, {}) == first, "a score over no rows is left out"
    assert better(first, "micro", 20, {"micro": 0.6}) == Best(metric="micro", step=20, value=0.6)
    assert better(None, "micro", 0, {"micro": 0.5}) is None, "there is no checkpoint of step 0"
    assert better(first, "official", 20, {"official": 0.1}) == Best(
        metric="official", step=20, value=0.1
    )
    assert better(first, None, 20, {"micro": 0.9}) is None


def test_a_state_remembers_it(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    state = RunState(step=7, best=Best(metric="micro", step=3, value=0.25))
    file.write_text(dump_state(state, processes=1, sharding="none"))
    assert read_state(file).state == state
    for wrong in (3, {"metric": "micro"}, {"metric": "micro", "step": -1, "value": 0.5}):
        file.write_text(json.dumps({**json.loads(file.read_text()), "best": wrong}))
        with pytest.raises(ValueError, match=r"best is|step is"):
            read_state(file)


def test_a_score_that_the_task_lacks_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    held_out = write_scenes(tmp_path / "test.parquet", 2, seed=5)
    section = {**EVAL, "data": str(held_out)}
    file = write_config(tmp_path, tiny_checkpoint, eval=section, output={"keep_best": "ofical"})
    config = load_config(file)
    with pytest.raises(UserError, match=r"no score called 'ofical'.*Did you mean 'official'"):
        make_evaluation(config, make_encoder(config).processing)
    with pytest.raises(UserError, match=r"output.keep_best is 'micro'.*Set eval.task"):
        load_config(
            write_config(
                tmp_path, tiny_checkpoint, eval={"task": None}, output={"keep_best": "micro"}
            )
        )


# ---- licences


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("# A model\nlicense: mit", "unknown"),
        ("---\nlicense: [mit\n---\n", "unknown"),
        ("---\n- mit\n---\n", "unknown"),
        ("---\nlicense: \n---\n", "unknown"),
    ],
)
def test_a_licence_is_that_of_the_card(tmp_path: Path, card: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_no_card_no_licence(tmp_path: Path) -> None:
    assert read_licence(tmp_path) == "unknown"


def test_the_licence_of_the_base_is_that_of_the_header(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    text = make_card(
        step=3,
        settings=config.model_dump(mode="json"),
        data_digest="ab",
        licence="apache-2.0",
        evaluation=None,
        command=["gpg-vl", "train", "my.yaml"],
        versions={"gpg_vl": "0.1.0"},
    )
    (tmp_path / "README.md").write_text(text)
    assert read_licence(tmp_path) == "apache-2.0"
    assert "None was made in this run." in text
