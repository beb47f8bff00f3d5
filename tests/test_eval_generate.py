"""A checkpoint answers a benchmark: several pictures, none, repeated answers, boxes, and what cannot be encoded."""

import json
from types import SimpleNamespace

import pytest
from benchmark_data import WRITERS
from benchmark_data.files import picture
from runs import write_config

from gpg_vl.config import load_config
from gpg_vl.eval.__main__ import main
from gpg_vl.eval.generate import model_responder
from gpg_vl.eval.predictions import Failed
from gpg_vl.eval.runner import prepare
from gpg_vl.eval.settings import settings_for
from gpg_vl.eval.tasks import tasks
from gpg_vl.model import Model
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.training.evaluation import make_evaluation


def run(name, model, data, out, *more, code=0, tokens=4):
    arguments = [
        name,
        "--model",
        model,
        "--data",
        data,
        "--output",
        out,
        "--max-new-tokens",
        tokens,
        *more,
    ]
    assert main([str(one) for one in arguments]) == code


def log_of(out):
    return [
        json.loads(line)
        for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("name", ["blink", "mmmu", "geometry3k", "geoqa"])
def test_several_pictures_are_shown_in_order(name, tiny_checkpoint, tmp_path):
    data = WRITERS[name](tmp_path / "data")
    run(name, tiny_checkpoint, data, tmp_path / "out", "--prompt", "plain")
    docs = tasks.get(name)().load(data)
    log = log_of(tmp_path / "out")
    assert [row["doc_id"] for row in log] == [doc.doc_id for doc in docs]
    assert {row["finish_reason"] for row in log} <= {"stop", "length"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["results"][name]["errors"] == 0
    config = results["config"]
    assert (config["prompt"], config["repetition_penalty"], config["padding_side"]) == (
        "plain",
        1.0,
        None,
    )
    assert config["revision"] is None  # a folder that is no commit of the hub


def test_text_alone_needs_no_vision(text_checkpoint, tmp_path):
    run("gsm8k", text_checkpoint, WRITERS["gsm8k"](tmp_path / "data"), tmp_path / "out")
    sample = json.loads((tmp_path / "out" / "samples_gsm8k.jsonl").read_text().splitlines()[0])
    assert sample["input"].endswith('output the final answer after "####".')


def test_repeated_answers_are_drawn_once_per_doc_and_the_same_again(text_checkpoint, tmp_path):
    data = WRITERS["aime24"](tmp_path / "data")
    warm = (
        "--repeats",
        4,
        "--temperature",
        1.0,
        "--top-p",
        0.9,
        "--top-k",
        50,
        "--prompt",
        "plain",
    )
    for out in ("one", "two"):
        run("aime24", text_checkpoint, data, tmp_path / out, *warm)
    log = log_of(tmp_path / "one")
    assert [(row["doc_id"], row["sample"]) for row in log] == [
        (d, s) for d in range(3) for s in range(4)
    ]
    assert len({row["response"] for row in log if row["doc_id"] == 0}) > 1
    assert [row["response"] for row in log] == [row["response"] for row in log_of(tmp_path / "two")]
    numbers = json.loads((tmp_path / "one" / "results.json").read_text())["results"]["aime24"]
    assert (numbers["n"], numbers["repeats"]) == (3, 4)
    assert {
        "acc_avg@4,strict",
        "acc_pass@1,strict",
        "acc_pass@2,strict",
        "acc_pass@4,strict",
    } <= numbers.keys()
    # A run over the finished log asks nothing, and so does one with fewer repeats.
    run(
        "aime24",
        tmp_path_without_weights(text_checkpoint, tmp_path),
        data,
        tmp_path / "one",
        *warm,
        code=2,
    )


def tmp_path_without_weights(checkpoint, tmp_path):
    """The same settings with another model: its answers must not be taken for this one's."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return other


def test_boxes_are_asked_in_the_models_own_convention(tiny_checkpoint, tmp_path, capsys):
    data = WRITERS["refcoco"](tmp_path / "data") / "data" / "testA-00000-of-00001.parquet"
    run("refcoco", tiny_checkpoint, data, tmp_path / "out")
    assert "coordinates: rel1000" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "out" / "results.json").read_text())["config"]["coordinates"]
        == "rel1000"
    )
    run("refcoco", tiny_checkpoint, data, tmp_path / "out", "--prompt", "lmms_rec")
    assert "coordinates: rel1   " in capsys.readouterr().out.replace("\n", "   ")


def test_a_damaged_picture_stops_a_run_by_name_or_is_an_error_row(
    tiny_checkpoint, tmp_path, capsys
):
    data = WRITERS["superclevr"](tmp_path / "data")
    (data / "images" / "superCLEVR_new_000002.png").write_bytes(picture(1)[:60])
    run("superclevr", tiny_checkpoint, data, tmp_path / "out", code=2)
    assert (
        "Doc 2 of superclevr cannot be asked: The embedded image of 60 bytes"
        in capsys.readouterr().err
    )
    run("superclevr", tiny_checkpoint, data, tmp_path / "out", "--allow-errors")
    out = capsys.readouterr().out
    assert "errors 1" in out
    assert "the first is doc_id 2" in out
    (row,) = [row for row in log_of(tmp_path / "out") if row["error"]]
    assert (row["doc_id"], row["finish_reason"]) == (2, "error")


def test_an_image_that_is_too_thin_fails_alone(tiny_checkpoint, tmp_path):
    task = tasks.get("superclevr")()
    docs = task.load(WRITERS["superclevr"](tmp_path))
    (tmp_path / "images" / "superCLEVR_new_000001.png").write_bytes(picture(1, (4000, 8)))
    settings = settings_for(task, max_new_tokens=2, batch_size=4)
    ready, _ = prepare(docs, settings)
    answers = list(model_responder(tiny_checkpoint, settings)(list(ready.values())))
    assert [isinstance(one, Failed) for one in answers] == [False, True, False, False]
    assert "200 times as long as wide" in answers[1].reason


def test_an_unknown_engine_is_named_and_greedy_repeats_are_refused(
    tiny_checkpoint, tmp_path, capsys
):
    data = WRITERS["superclevr"](tmp_path / "data")
    run("superclevr", tiny_checkpoint, data, tmp_path / "out", "--engine", "vlm", code=2)
    assert "There is no rollout engine called 'vlm'. " in capsys.readouterr().err
    run("superclevr", tiny_checkpoint, data, tmp_path / "out", "--repeats", 2, code=2)
    assert "greedy answers do not. Give --temperature" in capsys.readouterr().err
    run("superclevr", tiny_checkpoint, data, tmp_path / "out", "--top-p", 0.5, code=2)
    assert "the temperature is 0: greedy answers are not drawn" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["refcoco", "blink"])
def test_a_training_run_may_be_measured_by_any_benchmark(name, tiny_checkpoint, tmp_path):
    data = WRITERS[name](tmp_path / "data")
    section = {"task": name, "data": str(data), "limit": 4, "max_new_tokens": 2}
    config = load_config(write_config(tmp_path, tiny_checkpoint, eval=section))
    model = Model.load(tiny_checkpoint, device="cpu")
    evaluation = make_evaluation(config, model.processing)
    engine = model.engine(options=EngineOptions(prompts_per_batch=4))
    alone = SimpleNamespace(num_processes=1, process_index=0)
    numbers = evaluation(engine, model.processing, alone, lambda: False).metrics
    assert numbers["rows"] == 4
    assert 0 <= numbers[next(iter(tasks.get(name)().aggregates))] <= 1
