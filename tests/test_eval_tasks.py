"""What holds for every benchmark: it loads, its gold answers are accepted, nothing else is, and it is scored end to end."""

import json
import re
from pathlib import Path

import pytest
from benchmark_data import WRITERS

from gpg_vl.data.images import load_image
from gpg_vl.eval.__main__ import main
from gpg_vl.eval.coordinates import with_coordinates
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.runner import check_gold, prepare
from gpg_vl.eval.settings import render_turn, settings_for
from gpg_vl.eval.task import pick_scorers
from gpg_vl.eval.tasks import BUILTIN, tasks

NAMES = sorted(WRITERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of each benchmark, written once."""
    written = {}

    def at(name) -> Path:
        if name not in written:
            folder = tmp_path_factory.mktemp(name.replace("+", "_plus"))
            written[name] = WRITERS[name](folder)
        return written[name]

    return at


def load(name, path, **options):
    task = tasks.get(name)()
    docs = task.load(path, **options)
    return task, with_coordinates(docs, "rel1000", settings_for(task)) if task.boxes else docs


def test_every_benchmark_has_its_test_data():
    assert sorted(BUILTIN) == NAMES
    assert [tasks.get(name)().name for name in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_with_and_without_images(name, data):
    task, docs = load(name, data(name))
    assert [doc.doc_id for doc in docs] == list(range(len(docs)))
    assert len(docs) >= 2
    for doc in docs:
        assert doc.problem is None
        assert doc.gold.strip()
        json.dumps(doc.columns, allow_nan=False)
        for image in doc.example.images:
            load_image(image, root=doc.root, max_pixels=10**6)
    _, bare = load(name, data(name), images=False)
    assert [doc.example.images for doc in bare] == [()] * len(docs)
    assert [(doc.gold, doc.columns, doc.example.prompt) for doc in bare] == [
        (doc.gold, doc.columns, doc.example.prompt) for doc in docs
    ]
    for column in (
        *task.groups,
        *task.strata,
        *task.resample_within,
        *((task.cluster,) if task.cluster else ()),
    ):
        assert all(column in doc.columns for doc in docs), column


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_can_be_rendered(name, data):
    task, docs = load(name, data(name))
    for prompt in task.prompts:
        settings = settings_for(task, prompt)
        ready, void = prepare(docs, settings)
        assert (len(ready), void) == (len(docs), {})
        for doc in docs:
            text = render_turn(settings, doc)
            assert text.strip()
            assert not any(
                mark in text
                for mark in ("{prompt}", "{question}", "{options}", "{letters}", "{instruction}")
            )


@pytest.mark.parametrize("name", NAMES)
def test_every_right_answer_is_accepted(name, data):
    task, docs = load(name, data(name))
    ceilings = check_gold(task, docs, pick_scorers(task, ["all"]))
    assert ceilings.keys() == set(task.scorers)
    assert ceilings["strict"] == pytest.approx(
        sum(map(task.full_marks, docs)) / len(docs), abs=1e-6
    )
    assert {name for name, ceiling in ceilings.items() if ceiling < 1 - 1e-6} <= {
        *task.flawed,
        "strict",
    }
    assert min(ceilings.values()) > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_no_right_answer_scores_above_the_ceiling(name, data):
    task, docs = load(name, data(name))
    ceilings = check_gold(task, docs, pick_scorers(task, ["all"]))
    for scorer, ceiling in ceilings.items():
        for golds in (
            task.gold_responses,
            lambda doc: (*task.gold_responses(doc), *task.published_golds(doc)),
        ):
            for way in range(min(len(golds(doc)) for doc in docs)):
                scores = [task.scorers[scorer](doc, golds(doc)[way]).score for doc in docs]
                assert sum(scores) / len(scores) <= ceiling + 1e-6, (scorer, way)


# Answers that no strict scorer may credit, whatever the question; in the last two the right one is inside of the reasoning.
HOLLOW = (
    "",
    " ",
    "<answer></answer>",
    "a",
    "A or B or C",
    "I cannot tell.",
    "<think>{gold}",
    "<think>{gold}</think>",
)


@pytest.mark.parametrize("name", NAMES)
def test_strict_credits_no_hollow_answer(name, data):
    task, docs = load(name, data(name), images=False)
    for doc in docs:
        gold = re.sub("<think>.*?</think>|</?answer>", "", task.gold_responses(doc)[0].text)
        for hollow in HOLLOW:
            score = task.scorers["strict"](doc, Response(text=hollow.replace("{gold}", gold)))
            assert score.score == 0, (doc, hollow)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_in_range_and_void_without_an_answer(name, data):
    task, docs = load(name, data(name), images=False)
    texts = [
        "",
        "<answer>",
        "(1,2),(3,4)",
        "B",
        "12",
        "\\boxed{",
        "[1, 2, 3, 4]",
        "The answer is 7.",
        "x" * 3000,
        "\x00",
    ]
    for doc in docs:
        for scorer in task.scorers.values():
            if scorer in [task.scorers[masked] for masked in task.needs_mask]:
                continue
            for text in texts:
                score = scorer(doc, Response(text=text))
                assert 0 <= score.score <= 1
                assert (
                    score.parsed is not None or score.score == 0 or task.name == "mathvista"
                )  # lmms guesses there


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_score_everything_end_to_end_and_the_samples_are_scored_again_alone(
    name, data, tmp_path, capsys
):
    task, docs = load(name, data(name), images=False)
    file, out = tmp_path / "p.jsonl", tmp_path / "out"
    rows = [{"doc_id": doc.doc_id, "response": task.gold_responses(doc)[0].text} for doc in docs]
    rows[-1]["response"] = "no idea"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [
        name,
        "--predictions",
        str(file),
        "--data",
        str(data(name)),
        "--scorer",
        "all",
        "--output",
        str(out),
    ]
    assert main(arguments) == 0
    numbers = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"][name]
    samples = out / f"samples_{name}.jsonl"
    scored = [
        json.loads(line)["scores"]["strict"]["score"]
        for line in samples.read_text(encoding="utf-8").splitlines()
    ]
    assert scored == pytest.approx([*map(task.full_marks, docs[:-1]), 0], abs=1e-6)
    assert numbers["n"] == len(docs)
    assert numbers["errors"] == 0
    assert 0 < numbers["acc,strict"] < 1
    again = tmp_path / "again"
    assert (
        main([name, "--predictions", str(samples), "--scorer", "all", "--output", str(again)]) == 0
    )
    assert (
        json.loads((again / "results.json").read_text(encoding="utf-8"))["results"][name] == numbers
    )
    assert capsys.readouterr().err == ""
