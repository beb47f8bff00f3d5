"""What is said and done where the hub cannot be reached, and what of it is fetched by name."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from runs import launched, launcher, write_config

from gpg_vl import hub
from gpg_vl.cli import main as command
from gpg_vl.config import load_config
from gpg_vl.data.read import load_examples
from gpg_vl.errors import UserError
from gpg_vl.eval.__main__ import main
from gpg_vl.eval.listing import task_lines
from gpg_vl.eval.tasks import tasks
from gpg_vl.hub import UnreachableError, fetch_data, is_hub_name
from gpg_vl.models.load import read_config
from gpg_vl.models.run_checkpoints import find_model
from gpg_vl.quickstart import scenes
from gpg_vl.training.prepare import prepare


@pytest.fixture
def knocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub that hangs up on whoever calls, and how often it was called. Nothing is in the cache."""
    from huggingface_hub import constants

    called: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                called.append(caller.recv(400).decode(errors="replace"))
                caller.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.remember(None)
        yield called
        hub.remember(None)
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def attempts(knocks: list[str]) -> int:
    """How often it was tried, or asked for what a test names. The hub's client fetches a list of its own besides."""
    return sum(knock.startswith("HEAD / ") or "no-such" in knock for knock in knocks)


def refusal(config: Path) -> tuple[str, str]:
    """What `prepare` raises, and what it prints before."""
    out = io.StringIO()
    with pytest.raises(UserError) as error:
        prepare(load_config(config), processes=1, console=Console(file=out, width=200))
    return str(error.value), out.getvalue()


def test_what_needs_no_checkpoint_is_checked_after_one_attempt(
    tmp_path: Path, knocks: list[str]
) -> None:
    """A row without an answer, a picture that is not there and a folder that is a file come with the hub's silence."""
    rows = [
        {"id": "a", "prompt": "<image>What is it?", "answer": "a", "images": ["gone.png"]},
        {"id": "b", "prompt": "1 + 1?"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "taken").write_text("")
    config = write_config(
        tmp_path,
        Path("nobody/no-such-model"),
        data={"train": str(file), "columns": {}},
        output={"folder": str(tmp_path / "taken" / "run")},
    )
    said, printed = refusal(config)
    assert attempts(knocks) == 1, "not six for each file"
    assert "nobody/no-such-model is not a local folder, so it was taken for a hub name" in said
    assert "hf download nobody/no-such-model --local-dir FOLDER" in said
    assert f"{tmp_path / 'taken'} is not a writable folder" in said
    assert "2 problem(s), listed above" in said
    assert "gone.png" in printed


def test_a_reward_that_refuses_gold_answers_is_found_without_the_checkpoint(
    tmp_path: Path, knocks: list[str]
) -> None:
    config = write_config(tmp_path, Path("nobody/no-such-model"))
    said, _ = refusal(config)
    assert said.endswith("Data, rewards and folders were checked and are fine.")
    (tmp_path / "luck.py").write_text("def luck(completion, example):\n    return 0.5\n")
    said, _ = refusal(config)
    assert "Besides, without it:\n" in said
    assert "luck" in said.partition("Besides")[2]
    assert attempts(knocks) == 1


def test_data_that_is_on_the_hub_alone_is_said_with_all_else(
    tmp_path: Path, knocks: list[str], tiny_checkpoint: Path
) -> None:
    """The checkpoint is here. A reward that cannot be loaded and a folder that is a file come with the hub's silence."""
    (tmp_path / "taken").write_text("")
    config = write_config(
        tmp_path,
        tiny_checkpoint,
        data={"train": "datasets:nobody/no-such-data:train"},
        output={"folder": str(tmp_path / "taken" / "run")},
        rewards={"weights": {f"{tmp_path}/gone.py:luck": 1.0}},
    )
    said, _ = refusal(config)
    assert attempts(knocks) == 1, "not six, and none for the files"
    download = "hf download nobody/no-such-data --repo-type dataset --local-dir FOLDER"
    assert "The data set nobody/no-such-data is neither a local folder nor in the cache" in said
    assert download in said
    besides = said.partition("Besides")[2]
    assert "gone.py" in besides
    assert "taken is not a writable folder" in besides

    config = write_config(
        tmp_path,
        Path("nobody/no-such-model"),
        data={"train": "datasets:nobody/no-such-data"},
        output={"folder": str(tmp_path / "run")},
    )
    said, _ = refusal(config)
    assert "hf download nobody/no-such-model --local-dir FOLDER" in said
    assert download in said
    assert said.endswith("Rewards and folders were checked and are fine.")
    assert attempts(knocks) == 1


def test_a_data_set_in_the_cache_is_read_without_the_hub(
    tmp_path: Path, knocks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `datasets.load_dataset` has prepared before, under its name on the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows = [{"id": "a", "prompt": "1 + 1?", "answer": "2"}]
    place = tmp_path / "prepared" / "nobody___no-such-data" / "default" / "0.0.0" / ("ab" * 20)
    place.mkdir(parents=True)
    split = "train"
    info = datasets.DatasetInfo(
        features=datasets.Dataset.from_list(rows).features,
        splits=datasets.SplitDict(
            {split: datasets.SplitInfo(split, num_examples=1, dataset_name="no-such-data")}
        ),
        config_name="default",
        dataset_name="no-such-data",
        version="0.0.0",
    )
    info.write_to_directory(str(place))
    with datasets.arrow_writer.ArrowWriter(
        path=str(place / "no-such-data-train.arrow"), features=info.features
    ) as writer:
        writer.write(rows[0])
        writer.finalize()
    (example,) = load_examples("datasets:nobody/no-such-data:train")
    assert (example.prompt, example.answer) == ("1 + 1?", "2")
    assert attempts(knocks) == 1
    assert datasets.config.HF_HUB_OFFLINE is False, "as it was"


def test_the_check_of_the_data_says_what_else_is_wrong(
    tmp_path: Path, knocks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, Path("nobody/no-such-model"))
    (tmp_path / "luck.py").write_text("def luck(completion, example):\n    return 0.5\n")
    assert command(["data", "check", str(config)]) == 2
    said = capsys.readouterr().err
    assert "hf download nobody/no-such-model --local-dir FOLDER" in said
    assert "luck" in said.partition("Besides")[2]

    config = write_config(
        tmp_path, Path("nobody/no-such-model"), data={"train": "datasets:nobody/no-such-data"}
    )
    assert command(["data", "check", str(config)]) == 2
    assert "hf download nobody/no-such-data --repo-type dataset" in capsys.readouterr().err
    assert attempts(knocks) == 1


def test_one_of_several_processes_asks_and_all_hear(
    tmp_path: Path, knocks: list[str], tiny_checkpoint: Path
) -> None:
    from huggingface_hub import constants

    data = {"train": "datasets:nobody/no-such-data"}
    config = write_config(tmp_path, tiny_checkpoint, data=data)
    asks = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "cache"),
    }
    words = ["env", *(f"{name}={value}" for name, value in asks.items()), *launcher(2)]
    with launched(tmp_path, [*words, "-m", "gpg_vl", "train", str(config), "--dry-run"]) as [
        launch
    ]:
        assert launch.wait(600)
        said = launch.log.read_text()
    assert said.count("hf download nobody/no-such-data --repo-type dataset") == 1
    assert attempts(knocks) == 1


@pytest.mark.parametrize(
    ("path", "is_name"),
    [
        ("Qwen/Qwen2-VL-2B", True),
        ("gpt2", True),
        ("runs/base/model", False),  # a hub name has one slash
        ("./base", False),
        ("/models/base", False),
        ("~/base", False),
    ],
)
def test_what_may_be_a_name_on_the_hub(path: str, is_name: bool) -> None:
    assert is_hub_name(path) is is_name


def test_a_folder_that_does_not_exist_is_no_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knocks: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the folder does not exist; a hub name has one slash"):
        read_config("runs/base/model")
    assert not attempts(knocks)

    # one slash may be either: what is here of it is said
    (tmp_path / "runs").mkdir()
    with pytest.raises(UnreachableError, match="The folder runs exists, but has no base in it"):
        read_config("runs/base")


# ---- data sets


def test_a_data_set_is_fetched_by_an_explicit_name(
    tmp_path: Path, knocks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the cache, without a network; what is not in there is said with the command that downloads it."""
    rows = list(scenes.rows(seed=9, number=4))
    place = tmp_path / "cache" / "datasets--nyu-visionx--CV-Bench"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("ab" * 20)
    table = place / "snapshots" / ("ab" * 20) / "test.parquet"
    table.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), table)
    answers = tmp_path / "p.jsonl"
    answers.write_text(
        "".join(
            json.dumps({"doc_id": number, "response": row["answer"]}) + "\n"
            for number, row in enumerate(rows)
        )
    )
    given = ["cvbench", "--predictions", str(answers), "--data"]
    assert main([*given, "hub:nyu-visionx/CV-Bench"]) == 0
    assert "100.0" in capsys.readouterr().out

    assert main([*given, "hub:nyu-visionx/no-such"]) == 2
    said = capsys.readouterr().err
    assert "hf download nyu-visionx/no-such --repo-type dataset --local-dir FOLDER" in said
    assert attempts(knocks) == 1
    with pytest.raises(UserError, match="hub:CV-Bench is not the name of a hub data set"):
        fetch_data("CV-Bench")


def test_every_benchmark_says_how_it_is_downloaded() -> None:
    told = {
        name: next(line for line in task_lines(tasks.get(name)()) if line.startswith("  download:"))
        for name in tasks.names()
    }
    assert all(
        any(f" {word} " in line for word in ("hf download", "git clone", "python"))
        for line in told.values()
    ), told
    assert told["cvbench"].endswith(
        "hf download nyu-visionx/CV-Bench --repo-type dataset --local-dir data/CV-Bench, then --data data/CV-Bench; or at once: "
        "--data hub:nyu-visionx/CV-Bench"
    )
    assert "python data_recipes/digits.py --out data/digits" in told["digits"]


# ---- checkpoints of a run


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    """The newest that is complete: step 10 comes behind step 9, and what has no state is not done."""
    run = tmp_path / "run"
    for step in (9, 10, 11):
        model = run / "checkpoints" / f"step-{step:06d}" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        if step < 11:
            (model.parent / "state.json").write_text("{}")
    newest = run / "checkpoints" / "step-000010"
    assert find_model(run) == newest / "model"
    assert find_model(newest) == newest / "model"
    assert find_model(newest / "model") == newest / "model"

    with pytest.raises(UserError, match="There is no checkpoint folder"):
        find_model(tmp_path / "absent")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has no complete checkpoint yet"):
        find_model(tmp_path / "young")
