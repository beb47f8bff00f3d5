"""Training end to end through the command line, on real tiny models."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import environment, gpg_vl, kill_after, metrics, write_config, write_scenes
from safetensors.torch import load_file

from gpg_vl.models.load import load_model
from gpg_vl.training.display import no_signal
from gpg_vl.training.dropped_groups import Dropped
from gpg_vl.training.signals import Seen


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model" / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was never stopped."""
    folder = tmp_path_factory.mktemp("finished")
    result = gpg_vl("train", write_config(folder, tiny_checkpoint))
    assert result.returncode == 0, result.stderr
    assert "Nothing was learnt" not in result.stdout
    return folder


def test_the_run_folder_holds_what_the_design_says(finished: Path) -> None:
    run = finished / "run"
    assert {"config.yaml", "metrics.jsonl", "samples", "checkpoints"} <= {
        p.name for p in run.iterdir()
    }
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {
        "reward",
        "accuracy",
        "valid_share",
        "alpha",
        "length_all",
        "length_valid",
        "logp_gap_max",
        "rounds",
        "groups_seen",
        "carried_groups",
    } <= rows[0].keys()
    assert all(row["logp_gap_max"] < 1e-4 for row in rows), (
        "what is trained must be what was sampled"
    )
    assert any(row["grad_norm"] > 0 for row in rows)
    sample = json.loads(
        (run / "samples" / "step-000002" / "samples.jsonl").read_text().splitlines()[0]
    )
    assert (
        (run / "samples" / "step-000002" / sample["images"][0]).read_bytes().startswith(b"\x89PNG")
    )
    assert len(sample["completions"]) == 3
    assert "reward" in sample["completions"][0]
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step-000003",
        "step-000004",
    ], "keep_checkpoints is 2"


def test_a_checkpoint_is_an_ordinary_model(finished: Path, tiny_checkpoint: Path) -> None:
    """It loads, and training has changed language model and vision tower."""
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    folder = last_checkpoint(finished / "run") / "model"
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    before = load_model(str(tiny_checkpoint)).state_dict()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert any(".visual." in name for name in changed)
    assert any(".language_model." in name for name in changed)
    assert AutoProcessor.from_pretrained(folder).chat_template


def test_the_same_run_again_is_the_same_bit_for_bit(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert gpg_vl("train", write_config(tmp_path, tiny_checkpoint)).returncode == 0
    strip = [
        {k: v for k, v in row.items() if not k.startswith("reward/")}
        for row in metrics(tmp_path / "run")
    ]
    assert strip == [
        {k: v for k, v in row.items() if not k.startswith("reward/")}
        for row in metrics(finished / "run")
    ]
    assert equal(
        weights(last_checkpoint(tmp_path / "run")), weights(last_checkpoint(finished / "run"))
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_killed_and_resumed_is_never_stopped(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, rows: int
) -> None:
    """beta_th 1 and a small vocabulary of rewards make surplus groups likely, so the carry is resumed too."""
    config = write_config(tmp_path, tiny_checkpoint)
    kill_after(config, rows)
    result = gpg_vl("train", config, "--resume")
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    drop = lambda row: {k: v for k, v in row.items() if not k.startswith("reward/")}  # noqa: E731  the reward's path is in its name
    assert list(map(drop, metrics(tmp_path / "run"))) == list(map(drop, metrics(finished / "run")))
    assert equal(
        weights(last_checkpoint(tmp_path / "run")), weights(last_checkpoint(finished / "run"))
    )


def test_killed_and_resumed_on_two_processes_with_surplus_groups(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    runs = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            tiny_checkpoint,
            train={"prompts_per_step": 4, "steps": 3},
            algorithm={"beta_th": 1.0},
            rollout={"group_size": 2, "max_new_tokens": 2},
        )
        if name == "killed":
            kill_after(config, 2, processes=2)
        result = gpg_vl("train", config, *(["--resume"] if name == "killed" else []), processes=2)
        assert result.returncode == 0, result.stderr
        runs[name] = folder / "run"
    rows = {
        name: [
            {k: v for k, v in row.items() if not k.startswith("reward/")} for row in metrics(run)
        ]
        for name, run in runs.items()
    }
    assert rows["killed"] == rows["whole"]
    assert any(row["carried_groups"] for row in rows["whole"][:-1]), (
        "without surplus groups this would not test their way"
    )
    assert any(row["rounds"] > 1 for row in rows["whole"])
    assert equal(weights(last_checkpoint(runs["killed"])), weights(last_checkpoint(runs["whole"])))


def test_a_half_written_checkpoint_is_not_taken(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import shutil

    from gpg_vl.training.checkpoint import latest

    shutil.copytree(last_checkpoint(finished / "run"), tmp_path / "step-000004")
    shutil.copytree(last_checkpoint(finished / "run"), tmp_path / ".step-000009.partial")
    assert latest(tmp_path) == tmp_path / "step-000004"
    assert latest(tmp_path / "nowhere") is None


def test_frozen_parts_do_not_change(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        model={"freeze": ["vision", "merger"]},
        train={"weight_decay": 0.1},
    )
    assert gpg_vl("train", config).returncode == 0
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(last_checkpoint(tmp_path / "run") / "model")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if ".visual." in name]


def test_the_merger_alone_can_be_frozen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert (
        gpg_vl(
            "train",
            write_config(
                tmp_path, tiny_checkpoint, model={"freeze": ["merger"]}, train={"steps": 2}
            ),
        ).returncode
        == 0
    )
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(last_checkpoint(tmp_path / "run") / "model")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".visual." in name for name in changed)
    assert not [name for name in changed if ".visual.merger." in name]


def test_lora_trains_adapters_resumes_and_saves_a_merged_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        config = write_config(folder, tiny_checkpoint, model={"lora_rank": 4}, train={"steps": 3})
        if folder == killed:
            kill_after(config, 1)
        result = gpg_vl("train", config, *(["--resume"] if folder == killed else []))
        assert result.returncode == 0, result.stderr
    checkpoint = last_checkpoint(whole / "run")
    assert equal(
        load_file(checkpoint / "adapter" / "adapter_model.safetensors"),
        load_file(last_checkpoint(killed / "run") / "adapter" / "adapter_model.safetensors"),
    )
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(checkpoint / "model")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj.weight" in name and ".visual." not in name for name in changed)


def test_two_processes_train_and_evaluate(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "test.parquet", 24, seed=12)
    evaluation = {"task": "cvbench", "data": str(tmp_path / "test.parquet"), "every": 2}
    config = write_config(tmp_path, tiny_checkpoint, eval=evaluation, train={"steps": 2})
    result = gpg_vl("train", config, processes=2)
    assert result.returncode == 0, result.stderr
    rows = metrics(tmp_path / "run")
    assert [(row["step"], row["kind"]) for row in rows] == [(1, "train"), (2, "train"), (2, "eval")]
    assert rows[-1]["rows"] == 24


def test_a_step_without_signal_is_skipped_and_counted(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The format reward gives a random model nothing, ever: no group is valid, the cap is hit, no weight moves."""
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        rewards={"weights": {"format": 1.0}},
        algorithm={"max_resample_attempts": 2},
        train={"steps": 2, "weight_decay": 0.1},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0
    said = " ".join(result.stdout.split())
    assert "Nothing was learnt: in all 2 steps all answers to a prompt got the same reward" in said
    assert "gpg-vl rewards test" in said
    rows = metrics(tmp_path / "run")
    assert [
        (
            r["step_skipped"],
            r["alpha"],
            r["loss"],
            r["rounds"],
            r["resample_cap_hit"],
            r["groups_seen"],
        )
        for r in rows
    ] == [(1, None, 0.0, 2, 1, 4)] * 2
    assert rows[-1]["skipped_steps"] == 2
    assert rows[-1]["position"] == 8
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(last_checkpoint(tmp_path / "run") / "model")).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


SEEN = Seen(groups=9, valid=0, all_right=1, all_wrong=7)


@pytest.mark.parametrize(
    ("steps", "skipped", "told"), [(4, 4, True), (1, 1, True), (4, 3, False), (0, 0, False)]
)
def test_only_a_run_in_which_no_step_was_taken_has_learnt_nothing(
    steps: int, skipped: int, told: bool
) -> None:
    said = no_signal(
        steps=steps, skipped=skipped, folder=Path("runs/x"), dropped=Dropped(0, 9), seen=SEEN
    )
    assert bool(said) is told
    assert "dropped" not in (said or "")


def test_nothing_was_learnt_names_the_groups_that_were_dropped() -> None:
    said = no_signal(
        steps=4, skipped=4, folder=Path("runs/x"), dropped=Dropped(155, 640), seen=SEEN
    )
    assert said
    assert "Of 9 groups 7 were all wrong and 1 all right" in said
    assert "gpg-vl data rate CONFIG" in said
    assert "too hard for the model" in said
    assert "155 of 640 groups were dropped because a reward failed" in said
    assert "rewards.on_error: drop_group" in said


def test_the_plan_is_printed_and_a_dry_run_stops_there(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = gpg_vl("train", write_config(tmp_path, tiny_checkpoint), "--dry-run")
    assert result.returncode == 0, result.stderr
    for text in (
        "4 steps",
        "2 groups x 3 answers = 6 answers",
        "temperature 1.0, top_p 1, top_k off",
        "memory",
        "attention  split",
        "MFLOP per step: prefill",
        "tokens and",
        "times the work without sharing",
        "per checkpoint, at most 3 at a time",
        "activations",
        "prompt of row 0",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "How many",
    ):
        assert text in result.stdout, text
    assert not (tmp_path / "run").exists()


def test_every_step_tells_what_was_computed_and_how_long_its_parts_took(finished: Path) -> None:
    """The rollout sees each picture and prompt once, training again only those that carry a signal."""
    for line in (finished / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["rollout_vision_patches"] % 4 == 0
        assert 0 < row["rollout_vision_patches"] < 4 * row["rollout_prefilled_tokens"]
        assert row["rollout_decoded_tokens"] <= 4 * 3 * row["groups_seen"]
        if not row["step_skipped"]:
            assert 0 < row["trained_vision_patches"] <= row["rollout_vision_patches"]
            assert (
                row["trained_tokens"]
                <= row["rollout_prefilled_tokens"] + row["rollout_decoded_tokens"]
            )
            assert {
                "prefill",
                "decode",
                "reward",
                "train_forward",
                "train_backward",
                "optimizer",
            } <= set(row["seconds"])
            assert (
                row["seconds"]["train_forward"] + row["seconds"]["train_backward"]
                <= row["seconds"]["train"]
            )


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_can_train_on_from_its_rollouts(
    tiny_checkpoint: Path, tmp_path: Path, processes: int
) -> None:
    """The same answers, losses and gradients, and no picture or prompt that is computed in training again."""
    found = {}
    for reuse in (False, True):
        (folder := tmp_path / str(reuse)).mkdir()
        config = write_config(folder, tiny_checkpoint, train={"reuse_prefill": reuse, "steps": 3})
        result = gpg_vl("train", config, processes=processes)
        assert result.returncode == 0, result.stderr
        found[reuse] = metrics(folder / "run")
    for fresh, again in zip(found[False], found[True], strict=True):
        for key in ("reward", "valid_share", "rollout_vision_patches", "rollout_decoded_tokens"):
            assert again[key] == fresh[key]
        for key in ("loss", "grad_norm", "entropy"):
            assert again[key] == pytest.approx(fresh[key], rel=1e-4, abs=1e-6)
        if not fresh["step_skipped"]:
            # a process that has no pass left shows its tower one blank token
            assert (
                again["trained_vision_patches"]
                <= 4 * (processes - 1)
                < fresh["trained_vision_patches"]
            )
            assert again["trained_tokens"] < fresh["trained_tokens"] / 3
    assert not all(row["step_skipped"] for row in found[True])


def test_ctrl_c_ends_with_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, tiny_checkpoint, train={"steps": 100000}, output={"checkpoint_every": 0}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "gpg_vl", "train", str(config)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    file = tmp_path / "run" / "metrics.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert "stopping after this step, with a checkpoint" in out
    assert process.returncode == 130, (
        "what comes after it in a script must not take it for finished"
    )
    steps = [row["step"] for row in metrics(tmp_path / "run")]
    assert last_checkpoint(tmp_path / "run").name == f"step-{steps[-1]:06d}"


def test_tensorboard_gets_the_metrics(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, tiny_checkpoint, train={"steps": 1}, output={"trackers": ["tensorboard"]}
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_bfloat16_trains_on_what_was_sampled(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Rollout and training run under the same autocast, and master weights stay float32."""
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        model={"dtype": "bfloat16", "gradient_checkpointing": True},
        train={"steps": 2},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    rows = metrics(tmp_path / "run")
    assert max(row["logp_gap_max"] for row in rows) < 0.05, (
        "another precision on one side would differ by more"
    )
    exact = metrics(finished / "run")[0]["entropy"]
    assert rows[0]["entropy"] == pytest.approx(exact, rel=0.02)
    assert rows[0]["entropy"] != exact, "the setting must have an effect"
    assert any(row["grad_norm"] > 0 for row in rows)
    assert {str(w.dtype) for w in weights(last_checkpoint(tmp_path / "run")).values()} == {
        "torch.float32"
    }
