"""Prompts that other processes encode: the same run bit for bit, the same errors, and nobody left behind."""

import gzip
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs import (
    Launch,
    gpg_vl,
    kill_after,
    launched,
    metrics,
    rows_of,
    write_config,
)
from test_train import equal, last_checkpoint, weights

from gpg_vl.data.order import index_at
from gpg_vl.data.read import Examples
from gpg_vl.errors import RunError, UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import load_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.training.encode_ahead import EncodedAhead, encoding_ahead
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.types import Group, Prompt

AGAIN = {"beta_th": 1.0}
"""A step samples until every group carries a signal, so that rounds and surplus groups come up."""
WITHIN = 120.0
START = 900.0


def make_source(checkpoint: Path, folder: Path, rows: int = 8) -> PromptSource:
    pq.write_table(pa.Table.from_pylist(list(scenes.rows(3, rows))), folder / "rows.parquet")
    columns = {"id": "idx", "prompt": "prompt", "images": "image"}
    encoder = Encoder(
        processing=load_processing(str(checkpoint)),
        style=PromptStyle(),
        limits=PixelLimits(),
        root=folder,
    )
    return PromptSource(
        examples=Examples(folder / "rows.parquet", columns), encoder=encoder, seed=5
    )


def same(a: Group, b: Group) -> bool:
    """Every field of two groups, tensors in all bits."""

    def alike(one: Any, other: Any) -> bool:
        if not isinstance(one, torch.Tensor):
            return bool(one == other)
        return one.dtype == other.dtype and torch.equal(one, other)

    prompts = all(
        alike(getattr(a.prompt, f.name), getattr(b.prompt, f.name)) for f in fields(Prompt)
    )
    return prompts and (a.example, a.draw) == (b.example, b.draw)


# ---- the source


def test_whoever_encodes_the_groups_are_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In order, back as for surplus groups of a checkpoint, and with a gap as where other processes take their share."""
    source = make_source(tiny_checkpoint, tmp_path)
    with encoding_ahead(source, workers=2, ahead=3) as ahead:
        assert isinstance(ahead, EncodedAhead)
        for draw in [1, 0, 1, 2, 3, 4, 5]:
            assert same(ahead.group_at(draw), source.group_at(draw)), draw
        assert sorted(ahead._ordered) == [6, 7, 8], "a round, and no more"
        made = [ordered.result() for ordered in ahead._ordered.values()]
        assert [group.draw for group in made if group] == [6, 7, 8], "no worker gave up"

        for draw in [6, 10, 11]:
            assert same(ahead.group_at(draw), source.group_at(draw)), draw
        assert sorted(ahead._ordered) == [13, 14], "what the order has passed is forgotten"


@dataclass(frozen=True)
class Broken:
    """Draw 2 cannot be read, by anybody; draw 3 ends whoever reads it in another process."""

    source: PromptSource
    trainer: int

    def group_at(self, draw: int) -> Group:
        if draw == 2:
            raise UserError("the row of draw 2")
        if draw == 3 and os.getpid() != self.trainer:
            os._exit(7)
        return self.source.group_at(draw)


def test_what_a_worker_meets_is_said_at_its_draw(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A row that cannot be read, in the words of its error; then the end of the worker, with the draw that it had."""
    source = Broken(make_source(tiny_checkpoint, tmp_path), os.getpid())
    with encoding_ahead(source, workers=1, ahead=1) as ahead:
        assert ahead.group_at(0).draw == 0
        assert same(ahead.group_at(1), source.group_at(1))
        with pytest.raises(UserError, match=r"^the row of draw 2$"):
            ahead.group_at(2)
        with pytest.raises(
            RunError,
            match=r"exit code 7 when it had to read and encode draw 3 .*data.workers.*--resume",
        ):
            ahead.group_at(3)
    assert not [one for one in psutil.Process().children() if "spawn_main" in one.cmdline()]


# ---- what travels


def write_parquet(folder: Path) -> Path:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"prompt": ["a?", "b?"], "answer": [1, 0]}, features=features)
    rows.to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def write_saved(folder: Path) -> Path:
    rows = datasets.Dataset.from_dict(
        {"prompt": ["a?", "b?"], "answer": [[0.5], None], "task": ["x", "y"]},
        features=datasets.Features(
            {
                "prompt": datasets.Value("string"),
                "answer": datasets.List(datasets.Value("float32")),
                "task": datasets.Value("string"),
            }
        ),
    )
    rows = rows.remove_columns("answer").add_column("answer", ["1", "2"])
    rows.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def write_jsonl(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in ("a", "b")))
    return file


def write_gzipped(folder: Path) -> Path:
    file = folder / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(write_jsonl(folder).read_bytes()))
    return file


def write_list(folder: Path) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps([{"prompt": p, "answer": "1"} for p in ("a", "b")]))
    return file


@pytest.mark.parametrize(
    "write", [write_parquet, write_saved, write_jsonl, write_gzipped, write_list]
)
def test_every_kind_of_data_travels(write: Callable[[Path], Path], tmp_path: Path) -> None:
    examples = Examples(write(tmp_path))
    arrived = ForkingPickler.loads(ForkingPickler.dumps(examples))
    assert list(arrived) == list(examples)
    assert [arrived[n] for n in (1, 0)] == [examples[n] for n in (1, 0)]


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "newer_checkpoint", "text_checkpoint"])
def test_every_family_travels(kind: str, request: pytest.FixtureRequest) -> None:
    processing = load_processing(str(request.getfixturevalue(kind)))
    arrived = ForkingPickler.loads(ForkingPickler.dumps(processing))
    assert arrived.family is processing.family
    assert arrived.tokens == processing.tokens
    text = "Which? 12 é"
    assert arrived.tokenizer(text).input_ids == processing.tokenizer(text).input_ids


# ---- runs


def without_paths(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in metrics(run)]


def alike(one: Path, other: Path) -> bool:
    """Two runs to the last bit of their metrics and of what their last checkpoints hold."""
    assert without_paths(one) == without_paths(other)
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    states = [(folder / "state.json").read_bytes() for folder in (ours, theirs)]
    return states[0] == states[1] and equal(weights(ours), weights(theirs))


def write_run(folder: Path, checkpoint: Path, workers: int, **train: Any) -> Path:
    folder.mkdir(exist_ok=True)
    return write_config(
        folder,
        checkpoint,
        data={"workers": workers},
        algorithm=AGAIN,
        train={"steps": 5, **train},
    )


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that encodes its prompts itself."""
    config = write_run(tmp_path_factory.mktemp("ahead") / "alone", tiny_checkpoint, 0)
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    return config.parent / "run"


def test_two_workers_make_the_same_run(alone: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "two", tiny_checkpoint, 2)
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    assert alike(config.parent / "run", alone)
    rows = without_paths(alone)
    assert max(row["rounds"] for row in rows) > 1, "nothing was sampled again"
    assert any(row["carried_groups"] for row in rows)


def test_killed_and_resumed_with_another_number_of_workers(
    alone: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_run(tmp_path / "one", tiny_checkpoint, 1)
    kill_after(config, 2)
    result = gpg_vl("train", config, "--resume", "data.workers=0")
    assert result.returncode == 0, result.stderr
    assert alike(config.parent / "run", alone)


def test_two_processes_with_a_worker_each_make_the_same_run(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Where one of them has no room in a round, the draws of the other are not those that were expected."""
    folders = []
    for workers in (0, 1):
        config = write_run(tmp_path / str(workers), tiny_checkpoint, workers, prompts_per_step=4)
        result = gpg_vl("train", config, processes=2)
        assert result.returncode == 0, result.stderr
        folders.append(config.parent / "run")
    assert alike(*folders)
    assert max(row["rounds"] for row in without_paths(folders[0])) > 1


def test_the_share_of_a_step_that_waits_for_data_is_a_metric(alone: Path) -> None:
    rows = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        seconds, share = row["seconds"], row["share_of_step"]["data"]
        assert 0 < share < 1
        assert share == pytest.approx(seconds["encode"] / seconds["step"], rel=0.05)


CHANGING = '''
from pathlib import Path


def luck(completion, example):
    """That of the other runs, which puts another picture into the folder in the first step."""
    if completion.text.startswith("<think>"):
        return 1.0
    new = Path(__file__).with_name("new.png")
    if new.exists():
        new.replace(Path(__file__).with_name("VICTIM.png"))
    return sum(map(ord, completion.text)) % 5 / 4
'''


def test_a_row_that_has_changed_ends_the_run_at_its_step_in_the_same_words(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """That of draw 5, in the third step, which is changed in the first: with workers, before it is read ahead in the second."""
    victim, said = index_at(5, size=12, seed=0), []
    for workers in (0, 1):
        folder = tmp_path / str(workers)
        folder.mkdir()
        lines = []
        for number, row in enumerate(scenes.rows(11, 12)):
            (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
            kept = {name: row[name] for name in ("prompt", "answer", "choices", "task")}
            lines.append(
                json.dumps({**kept, "id": str(number), "images": [f"{number}.png"]}) + "\n"
            )
        (folder / "train.jsonl").write_text("".join(lines))
        other = next(iter(scenes.rows(12, 1)))["image"]["bytes"]
        config = write_config(
            folder,
            tiny_checkpoint,
            data={"train": str(folder / "train.jsonl"), "columns": {}, "workers": workers},
        )
        (folder / "luck.py").write_text(CHANGING.replace("VICTIM", str(victim)))
        (folder / "new.png").write_bytes(other)
        result = gpg_vl("train", config)
        assert result.returncode == 2, result.stdout + result.stderr
        assert rows_of(folder / "run") == 2
        said.append(result.stderr.replace(str(folder), "FOLDER"))
    assert said[0] == said[1]
    assert "shows another picture than when it was checked" in said[0]
    assert f"Row {victim} of the data" in said[0]


# ---- how workers end


def encoders(launch: Launch) -> list[psutil.Process]:
    """The processes that encode: spawned like those of rewards, but without their mark."""
    found = []
    for one in launch.family():
        try:
            spawned = any("spawn_main" in word for word in one.cmdline())
            marked = any(name.startswith("GPG_VL_REWARD_WORKER") for name in one.environ())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if spawned and not marked:
            found.append(one)
    return found


@pytest.mark.parametrize(
    "how",
    [
        "ctrl-c",
        "lost a worker",
        pytest.param("terminated", marks=pytest.mark.slow),
        pytest.param("killed", marks=pytest.mark.slow),
    ],
)
def test_no_worker_outlives_its_run(how: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Signals go to the whole group of the run, as those of a terminal and of Slurm do."""
    config = write_run(tmp_path / "run", tiny_checkpoint, 1, steps=100_000)
    run = config.parent / "run"
    words = [sys.executable, "-m", "gpg_vl", "train", str(config), "output.checkpoint_every=0"]
    with launched(tmp_path, words) as [launch]:
        end = time.monotonic() + START
        while rows_of(run) < 3 or not encoders(launch):
            assert launch.is_running(), launch.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)

        trainer = launch._process.pid
        if how == "killed":
            launch.kill_launcher()
        elif how == "lost a worker":
            lost = encoders(launch)[0]
            lost.kill()
        else:
            os.killpg(trainer, signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
        code = launch.wait(WITHIN)
        assert not launch.left_behind(20), launch.log.read_text()
        said = launch.log.read_text()

    assert code == {"ctrl-c": 130, "terminated": 143, "killed": -9, "lost a worker": 1}[how], said
    assert "Traceback" not in said
    if how == "lost a worker":
        assert f"(process id {lost.pid}) was ended by SIGKILL when it had to read" in said
    if code > 100:
        assert last_checkpoint(run).name == f"step-{rows_of(run):06d}"


def test_a_negative_number_of_workers_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run", tiny_checkpoint, -1)
    result = gpg_vl("train", config, "--dry-run")
    assert result.returncode == 2
    assert "data.workers" in result.stderr
