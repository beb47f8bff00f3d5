"""Every algorithm trains through the command line: killed and resumed, one of a user's own, and runs of before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import gpg_vl, kill_after, metrics, write_config
from test_train import equal, last_checkpoint, weights

from gpg_vl.algorithms import BUILTIN
from gpg_vl.config.algorithm_sections import BUILTIN_SECTIONS
from gpg_vl.data.read import load_examples
from gpg_vl.training.resume import digest_data

GRPO = {"name": "grpo", "kl_beta": 0.1, "updates": 2, "beta_th": 1.0}
MINE = '''
"""Only answers above a bar are made likelier."""
from typing import NamedTuple

from torch import Tensor

from gpg_vl.algorithms.aggregation import per_token
from gpg_vl.algorithms.algorithm import Algorithm, Credit, StepBatch


class Inputs(NamedTuple):
    weight_K: Tensor


def best_only(*, bar: float = 0.5) -> Algorithm:
    """Likelihood of answers whose reward is above `bar`."""

    def credit(batch: StepBatch) -> Credit:
        weight_P_G = (batch.rewards_P_G > bar).double() / batch.counts.completions
        inputs = Inputs(per_token(weight_P_G, batch.lengths_P_G))
        return Credit(inputs, weight_P_G > 0, {"above_bar": float(weight_P_G.gt(0).double().mean())})

    def token_loss(logp_K: Tensor, inputs: Inputs) -> Tensor:
        return -(inputs.weight_K * logp_K)

    return Algorithm(credit=credit, token_loss=token_loss)
'''


def without_paths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reward's path is in the name of its column."""
    return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in rows]


def test_grpo_killed_and_resumed_is_never_stopped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two updates a step, a pull to the first weights: the reference of a resumed run is not what it resumes from."""
    runs = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder, tiny_checkpoint, algorithm=GRPO, train={"learning_rate": 1e-2}
        )
        if name == "killed":
            kill_after(config, 2)
        result = gpg_vl("train", config, *(["--resume"] if name == "killed" else []))
        assert result.returncode == 0, result.stderr
        runs[name] = folder / "run"

    rows = {name: without_paths(metrics(run)) for name, run in runs.items()}
    assert rows["killed"] == rows["whole"]
    assert equal(*(weights(last_checkpoint(run)) for run in runs.values()))
    assert rows["whole"][0]["kl"] < rows["whole"][-1]["kl"], (
        "the policy moves away from its reference"
    )
    assert rows["whole"][0]["kl"] > 0, "the second update of a step is already away from it"
    # the gap of a step is that of its first update; a surplus group was sampled by earlier weights, and stands apart
    fresh = [row for row in rows["whole"] if not row["stale_groups"]]
    assert fresh
    assert all(
        row["logp_gap_max"] < 1e-4 for row in rows["whole"] if row["logp_gap_max"] is not None
    )
    assert all(row["logp_gap_stale_max"] is None for row in fresh)
    stale = [row for row in rows["whole"] if row["stale_groups"]]
    assert stale, "without surplus groups their old log-probs would not be resumed"
    assert all(row["logp_gap_stale_max"] > 1e-4 for row in stale)


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in ("gpg", "grpo", "sft")])
def test_every_algorithm_trains(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Several updates and a divergence where it has them, and weights for what other weights have sampled."""
    keys = BUILTIN_SECTIONS[name].model_fields
    more = {key: value for key, value in (("updates", 2), ("kl_beta", 0.1)) if key in keys}
    section = {"name": name, "correction": "sequence_mask", **more}
    config = write_config(
        tmp_path, tiny_checkpoint, algorithm=section, train={"steps": 2, "learning_rate": 1e-2}
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr

    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert any(row["grad_norm"] > 0 for row in rows if row["grad_norm"] is not None)
    fresh = rows[0]
    assert fresh["correction_mean"] == pytest.approx(1.0, abs=0.2), (
        "the native engine is the policy"
    )
    assert fresh["correction_kl"] >= 0
    assert ("kl" in fresh) == ("kl_beta" in keys)


REMAX = {"name": "remax"}
RARE = """
def rare(completion, example):
    if completion.text.startswith("<think>"):
        return 1.0
    return float(sum(map(ord, completion.text)) % 4 == 0)
"""


def test_remax_killed_and_resumed_is_never_stopped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Surplus groups keep what their greedy answer was worth: the weights that gave it are gone."""
    runs = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rare.py").write_text(RARE)
        config = write_config(
            folder,
            tiny_checkpoint,
            algorithm={**REMAX, "beta_th": 1.0},
            train={"learning_rate": 1e-2, "prompts_per_step": 4},
            rollout={"group_size": 2, "max_new_tokens": 2},
            rewards={"weights": {f"{folder / 'rare.py'}:rare": 1.0}},
        )
        if name == "killed":
            kill_after(config, 2)
        result = gpg_vl("train", config, *(["--resume"] if name == "killed" else []))
        assert result.returncode == 0, result.stderr
        runs[name] = folder / "run"

    rows = {name: without_paths(metrics(run)) for name, run in runs.items()}
    assert rows["killed"] == rows["whole"]
    assert equal(*(weights(last_checkpoint(run)) for run in runs.values()))
    assert any(row["stale_groups"] for row in rows["whole"])


def test_remax_on_two_processes_is_that_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Resumed there too; and what a run says of a step counts the greedy answers where they were computed, nowhere else."""
    runs = {}
    for name, processes in (("one", 1), ("two", 2), ("killed", 2)):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            tiny_checkpoint,
            algorithm=REMAX,
            train={"steps": 3, "learning_rate": 1e-2},
            output={"folder": str(folder / "run"), "checkpoint_every": 1, "samples_every": 1},
        )
        if name == "killed":
            kill_after(config, 1, processes=2)
        words = ["--resume"] if name == "killed" else []
        result = gpg_vl("train", config, *words, processes=processes)
        assert result.returncode == 0, result.stderr
        runs[name] = folder / "run"

    rows = {name: without_paths(metrics(run)) for name, run in runs.items()}
    assert rows["killed"] == rows["two"]
    ended = {name: weights(last_checkpoint(run)) for name, run in runs.items()}
    assert equal(ended["killed"], ended["two"])
    for name, tensor in ended["one"].items():
        assert torch.allclose(ended["two"][name], tensor, atol=1e-5), name
    for one, two in zip(rows["one"], rows["two"], strict=True):
        for name in ("reward", "greedy_reward", "greedy_accuracy", "length_all", "completions"):
            assert two[name] == pytest.approx(one[name]), name
        assert two["rollout_decoded_tokens"] == one["rollout_decoded_tokens"]

    for row in rows["one"]:
        folder = runs["one"] / "samples" / f"step-{row['step']:06d}"
        groups = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        sampled = [answer for group in groups for answer in group["completions"]]
        greedy = [group["greedy"] for group in groups]
        assert (len(sampled), len(greedy)) == (6, 2)
        tokens = sum(answer["tokens"] for answer in sampled)
        assert row["reward"] == pytest.approx(sum(a["reward"] for a in sampled) / 6)
        assert row["length_all"] == tokens / 6
        assert row["greedy_reward"] == pytest.approx(sum(a["reward"] for a in greedy) / 2)
        assert row["rollout_decoded_tokens"] == tokens + sum(a["tokens"] for a in greedy)
        assert row["completions"] == 6 * row["step"]
    assert rows["one"][0]["grad_norm"] > 0


def test_supervised_training_lowers_its_loss_and_samples_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        algorithm={"name": "sft", "response": "<answer>{answer}</answer>"},
        train={"steps": 8, "learning_rate": 3e-3, "prompts_per_step": 4},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr

    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(row["rollout_decoded_tokens"] == 0 for row in rows)
    assert all(row["logp_gap_mean"] is None for row in rows), "nothing was sampled to compare with"
    samples = tmp_path / "run" / "samples" / "step-000001" / "samples.jsonl"
    sample = json.loads(samples.read_text().splitlines()[0])
    assert [c["text"] for c in sample["completions"]] == [f"<answer>{sample['answer']}</answer>"]


def test_an_algorithm_of_ones_own_trains(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path / 'mine.py'}:best_only"
    config = write_config(tmp_path, tiny_checkpoint, algorithm={"name": name, "bar": 0.6})
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr

    rows = metrics(tmp_path / "run")
    assert len(rows) == 4
    assert any(row["above_bar"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["algorithm"]["bar"] == 0.6


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with the default algorithm, whose checkpoints are all kept."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, tiny_checkpoint, output=output(folder))
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    return folder


def output(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder / "run"), "checkpoint_every": 1, "keep_checkpoints": 9}


def make_old(run: Path) -> None:
    """Turn a run folder into one of before algorithms had names, weights had versions, rates had parts and checkpoints had
    manifests.
    """
    file = run / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["algorithm"]["name"], tree["train"]["learning_rates"], tree["train"]["sharding"]
    file.write_text(yaml.safe_dump(tree))

    data = tree["data"]
    examples = load_examples(data["train"], data["columns"])
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
        (checkpoint / "data.digests").unlink()
        state = json.loads((checkpoint / "state.json").read_text())
        del state["evaluation_due"], state["sharding"]
        state["data"] = digest_data(examples)
        (checkpoint / "state.json").write_text(json.dumps(state))

        rank = torch.load(checkpoint / "rank-0.pt", weights_only=True)
        for group in rank["carry"]:
            group.pop("old_logps")
            for completion in group["completions"]:
                completion.pop("version")
        torch.save(rank, checkpoint / "rank-0.pt")

        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        for group in optimizer["param_groups"]:
            group.pop("part")
        torch.save(optimizer, checkpoint / "optimizer.pt")


def cut_after(run: Path, step: int) -> None:
    """As if the run had been stopped after a step."""
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            checkpoint.rename(run / f"later-{checkpoint.name}")


def test_a_run_of_before_goes_on_bit_for_bit(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_checkpoint, output=output(tmp_path))
    assert gpg_vl("train", config).returncode == 0
    cut_after(tmp_path / "run", 2)
    make_old(tmp_path / "run")

    result = gpg_vl("train", config, "--resume")
    assert result.returncode == 0, result.stderr
    assert "was written by an earlier version, without a manifest.json" in result.stdout
    assert without_paths(metrics(tmp_path / "run")) == without_paths(metrics(finished / "run"))
    ours, theirs = last_checkpoint(tmp_path / "run"), last_checkpoint(finished / "run")
    assert equal(weights(ours), weights(theirs))


def test_a_run_of_another_version_is_refused_in_words(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_checkpoint, train={"steps": 1})
    assert gpg_vl("train", config).returncode == 0
    file = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["train"]["flux"] = 1
    file.write_text(yaml.safe_dump(tree))

    result = gpg_vl("train", config, "--resume")
    assert result.returncode == 2
    assert "this version of gpg_vl cannot read its config" in result.stderr
    assert "train.flux: there is no such key" in result.stderr
    assert "start a new run in another output.folder" in result.stderr
