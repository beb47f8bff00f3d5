"""Selecting, asking, resuming: with responders that are plain functions, so no model is needed."""

import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import Failed, Response
from gpg_vl.eval.runner import Answerer, evaluate, evaluate_responder, select
from gpg_vl.eval.settings import (
    generation_sha,
    model_revision,
    prompt_sha,
    render,
    settings_for,
)
from gpg_vl.eval.task import Doc, stratum
from gpg_vl.eval.tasks.cvbench import cvbench
from gpg_vl.models.digest import model_sha
from gpg_vl.prompting import PixelLimits
from gpg_vl.types import Example

TASK = cvbench()
SETTINGS = settings_for(TASK, "official", batch_size=2)
PLACES = [
    ("ADE20K", "Count"),
    ("ADE20K", "Relation"),
    ("COCO", "Count"),
    ("COCO", "Relation"),
    ("Omni3D", "Depth"),
    ("Omni3D", "Distance"),
]


def in_style(**changes):
    return replace(SETTINGS, style=replace(SETTINGS.style, **changes))


def picture(shade):
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade % 256).save(stream, "PNG")
    return stream.getvalue()


def make_docs(n, places=PLACES):
    docs = []
    for i in range(n):
        source, task = places[i % len(places)]
        columns = {"type": "3D" if source == "Omni3D" else "2D", "task": task, "source": source}
        example = Example(
            id=str(i),
            images=(picture(i),),
            prompt=f"Question {i}?",
            answer="(A)" if i % 2 else "(B)",
            choices=("left", "right"),
            task=task,
            meta=columns,
        )
        docs.append(Doc(doc_id=i, example=example))
    return docs


class Model:
    """A responder that always says (A), and remembers what it was asked."""

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def __call__(self, examples):
        for example in examples:
            if self.stop_after is not None and len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(example)
            yield (
                Response(
                    text="(A)", finish_reason="length" if example.id == "3" else "stop", n_tokens=4
                ),
            )


NOBODY = Answerer(make=lambda: pytest.fail("a model was made"), settings=SETTINGS, model_sha="x")


def run(docs, log, model, settings=SETTINGS, sha="weights", **options):
    made = []

    def make():
        made.append(model)
        return model

    scorers = {"strict": TASK.scorers["strict"]}
    answerer = Answerer(make=make, settings=settings, model_sha=sha)
    results = evaluate(TASK, docs, answerer, scorers, log=log, **options)
    assert len(made) <= 1
    return results


# --- which docs ---


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.integers(1, 70),
    st.integers(0, 3),
    st.randoms(),
)
@settings(max_examples=60)
def test_a_limit_takes_every_stratum_in_proportion_whatever_the_order(places, limit, seed, random):
    docs = make_docs(len(places), [PLACES[i] for i in places])
    sizes = Counter(stratum(doc, TASK.strata) for doc in docs)
    taken = select(TASK, docs, limit, seed)
    counts = Counter(stratum(doc, TASK.strata) for doc in taken)
    assert len(taken) == min(len(docs), max(limit, len(sizes)))
    assert counts.keys() == sizes.keys()
    rest, left = len(taken) - len(sizes), len(docs) - len(sizes)
    for name, size in sizes.items():
        assert counts[name] <= size
        assert abs(counts[name] - 1 - (rest * (size - 1) / left if left else 0)) < 1
    shuffled = random.sample(docs, len(docs))
    assert {doc.doc_id for doc in select(TASK, shuffled, limit, seed)} == {
        doc.doc_id for doc in taken
    }
    assert [doc.doc_id for doc in taken] == sorted(doc.doc_id for doc in taken)


def test_the_seed_chooses_the_docs():
    docs = make_docs(600)
    first, again, other = (select(TASK, docs, 60, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert max(doc.doc_id for doc in first) > 500  # no head of the file


def test_a_fraction_is_a_share_of_the_docs():
    docs = make_docs(600)
    assert len(select(TASK, docs, 0.1, 0)) == 60
    assert select(TASK, docs, 1.0, 0) == select(TASK, docs, None, 0) == docs
    assert len(select(TASK, docs, 1, 0)) == len(PLACES)  # at least one of each


@pytest.mark.parametrize("limit", [0, -3, 0.0, 1.5])
def test_a_limit_out_of_range_is_refused(limit):
    with pytest.raises(
        UserError,
        match=f"The limit is {limit}. Allowed is a whole number of docs from 1, or a frac",
    ):
        select(TASK, make_docs(6), limit, 0)


# --- asking and scoring ---


def test_a_responder_is_asked_the_rendered_examples_in_order():
    model, docs = Model(), make_docs(6)
    results = evaluate_responder(TASK, docs, model, SETTINGS, {"strict": TASK.scorers["strict"]})
    assert model.asked == [render(SETTINGS, doc) for doc in docs]
    assert (
        model.asked[2].prompt[0].content.startswith("Question 2?\nAnswer with the option's letter")
    )
    assert results.estimates["strict"]["micro"].value == 0.5
    assert (len(results.rows), results.errors, results.answered["strict"]) == (6, 0, 1.0)
    assert results.truncated == pytest.approx(1 / 6)
    assert results.labels == {"strict": {"A": 6}, "gold": {"A": 3, "B": 3}}


def test_a_responder_that_loses_an_answer_is_a_bug():
    with pytest.raises(ValueError, match="shorter"):
        evaluate_responder(
            TASK, make_docs(3), lambda examples: Model()(examples[:2]), SETTINGS, TASK.scorers
        )


def with_image(doc, name, root):
    return replace(doc, root=root, example=replace(doc.example, images=(name,)))


def test_a_doc_without_its_image_is_an_error_row_and_no_missing_row(tmp_path):
    docs = make_docs(6)
    (tmp_path / "there.png").write_bytes(picture(9))
    docs[1], docs[3] = (
        with_image(docs[1], "there.png", tmp_path),
        with_image(docs[3], "absent.png", tmp_path),
    )
    model = Model()
    results = evaluate_responder(TASK, docs, model, SETTINGS, TASK.scorers)
    assert [example.id for example in model.asked] == ["0", "1", "2", "4", "5"]
    assert model.asked[1].images == (picture(9),)
    row = results.rows[3]
    assert "absent.png' does not exist" in row.prediction.error
    assert all(score.score == 0 and score.parsed is None for score in row.scores.values())
    assert results.errors == 1
    assert results.estimates["strict"]["micro"].value == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"no picture", "is no picture that can be read"),
        (picture(1)[:45], "damaged or incomplete"),
    ],
    ids=["absent", "empty", "no picture", "cut off"],
)
def test_a_damaged_image_stops_the_run_by_name_or_is_an_error_row(tmp_path, content, reason):
    docs, log = make_docs(6), tmp_path / "predictions.jsonl"
    docs[3] = with_image(docs[3], "3.png", tmp_path)
    if content is not None:
        (tmp_path / "3.png").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"Doc 3 of cvbench cannot be asked: .*{reason}.*--allow-errors"
    ):
        evaluate(
            TASK,
            docs,
            NOBODY,
            {},
            log=log,
        )
    assert not log.exists()
    results = run(docs, log, Model(), allow_errors=True)
    assert (results.errors, results.docs, len(log.read_text().splitlines())) == (1, 6, 6)
    assert reason in results.rows[3].prediction.error
    # Asked again, as it is no answer; but the same error is not written twice.
    assert run(docs, log, Model(), allow_errors=True).errors == 1
    assert len(log.read_text().splitlines()) == 6
    (tmp_path / "3.png").write_bytes(picture(3))
    assert run(docs, log, Model()).errors == 0


def test_an_image_path_may_not_leave_its_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    doc = with_image(make_docs(1)[0], "link.png", tmp_path / "data")
    with pytest.raises(UserError, match="outside the image root"):
        run([doc], tmp_path / "p.jsonl", Model())


def test_what_fails_while_it_is_asked_stops_the_run_or_is_an_error_row(tmp_path):
    def half(examples):
        return (
            Failed(reason="too thin") if e.id == "1" else (Response(text="(A)"),) for e in examples
        )

    docs, log = make_docs(3), tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="Doc 1 of cvbench cannot be asked: too thin"):
        run(docs, log, half)
    results = run(docs, log, half, allow_errors=True)
    assert [row.prediction.error for row in results.rows] == [None, "too thin", None]


# --- repeated answers ---


def test_repeated_answers_give_avg_at_k_and_unbiased_pass_at_k(tmp_path):
    right = {"0": "BBBB", "1": "BBBA", "2": "BBAA", "3": "AABB"}  # gold: B, A, B, A

    def model(examples):
        return (
            tuple(Response(text=f"({letter})") for letter in right[example.id])
            for example in examples
        )

    warm = replace(SETTINGS, temperature=1.0, repeats=4)
    results = run(make_docs(4), tmp_path / "p.jsonl", model, settings=warm)
    flat = results.flat()
    assert (flat["n"], flat["repeats"], len(results.rows)) == (4, 4, 16)
    by_hand = {"0": 4, "1": 1, "2": 2, "3": 2}
    assert flat["acc_micro,strict"] == pytest.approx(sum(by_hand.values()) / 16)
    assert flat["acc_pass@1,strict"] == pytest.approx(9 / 16)
    # Two of four drawn: all wrong with chance C(4-c, 2)/6 = 0, 3/6, 1/6, 1/6.
    assert flat["acc_pass@2,strict"] == pytest.approx(1 - (0 + 3 / 6 + 1 / 6 + 1 / 6) / 4)
    assert flat["acc_pass@4,strict"] == 1.0
    assert "acc_avg@4,strict" in flat
    assert [
        json.loads(line)["sample"] for line in (tmp_path / "p.jsonl").read_text().splitlines()
    ] == [0, 1, 2, 3] * 4


def test_a_doc_is_drawn_with_all_of_its_answers(tmp_path):
    def model(examples):  # every doc is all right or all wrong: 50 answers tell no more than one
        return (tuple(Response(text="(A)") for _ in range(50)) for _ in examples)

    once = run(make_docs(24), tmp_path / "one.jsonl", Model())
    often = run(
        make_docs(24),
        tmp_path / "p.jsonl",
        model,
        settings=replace(SETTINGS, temperature=1.0, repeats=50),
    )
    for name in ("micro", "official"):
        assert often.estimates["strict"][name] == once.estimates["strict"][name]
    assert once.estimates["strict"]["micro"].stderr > 0.05


def test_a_model_that_answers_too_few_times_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="Doc 0 was answered 1 times instead of 2"):
        run(
            make_docs(2),
            tmp_path / "p.jsonl",
            Model(),
            settings=replace(SETTINGS, temperature=1.0, repeats=2),
        )


def test_repeats_are_resumed_answer_by_answer(tmp_path):
    log, warm = tmp_path / "p.jsonl", replace(SETTINGS, temperature=1.0, repeats=3)

    def model(examples):
        return (
            tuple(Response(text=f"({letter}) {example.id}") for letter in "ABA")
            for example in examples
        )

    whole = run(make_docs(4), log, model, settings=warm)
    lines = log.read_text().splitlines(keepends=True)
    assert [json.loads(line)["sample"] for line in lines] == [0, 1, 2] * 4
    log.write_text("".join(lines[:5]))  # killed in the middle of doc 1
    again = run(make_docs(4), log, model, settings=warm)
    assert again.flat() == whole.flat()
    assert sorted(log.read_text().splitlines(keepends=True)) == sorted(lines)


# --- resuming ---


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    docs, log = make_docs(8), tmp_path / "predictions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(docs, log, Model(stop_after=3))
    second = Model()
    results = run(docs, log, second)
    assert [example.id for example in second.asked] == ["3", "4", "5", "6", "7"]
    whole = run(docs, tmp_path / "whole.jsonl", Model())
    assert results.estimates == whole.estimates
    assert len(log.read_bytes().splitlines()) == 8
    third = Model()
    assert run(docs, log, third).estimates == whole.estimates
    assert third.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"settings": settings_for(TASK, "plain", batch_size=2)},
        {"settings": replace(SETTINGS, max_new_tokens=9)},
        {"settings": in_style(prefill="<think>")},
        {"settings": in_style(system="Be brief.")},
        {"settings": replace(SETTINGS, limits=PixelLimits(max_pixels=100_000))},
        {"sha": "other weights"},
    ],
)
def test_a_change_that_could_change_an_answer_asks_again(tmp_path, change):
    docs, log = make_docs(4), tmp_path / "predictions.jsonl"
    run(docs, log, Model())
    again = Model()
    run(docs, log, again, **change)
    assert len(again.asked) == 4


def test_a_change_that_cannot_change_an_answer_asks_nothing(tmp_path):
    docs, log = make_docs(4), tmp_path / "predictions.jsonl"
    run(docs, log, Model())
    again = Model()
    run(
        docs, log, again, settings=replace(SETTINGS, batch_size=1, seed=7)
    )  # greedy: nothing is drawn
    assert again.asked == []


def test_a_changed_picture_is_asked_again(tmp_path):
    docs, log = make_docs(4), tmp_path / "predictions.jsonl"
    docs[1] = with_image(docs[1], "1.png", tmp_path)
    for shade, asked in ((77, ["0", "1", "2", "3"]), (78, ["1"])):
        (tmp_path / "1.png").write_bytes(picture(shade))
        model = Model()
        assert run(docs, log, model).errors == 0
        assert [example.id for example in model.asked] == asked


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_eval_runner import *

class Slow(Model):
    def __call__(self, examples):
        for answers in super().__call__(examples):
            time.sleep(0.002)
            yield answers

run(make_docs(400), Path({log!r}), Slow())
"""


def test_a_run_that_is_killed_loses_and_doubles_nothing(tmp_path):
    log, whole = tmp_path / "predictions.jsonl", tmp_path / "whole.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), log=str(log))
    lengths = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        before = time.monotonic()
        start = log.stat().st_size if log.exists() else 0
        while (log.stat().st_size if log.exists() else 0) < start + 20_000:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() - before < 60
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lengths.append(len(log.read_bytes().splitlines()))
    assert 0 < lengths[0] < lengths[1] < lengths[2] < 400
    rest = Model()
    results = run(make_docs(400), log, rest)
    assert 0 < len(rest.asked) <= 400 - lengths[2] + 1  # the line that the last kill may have torn
    assert results.estimates == run(make_docs(400), whole, Model()).estimates
    assert sorted(log.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_a_logged_error_is_asked_again(tmp_path):
    docs, log = make_docs(4), tmp_path / "predictions.jsonl"
    run(docs, log, Model())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[2] |= {"error": "out of memory", "response": "", "finish_reason": "error"}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = Model()
    assert run(docs, log, model).errors == 0
    assert [example.id for example in model.asked] == ["2"]


def test_the_gold_answers_are_proved_before_a_model_is_made(tmp_path):
    doc = make_docs(1)[0]
    doc = replace(doc, example=replace(doc.example, choices=("right", "answer: left")))
    with pytest.raises(UserError, match="does not accept the right answer"):
        evaluate(
            TASK,
            [doc],
            NOBODY,
            {},
            log=tmp_path / "p.jsonl",
        )


# --- digests ---


def test_the_seed_counts_only_where_something_is_drawn():
    warm = replace(SETTINGS, temperature=1.0)
    assert generation_sha(SETTINGS, "m") == generation_sha(replace(SETTINGS, seed=1), "m")
    assert generation_sha(warm, "m") != generation_sha(replace(warm, seed=1), "m")
    assert generation_sha(warm, "m", sample=1) != generation_sha(warm, "m")


def test_the_prompt_digest_covers_text_and_pictures():
    example = render(SETTINGS, make_docs(1)[0])
    digests = {
        prompt_sha(SETTINGS, example, ["a"]),
        prompt_sha(SETTINGS, example, ["b"]),
        prompt_sha(in_style(chat="plain"), example, ["a"]),
        prompt_sha(SETTINGS, render(SETTINGS, make_docs(2)[1]), ["a"]),
    }
    assert len(digests) == 4


def test_new_weights_under_an_old_name_are_noticed(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(20 << 20))  # above 16 MB, so it is sampled
    before = model_sha(tmp_path)
    assert model_sha(tmp_path) == before
    digests = {before}
    for part in range(
        4
    ):  # training changes every weight; a quarter of them is enough, wherever it stands
        changed = bytearray(20 << 20)
        changed[part * (5 << 20) : (part + 1) * (5 << 20)] = b"\x01" * (5 << 20)
        weights.write_bytes(changed)
        digests.add(model_sha(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert len(digests | {model_sha(tmp_path)}) == 6


def test_a_revision_is_known_of_the_hubs_cache_only(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    folders = [
        tmp_path / "snapshots" / commit,
        tmp_path / "snapshots" / "main",
        tmp_path / "runs" / commit,
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folders[0])
    assert [model_revision(folder) for folder in (*folders, tmp_path / "link")] == [
        commit,
        None,
        None,
        commit,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be at least 0"),
        ({"limits": PixelLimits(min_pixels=0)}, "min_pixels is 0; it must be at least 1"),
        (
            {"limits": PixelLimits(min_pixels=500_000)},
            "min_pixels is 500000, above max_pixels, 401408",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings_for(TASK, "official", **changes)


def test_the_record_of_settings_has_one_level():
    record = in_style(system="Be brief.", prefill="<think>").record()
    assert list(record)[:7] == [
        "task",
        "prompt",
        "template",
        "system",
        "chat",
        "prefill",
        "max_new_tokens",
    ]
    assert (record["system"], record["prefill"]) == ("Be brief.", "<think>")
    assert (record["min_pixels"], record["max_pixels"]) == (3136, 401408)
    assert record["max_image_pixels"] == 50_000_000
    assert not any(isinstance(value, dict) for value in record.values())
