"""What a user can get wrong ends in one message, an exit code other than 0, no traceback and nothing half-written."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import gpg_vl, metrics, run_python, write_config, write_scenes
from safetensors.torch import load_file


def refused(
    result: subprocess.CompletedProcess[str], *texts: str, code: int = 2, trace: str = "Traceback"
) -> None:
    assert result.returncode == code, (result.returncode, result.stderr)
    assert trace not in result.stderr, result.stderr
    for text in texts:
        assert text in result.stderr, (text, result.stderr)


def test_a_config_typo(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, train={"learning_rat": 1e-3})
    refused(
        gpg_vl("train", config),
        "train.learning_rat: there is no such key",
        "Did you mean 'learning_rate'?",
    )
    assert not (tmp_path / "run").exists()


def test_no_such_config() -> None:
    refused(gpg_vl("train", "nowhere.yaml"), "There is no config file nowhere.yaml")


def test_a_broken_row_is_named_with_its_remedy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "<image>Which?", "images": ["missing.png"], "answer": "A", "choices": ["a", "b"]}\n'
        '{"prompt": "Fine?", "answer": "A", "choices": ["a", "b"]}\n'
    )
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        data={"train": str(tmp_path / "rows.jsonl"), "columns": {}},
        rewards={"weights": {"choice": 1.0}},
    )
    for command in (("data", "check"), ("train",)):
        result = gpg_vl(*command, config)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "missing.png" in result.stdout
        assert "row 0" in result.stdout.lower()
    assert not (tmp_path / "run").exists()


def test_a_gold_answer_that_its_reward_refuses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("def half(completion, example):\n    return 0.5\n")
    config = write_config(
        tmp_path, tiny_checkpoint, rewards={"weights": {f"{tmp_path / 'half.py'}:half": 1.0}}
    )
    refused(gpg_vl("train", config), "12 gold answer(s) do not get full marks", "half.py:half")


def test_an_unknown_reward(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, rewards={"weights": {"choise": 1.0}})
    refused(gpg_vl("train", config), "There is no reward called 'choise'. Did you mean 'choice'?")


@pytest.mark.parametrize(
    "body,told",
    [
        ("raise KeyError('x')", "KeyError"),
        ("return float('nan')", "nan"),
        ("return 'yes'", "'yes'"),
        ("import os; os._exit(3)", "exit"),
        ("import time; time.sleep(60)", "time"),
    ],
)
def test_a_reward_that_breaks_names_the_example(
    tiny_checkpoint: Path, tmp_path: Path, body: str, told: str
) -> None:
    """It does so after the gold check, on a real completion."""
    (tmp_path / "bad.py").write_text(
        f"def bad(completion, example):\n    if completion.text.startswith('<think>'):\n        return 1.0\n    {body}\n"
    )
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        rewards={"weights": {f"{tmp_path / 'bad.py'}:bad": 1.0}, "time_limit": 1.0},
    )
    refused(
        gpg_vl("train", config),
        "A reward broke",
        "bad.py:bad",
        told,
        "example",
        "rewards.on_error",
        code=1,
        trace="gpg_vl/cli/program.py",
    )


def test_broken_groups_can_be_dropped_and_are_counted(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "def bad(completion, example):\n    if completion.text.startswith('<think>'):\n        return 1.0\n"
        "    if int(example.id) % 2:\n        raise RuntimeError('odd')\n    return sum(map(ord, completion.text)) % 5 / 4\n"
    )
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        rewards={"weights": {f"{tmp_path / 'bad.py'}:bad": 1.0}, "on_error": "drop_group"},
        train={"prompts_per_step": 12, "steps": 1},
        algorithm={"beta_th": 0.0},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    (row,) = metrics(tmp_path / "run")
    assert (row["reward_failures"], row["groups_seen"]) == (6, 6)
    assert "RuntimeError: odd" in row["reward_failure"]

    # half of a step is the most that is lived with, and it is said
    assert "dropped 6 of 12  reward" in result.stdout
    assert "warning: step 1: 6 of 12 groups were dropped" in result.stdout

    # with two rows in three that break it is more than half
    reward = (tmp_path / "bad.py").read_text().replace("% 2:", "% 3:")
    (tmp_path / "bad.py").write_text(reward)
    refused(
        gpg_vl("train", config, f"output.folder={tmp_path / 'other'}"),
        "Step 1: 8 of 12 groups were dropped because a reward failed",
        "rewards.on_error: drop_group allows up to half",
        "gpg-vl rewards test",
        "RuntimeError: odd",
        code=1,
        trace="gpg_vl/cli/program.py",
    )


def test_wrong_model_family(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    refused(
        gpg_vl("train", write_config(tmp_path, tmp_path / "model")),
        "model type 'bert', which gpg_vl does not train",
        "qwen2_vl",
    )


def test_no_checkpoint_there(tmp_path: Path) -> None:
    refused(
        gpg_vl("train", write_config(tmp_path, tmp_path / "nothing")),
        "has no config.json (the folder does not exist; a hub name has one slash)",
    )


@pytest.mark.parametrize(
    "damage,told",
    [("truncate", "damaged"), ("missing", "missing keys"), ("config", "cannot be read")],
)
def test_an_unreadable_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, damage: str, told: str
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    weights = model / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "missing":
        state = load_file(weights)
        state.pop(next(name for name in state if "norm" in name))
        save_file(state, weights, metadata={"format": "pt"})
    else:
        (model / "config.json").write_text('{"model_type": ')
    refused(gpg_vl("train", write_config(tmp_path, model)), told)


def test_a_tracker_that_is_not_installed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, output={"trackers": ["wandb"]})
    refused(
        gpg_vl("train", config),
        "output.trackers names wandb, which is not installed",
        "pip install 'gpg_vl[wandb]'",
    )


def test_lora_dropout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    refused(
        gpg_vl(
            "train",
            write_config(tmp_path, tiny_checkpoint, model={"lora_rank": 4, "lora_dropout": 0.1}),
        ),
        "lora_dropout is 0.1; only 0 is allowed",
    )


@pytest.mark.parametrize(
    "other", [{"model": {"gradient_checkpointing": True}}, {"train": {"shared_prefix": False}}]
)
def test_prompts_that_cannot_be_kept(
    tiny_checkpoint: Path, tmp_path: Path, other: dict[str, dict[str, bool]]
) -> None:
    sections = {**other, "train": {"reuse_prefill": True, **other.get("train", {})}}
    refused(
        gpg_vl("train", write_config(tmp_path, tiny_checkpoint, **sections)),
        "Set reuse_prefill to false",
    )


def test_everything_frozen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, tiny_checkpoint, model={"freeze": ["vision", "merger", "language"]}
    )
    refused(gpg_vl("train", config), "there is nothing to train")


def test_a_prompt_over_the_limit_is_never_cut(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, data={"max_prompt_tokens": 30})
    result = gpg_vl("data", "check", config)
    assert result.returncode == 2
    assert "max_prompt_tokens=30" in result.stdout


def test_a_folder_that_holds_a_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, train={"steps": 1})
    assert gpg_vl("train", config).returncode == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    refused(gpg_vl("train", config), "already holds a run. Resume it with --resume")
    refused(
        gpg_vl("train", config, "--resume", "train.learning_rate=0.5"),
        "train.learning_rate was 0.001, is 0.5",
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    write_scenes(tmp_path / "train.parquet", 13)
    refused(
        gpg_vl("train", config, "--resume", "train.steps=2"),
        "The data is not what the run",
        "it had 12 rows and has 13",
        "start a new run",
    )
    write_scenes(tmp_path / "train.parquet", 12)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    (checkpoint / "optimizer.pt").write_bytes(b"not a checkpoint")
    refused(
        gpg_vl("train", config, "--resume", "train.steps=2"),
        "optimizer.pt has 16 bytes, not",
        "delete this folder",
    )


def test_a_full_disk_while_metrics_are_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, output={"samples_every": 0})
    (tmp_path / "run").mkdir()
    wrapper = tmp_path / "full.py"
    # the file turns into a full device once the run has opened its folder
    wrapper.write_text(
        "import sys\nfrom pathlib import Path\nimport gpg_vl.training.run as run\nopen_folder = run.open_folder\n"
        "def opened(config, resume):\n    folder = open_folder(config, resume=resume)\n"
        "    (folder / 'metrics.jsonl').symlink_to('/dev/full')\n    return folder\n"
        "run.open_folder = opened\n"
        "from gpg_vl.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    result = run_python(wrapper, "train", config)
    refused(
        result, "metrics.jsonl cannot be written", "No space left on device", "--resume", code=1
    )


def test_a_full_disk_while_a_checkpoint_is_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the model's weights do not fit, and nothing of the checkpoint stays."""
    config = write_config(tmp_path, tiny_checkpoint, output={"samples_every": 0})
    wrapper = tmp_path / "small.py"
    wrapper.write_text(
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from gpg_vl.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    result = run_python(wrapper, "train", config)
    refused(result, "could not be written", "The last complete one is none", "--resume", code=1)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_prompts_that_processes_cannot_share(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = gpg_vl(
        "train", write_config(tmp_path, tiny_checkpoint, train={"prompts_per_step": 3}), processes=2
    )
    assert result.returncode != 0
    assert "train.prompts_per_step is 3, which 2 processes cannot share" in result.stderr


def test_evaluation_without_data(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, eval={"task": "cvbench"})
    refused(gpg_vl("train", config), "eval.task is 'cvbench', but eval.data names no data")
    write_scenes(tmp_path / "test.parquet", 8)
    config = write_config(
        tmp_path, tiny_checkpoint, eval={"task": "cvbnch", "data": str(tmp_path / "test.parquet")}
    )
    refused(gpg_vl("train", config), "cvbnch", "Did you mean 'cvbench'?")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_groups(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Rewards that no float32 can hold make the loss infinite: nothing is applied, everything can be looked at."""
    (tmp_path / "huge.py").write_text(
        "from gpg_vl.rewards import in_range\n"
        "@in_range(0, 1e100)\n"
        "def huge(completion, example):\n"
        "    if completion.text.startswith('<think>'):\n"
        "        return 1e100\n"
        "    return sum(map(ord, completion.text)) % 5 / 4 * 1e100\n"
    )
    config = write_config(
        tmp_path, tiny_checkpoint, rewards={"weights": {f"{tmp_path / 'huge.py'}:huge": 1.0}}
    )
    kept = tmp_path / "run" / "broken" / "step-000001-process-0"
    refused(
        gpg_vl("train", config),
        "Step 1: The loss is",
        "The update was not applied. The loss is not finite in the micro-batches of these examples: ",
        f"The groups of the step are saved in {kept}",
        code=1,
    )
    rows = [json.loads(line) for line in (kept / "samples.jsonl").read_text().splitlines()]
    tensors = load_file(kept / "tensors.safetensors")
    assert len(rows) == 2
    assert all((kept / name).stat().st_size > 100 for row in rows for name in row["images"])
    assert len(rows[0]["completions"]) == 3
    assert tensors["0.pixel_values_N"].shape[1] == 1176
    assert (
        len(tensors["1.2.token_ids"])
        == len(tensors["1.2.logprobs"])
        == rows[1]["completions"][2]["tokens"]
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_attention_kernel_that_the_machine_lacks_is_named_in_the_plan(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_checkpoint, train={"attention": "varlen"})
    result = gpg_vl("train", config, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "split (varlen needs" in result.stdout
    assert "split is used instead" in " ".join(result.stdout.split())


ATTACK = "\x1b]0;title\x07\x1b[2J[/red] \u202e"
SHOWN = "\\x1b]0;title\\x07\\x1b[2J[/red] \\u202e"


def test_what_steers_a_terminal_is_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In prompts, tasks, columns, file names, checkpoints and in what rewards raise and print."""
    folder = tmp_path / f"a{ATTACK}"
    folder.mkdir(parents=True)  # its name ends in a bracket, so that the path reads as markup
    shutil.copytree(tiny_checkpoint, folder / "base")
    row = {"prompt": f"Which? {ATTACK}", "answer": "A", "task": ATTACK, ATTACK: 1}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "loud.py").write_text(
        "def loud(completion, example):\n"
        "    print(example.prompt)\n"
        "    if example.meta: raise ValueError(example.prompt)\n"
        "    return 1.0\n"
    )
    settings = {
        "data": {"train": str(folder / "rows.jsonl"), "columns": {}},
        "rewards": {"weights": {f"{folder / 'loud.py'}:loud": 1.0}},
        "output": {"folder": str(folder / "run")},
    }
    config = write_config(folder, folder / "base", **settings)

    checked = gpg_vl("data", "check", config)
    assert checked.returncode == 0, checked.stderr
    refused_by_reward = gpg_vl("train", config)
    refused(refused_by_reward, f"ValueError: Which? {SHOWN}", "gold answer", trace="never said")

    row.pop(ATTACK)
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    planned = gpg_vl("train", config, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"Which? {SHOWN}" in planned.stdout
    assert f"Which? {SHOWN}" in planned.stderr

    (folder / "base" / "config.json").write_text(json.dumps({"model_type": ATTACK}))
    refused(broken := gpg_vl("train", config))
    for result in (checked, refused_by_reward, planned, broken):
        said = result.stdout + result.stderr
        assert not set("\x1b\x07\u202e") & set(said), said
