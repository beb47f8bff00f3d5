"""What a run leaves behind for people: run.json, log.txt, samples and evaluations with pictures, the report, trackers."""

import json
import logging
import re
import shutil
import sys
import types
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from conftest import scene_example
from PIL import Image
from runs import gpg_vl, metrics, write_config, write_scenes

from gpg_vl.answers.verdict import Verdict
from gpg_vl.errors import RunError, UserError
from gpg_vl.eval.predictions import Prediction, Response
from gpg_vl.eval.results import ScoredRow, summarise
from gpg_vl.eval.task import Doc
from gpg_vl.eval.tasks import tasks
from gpg_vl.training import launches
from gpg_vl.training.evaluation_files import (
    GREY,
    Evaluated,
    make_evaluated,
    with_blank_pictures,
    write_evaluation,
)
from gpg_vl.training.samples import PictureSource, dump_groups
from gpg_vl.training.trackers import show_samples, tracker_options
from gpg_vl.training.trackers.rows import COLUMNS
from gpg_vl.types import Completion, Example, Group

SOURCE = PictureSource(root=None, max_pixels=10**8)


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, evaluated with blank pictures too; its pictures are files of the data."""
    folder = tmp_path_factory.mktemp("run")
    rows = pq.read_table(write_scenes(folder / "scenes.parquet", 8)).to_pylist()
    with (folder / "train.jsonl").open("w") as out:
        for row in rows:
            (folder / f"{row['idx']}.png").write_bytes(row["image"]["bytes"])
            kept = {name: row[name] for name in ("prompt", "answer", "choices", "task")}
            out.write(json.dumps({**kept, "id": row["idx"], "images": f"{row['idx']}.png"}) + "\n")
    write_scenes(folder / "test.parquet", 8, seed=12)
    config = write_config(
        folder,
        tiny_checkpoint,
        data={"train": str(folder / "train.jsonl"), "columns": {}},
        train={"steps": 2},
        eval={"task": "cvbench", "data": str(folder / "test.parquet"), "blank_image": True},
        output={"trackers": ["tensorboard"], "project": "my_project"},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    assert f"report: {folder / 'run' / 'report.html'}" in result.stdout
    # neither a bar of weights that are read at once nor words of libraries that the run does without
    assert result.stderr == ""
    return folder / "run"


def opened(file: Path) -> Image.Image:
    """A picture that leaves no file open."""
    return Image.open(BytesIO(file.read_bytes()))


def test_run_json_says_what_ran_where_and_when(run: Path) -> None:
    [launch] = json.loads((run / "run.json").read_text())["launches"]
    assert launch["command"][:4] == ["python", "-m", "gpg_vl", "train"]
    assert launch["outcome"] == "finished"
    assert launch["steps"] == {"first": 0, "last": 2}
    assert launch["versions"]["torch"] == sys.modules["torch"].__version__
    began, ended = (datetime.fromisoformat(launch[name]) for name in ("started", "ended"))
    assert 0 <= (ended - began).total_seconds() < 300
    assert began.utcoffset() is not None
    assert {"host", "devices", "commit", "python", "processes", "peak memory"} <= launch.keys()

    phases = launch["peak memory by phase"]
    assert {"encode", "rollout", "reward", "deal", "train", "step", "eval"} == phases.keys()
    assert phases["step"]["process"] == max(
        phases[name]["process"] for name in ("step", "encode", "rollout", "reward", "train")
    )
    assert 2**27 < phases["train"]["process"] < 2**33


def test_the_log_has_a_time_for_each_line(run: Path) -> None:
    lines = (run / "log.txt").read_text().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 info "
    assert all(re.match(time, line) for line in lines), lines
    said = [re.sub(time, "", line) for line in lines]
    assert said[0].startswith("started: python -m gpg_vl train")
    assert [line.split()[:3] for line in said if line.startswith("step")][:2] == [
        ["step", "0:", "eval"],
        ["step", "1:", "train"],
    ]
    assert "step 2: checkpoint step-000002" in said
    assert said[-1] == "ended: finished"


def test_samples_hold_the_pictures_that_the_data_names_by_path(run: Path) -> None:
    folder = run / "samples" / "step-000001"
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        [name] = row["images"]
        assert "/" not in name
        assert max(opened(folder / name).size) <= 256
        assert row["question"]
        assert row["completions"][0]["prefill"] == ""


def test_an_evaluation_keeps_each_answer_and_its_picture(run: Path) -> None:
    files = sorted(p.name for p in (run / "evaluations").glob("*.jsonl"))
    assert files == ["step-000000.jsonl", "step-000002.jsonl"]
    rows = [json.loads(line) for line in (run / "evaluations" / files[0]).read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert {"question", "gold", "response", "parsed", "right", "blank_right"} <= row.keys()
        [name] = row["images"]
        assert opened(run / "evaluations" / "pictures" / name).format == "WEBP"

    # the share of right rows is the score that metrics.jsonl has of them
    first = next(row for row in metrics(run) if row["kind"] == "eval")
    assert first["step"] == 0
    assert sum(row["right"] for row in rows) / 8 == pytest.approx(first["micro"])
    assert sum(row["blank_right"] for row in rows) / 8 == pytest.approx(first["blank_micro"])
    low, high = first["ci95"]["micro"]
    assert low <= first["micro"] <= high
    assert 0.25 <= first["chance"]["micro"] <= 0.5


def test_the_run_folder_can_be_sent_on(run: Path, tmp_path: Path) -> None:
    """Nothing on the page needs what lies outside of the folder."""
    elsewhere = tmp_path / "sent"
    elsewhere.mkdir()
    for file in run.rglob("*"):
        if file.is_file() and "checkpoints" not in file.parts:
            target = elsewhere / file.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    result = gpg_vl("report", elsewhere)
    assert result.returncode == 0, result.stderr
    html = (elsewhere / "report.html").read_text()
    assert html.count("data:image/webp") >= 4
    assert 'class="nopicture"' not in html


def test_the_report_is_that_of_the_whole_run(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert "Before and after: step 0 and step 2" in html
    assert "finished" in html
    assert html.count('class="card group"') >= 2


def test_tensorboard_gets_pictures_and_answers(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = (run / "my_project").glob("events*")
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert "samples/0" in tags["images"]
    picture = events.Images("samples/0")[0]
    assert max(Image.open(BytesIO(picture.encoded_image_string)).size) <= 256
    text = events.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "gold: " in text


def test_a_run_that_fails_says_so_in_its_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reward = tmp_path / "breaks.py"
    reward.write_text(
        "def f(completion, example):\n"
        "    if completion.text.startswith('<think>') or not completion.token_ids:\n"
        "        return 1.0\n"
        "    raise ValueError('no \\x1b[31mluck')\n"
    )
    config = write_config(tmp_path, tiny_checkpoint, rewards={"weights": {f"{reward}:f": 1.0}})
    result = gpg_vl("train", config)
    assert result.returncode == 1, result.stdout
    [launch] = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    assert launch["outcome"].startswith("failed: RunError")
    assert launch["ended"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "ended: failed: RunError" in log
    assert "\x1b" not in log
    assert "no training step" in (tmp_path / "run" / "report.html").read_text()


def test_a_failure_before_the_first_step_is_written_down(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Weights that are cut off pass every check that needs none, and end the run when they are read."""
    checkpoint = tmp_path / "cut"
    shutil.copytree(tiny_checkpoint, checkpoint)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = gpg_vl("train", write_config(tmp_path, checkpoint))
    assert result.returncode == 2, result.stdout
    [launch] = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    assert launch["outcome"].startswith("failed: "), launch
    assert (launch["steps"], bool(launch["ended"])) == (None, True)
    assert "ended: failed: " in (tmp_path / "run" / "log.txt").read_text()
    assert "no training step" in (tmp_path / "run" / "report.html").read_text()

    # the folder holds no step: the run can be begun in it once the cause is gone
    weights.write_bytes((tiny_checkpoint / "model.safetensors").read_bytes())
    again = gpg_vl("train", tmp_path / "config.yaml")
    assert again.returncode == 0, again.stderr
    entries = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    assert [one["steps"] for one in entries] == [None, {"first": 0, "last": 4}]


def test_a_run_that_fails_later_says_how_far_it_came(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reward = tmp_path / "counts.py"
    reward.write_text(
        "calls = []\n"
        "def f(completion, example):\n"
        "    if completion.text.startswith('<think>'):\n"
        "        return 1.0\n"
        "    calls.append(1)\n"
        "    if len(calls) > 12:\n"
        "        raise ValueError('enough')\n"
        "    return sum(map(ord, completion.text)) % 5 / 4\n"
    )
    rewards = {"weights": {f"{reward}:f": 1.0}, "workers": 1}
    config = write_config(tmp_path, tiny_checkpoint, rewards=rewards, algorithm={"beta_th": 0.0})
    result = gpg_vl("train", config)
    assert result.returncode == 1, result.stdout
    [launch] = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    # two prompts of three answers in each step
    assert launch["steps"] == {"first": 0, "last": 2}


# ---- launches


def test_each_launch_of_a_run_has_an_entry(tmp_path: Path) -> None:
    with launches.record_launch(tmp_path, processes=1) as launch:
        launch.set_step(0)
        launch.set_step(3)
        [entry] = json.loads((tmp_path / "run.json").read_text())["launches"]
        assert (entry["ended"], entry["outcome"]) == (None, None)
    with (
        pytest.raises(KeyboardInterrupt),
        launches.record_launch(tmp_path, processes=1),
    ):
        raise KeyboardInterrupt
    entries = json.loads((tmp_path / "run.json").read_text())["launches"]
    assert [one["outcome"] for one in entries] == ["stopped before its end", "interrupted"]
    assert [one["steps"] for one in entries] == [{"first": 0, "last": 3}, None]
    assert not logging.getLogger("gpg_vl").handlers


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"launches": 3}', b'{"launches": [3]}'])
def test_a_run_json_that_says_nothing_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with launches.record_launch(tmp_path, processes=1):
        pass
    assert len(json.loads((tmp_path / "run.json").read_text())["launches"]) == 1


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    with (
        pytest.raises(RunError, match="Free disk space"),
        launches.record_launch(tmp_path, processes=1),
    ):
        pass


def test_a_log_on_a_full_disk_is_one_run_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not the traceback that logging prints of its own accord; and it does not hide what had ended the run before."""
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with (
        pytest.raises(RunError, match=r"log\.txt cannot be written: .*No space left"),
        launches.record_launch(tmp_path, processes=1),
    ):
        pass
    assert "Traceback" not in capfd.readouterr().err
    assert not logging.getLogger("gpg_vl").handlers

    (tmp_path / "log.txt").unlink()
    with pytest.raises(RunError, match="the reward broke"):
        _break_on_a_full_disk(tmp_path)


def _break_on_a_full_disk(folder: Path) -> None:
    with launches.record_launch(folder, processes=1):
        (handler,) = logging.getLogger("gpg_vl").handlers
        assert isinstance(handler, logging.FileHandler)
        full = Path("/dev/full").open("w")  # noqa: SIM115  the handler closes it
        written = handler.setStream(full)
        assert written
        written.close()
        raise RunError("the reward broke")


def test_the_command_is_named_without_its_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/gpg-vl", "train", "my.yaml"])
    assert launches.command() == ["gpg-vl", "train", "my.yaml"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/gpg_vl/__main__.py", "train", "my.yaml"])
    assert launches.command() == ["python", "-m", "gpg_vl", "train", "my.yaml"]


# ---- evaluations


def scene_docs() -> list[Doc]:
    examples = [scene_example(number) for number in range(4)]
    return [
        Doc(
            doc_id=number,
            example=replace(example, meta={"task": example.task, "type": "2D", "source": "COCO"}),
        )
        for number, example in enumerate(examples)
    ]


def test_a_blank_picture_has_the_size_of_the_real_one() -> None:
    docs = scene_docs()
    blank = with_blank_pictures(docs, "cvbench")
    for before, after in zip(docs, blank, strict=True):
        assert (before.gold, before.columns) == (after.gold, after.columns)
        real, grey = (Image.open(BytesIO(one.example.images[0])) for one in (before, after))  # type: ignore[arg-type]
        assert real.size == grey.size
        assert grey.getcolors() == [(real.width * real.height, GREY)]


def test_rows_without_any_picture_cannot_be_asked_without_it() -> None:
    doc = Doc(doc_id=0, example=Example(id="0", prompt="1+1?", answer="2"))
    with pytest.raises(UserError, match="no row of gsm8k has an image"):
        with_blank_pictures([doc], "gsm8k")


def results_of(docs: list[Doc], scores: list[float]) -> Any:
    rows = [
        ScoredRow(
            doc=doc,
            prediction=Prediction(doc_id=doc.doc_id, response=Response(text="\ud800<b>")),
            scores={"strict": Verdict(score=score, parsed=None, gold=doc.gold)},
        )
        for doc, score in zip(docs, scores, strict=True)
    ]
    return summarise(tasks.get("cvbench")(), rows, seed=0)


def test_an_evaluation_as_it_is_kept(tmp_path: Path) -> None:
    docs = scene_docs()
    real, blank = results_of(docs, [1.0, 0.0, 1.0, 1.0]), results_of(docs, [0.0, 0.0, 1.0, 0.0])
    ready = {doc.doc_id: doc.example for doc in docs}
    ready[3] = Example(id="3", prompt="?", answer="", images=(b"no picture",))
    found = make_evaluated(tasks.get("cvbench")(), real, blank, ready, 10**6)
    assert (found.metrics["micro"], found.metrics["blank_micro"]) == (0.75, 0.25)
    json.dumps(found.metrics, allow_nan=False)

    write_evaluation(tmp_path, 7, found)
    lines = (tmp_path / "evaluations" / "step-000007.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["right"] for row in rows] == [True, False, True, True]
    assert [row["blank_right"] for row in rows] == [False, False, True, False]
    assert rows[0]["response"] == "\ud800<b>"
    pictures = sorted(p.name for p in (tmp_path / "evaluations" / "pictures").iterdir())
    assert pictures == ["0-0.webp", "1-0.webp", "2-0.webp"]


def test_an_evaluation_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "evaluations").write_text("in the way")
    with pytest.raises(RunError, match="Free disk space"):
        write_evaluation(tmp_path, 1, Evaluated(metrics={}))


# ---- samples and trackers


class _Prompt(types.SimpleNamespace):
    """As much of a prompt as is dumped: its text."""


def a_group(image: str | bytes) -> Group:
    example = Example(
        id="7\x1b", images=(image,), prompt="<image>How many?", answer="4", meta={"unit": "cm"}
    )
    completions = tuple(
        Completion(token_ids=(1, 2), logprobs=(), text=text, finish_reason="stop", prefill="<t>")
        for text in ("four", "<script>\ud800")
    )
    return Group(
        example=example,
        prompt=_Prompt(text="rendered"),
        completions=completions,
        rewards=(1.0, 0.0),
        reward_parts={"counting": (1.0, 0.0)},
    )


def png(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def test_a_picture_named_by_path_is_copied_small(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    folder.mkdir()
    (data / "a.png").write_bytes(png(600, 300))
    source = PictureSource(root=data, max_pixels=10**6)
    dump_groups(folder, [a_group("a.png"), a_group(png(40, 30)), a_group("../x.png")], source)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [["0-0.webp"], ["1-0.png"], ["../x.png"]]
    assert opened(folder / "0-0.webp").size == (256, 128)
    assert opened(folder / "1-0.png").size == (40, 30)
    assert rows[0]["meta"] == {"unit": "cm"}
    assert [one["prefill"] for one in rows[0]["completions"]] == ["<t>", "<t>"]


@pytest.mark.parametrize(
    "given,wandb,trackio",
    [
        ({}, {}, {}),
        ({"run_name": "a", "group": "g"}, {"name": "a", "group": "g"}, {"name": "a", "group": "g"}),
        (
            {"run_name": "a", "resume_id": "r"},
            {"name": "a", "id": "r", "resume": "allow"},
            {"name": "r", "resume": "allow"},
        ),
    ],
)
def test_names_of_a_run_in_the_words_of_each_tracker(
    given: dict[str, str], wandb: dict[str, str], trackio: dict[str, str]
) -> None:
    options = {"run_name": None, "group": None, "resume_id": None, **given}
    assert tracker_options(**options) == {"wandb": wandb, "trackio": trackio}


class _Tracker:
    """Remembers what it is given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.logged: list[tuple[dict[str, Any], int]] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two packages with what is used of them, as their documentation has it."""
    wandb, trackio = types.ModuleType("wandb"), types.ModuleType("trackio")
    for module in (wandb, trackio):
        module.Image = lambda picture: ("image", picture.size)  # type: ignore[attr-defined]
    wandb.Table = lambda columns, data: {"columns": columns, "data": data}  # type: ignore[attr-defined]
    trackio.Table = lambda dataframe: {  # type: ignore[attr-defined]
        "columns": list(dataframe.columns),
        "data": dataframe.values.tolist(),
    }
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for name in ("wandb", "trackio"):
        monkeypatch.delitem(sys.modules, f"gpg_vl.training.trackers.{name}", raising=False)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_installed_tracker_keeps_answers_and_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real packages, offline and in a folder of their own."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name} to test it")
    for key in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "TRACKIO_DIR", "HF_HOME"):
        monkeypatch.setenv(key, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = tracker_options(run_name="first", group="g", resume_id="mine")[name]
    PartialState()  # what the trackers of accelerate log with
    kind = {"wandb": WandBTracker, "trackio": TrackioTracker}[name]
    tracker = kind("project", **options)
    tracker.start()
    for step in (1, 2):
        tracker.log({"train/reward": 0.5 * step}, step=step)
        show_samples([tracker], step, [a_group(png(600, 300)), a_group("gone.png")], SOURCE)
    tracker.finish()

    # a table for each step, with two answers of two groups, of which one has a picture
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    tables = [file for file in files if file.name.endswith((".table.json", ".db"))]
    assert b"".join(map(Path.read_bytes, tables)).count(b"<t>four") == 2 * 2
    pictures = [file for file in files if file.read_bytes().startswith(b"\x89PNG")]
    assert {opened(file).size for file in pictures} == {(256, 128)}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_table_has_a_row_for_each_answer_with_its_picture(name: str, fakes: None) -> None:
    tracker = _Tracker(name)
    show_samples([tracker], 5, [a_group(png(600, 300))], SOURCE)  # type: ignore[list-item]
    [(values, step)] = tracker.logged
    table = values["samples"]
    assert step == 5
    assert table["columns"] == list(COLUMNS)
    first, second = table["data"]
    # trackio takes every text for Markdown
    texts = ["rendered", "4", "<t>four", "<t><script>\\ud800"]
    question, gold, four, script = [f"` {one} `" for one in texts] if name == "trackio" else texts
    assert first == [5, "7␛", "", ("image", (256, 128)), question, gold, four, 1.0]
    assert second[-2:] == [script, 0.0]


def test_a_group_without_a_picture_is_shown_as_text(tmp_path: Path) -> None:
    tracker = TensorBoardTracker("project", tmp_path)
    tracker.start()
    group = a_group("gone.png")
    show_samples([tracker], 1, [group], SOURCE)
    tracker.finish()
    assert list((tmp_path / "project").glob("events*"))
