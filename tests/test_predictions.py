"""The log of a run survives being stopped anywhere, and a file of others is read in full or refused."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpg_vl.errors import UserError
from gpg_vl.eval import predictions
from gpg_vl.eval.predictions import (
    Failed,
    Key,
    Prediction,
    Response,
    appending,
    predictions_of,
    read_log,
    read_predictions,
    to_record,
)

KEY = Key("cvbench", 0, "prompt", "generation")


def said(doc_id, text, **changes):
    response = Response(
        text=text, **{"finish_reason": "stop", "n_tokens": 3, "prefill": "", **changes}
    )
    return Prediction(doc_id=doc_id, response=response)


def record(doc_id, text="(A)", key=KEY, **changes):
    return to_record(key._replace(doc_id=doc_id), said(doc_id, text, **changes), {"gold": "(A)"})


def failed(doc_id, reason):
    (prediction,) = predictions_of(doc_id, Failed(reason=reason), 1)
    return prediction


def write(file, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
    return file


def read(file, known=range(3), needed=None, **options):
    return read_predictions(
        file,
        task="cvbench",
        known=set(known),
        needed=list(known if needed is None else needed),
        **options,
    )


# --- the log of a run ---


@given(st.text(), st.sampled_from(["stop", "length"]), st.sampled_from(["", "<think>"]))
def test_a_response_comes_back_as_it_was(tmp_path_factory, text, finish_reason, prefill):
    file = tmp_path_factory.mktemp("log") / "predictions.jsonl"
    prediction = said(0, text, finish_reason=finish_reason, prefill=prefill)
    with appending(file) as append:
        append(to_record(KEY, prediction, {}))
    assert read_log(file) == {KEY: prediction}
    assert read(file, known=[0]) == {0: (prediction,)}


def test_there_is_nothing_in_a_log_that_does_not_exist(tmp_path):
    assert read_log(tmp_path / "absent.jsonl") == {}


def test_a_record_can_be_read_before_the_writer_is_done(tmp_path):
    file = tmp_path / "new" / "predictions.jsonl"
    with appending(file) as append:
        append(record(0))
        assert len(read_log(file)) == 1
        append(record(1))
        assert len(read_log(file)) == 2


def test_the_log_says_what_the_scorers_need(tmp_path):
    prediction = said(0, "(B)", finish_reason="length", prefill="<think>")
    assert to_record(KEY, prediction, {"gold": "(B)", "source": "COCO"}) == {
        "task": "cvbench",
        "doc_id": 0,
        "prompt_sha": "prompt",
        "gen_sha": "generation",
        "sample": 0,
        "response": "(B)",
        "prefill": "<think>",
        "finish_reason": "length",
        "n_tokens": 3,
        "error": None,
        "doc": {"gold": "(B)", "source": "COCO"},
    }
    assert to_record(KEY, failed(0, "no image"), {})["finish_reason"] == "error"


def test_a_log_cut_anywhere_is_read_and_continued(tmp_path):
    whole = (
        json.dumps(record(0, "first ✓"))
        + "\n"
        + json.dumps(record(1, "second ✓"), ensure_ascii=False)
        + "\n"
    ).encode()
    first_line = whole.index(b"\n")
    edges = {end + step for end in (0, first_line, len(whole) - 1) for step in (-1, 0, 1)}
    for cut in sorted((edges & set(range(len(whole) + 1))) | set(range(0, len(whole), 7))):
        file = tmp_path / f"{cut}.jsonl"
        file.write_bytes(whole[:cut])
        known = {key.doc_id for key in read_log(file)}
        assert known == {i for i, end in ((0, first_line), (1, len(whole) - 1)) if cut >= end}, cut
        with appending(file) as append:
            append(record(2))
        assert {key.doc_id for key in read_log(file)} == known | {2}, cut
        assert len(file.read_bytes().splitlines()) == len(known) + 1


def test_damage_before_the_end_of_a_log_is_an_error_that_names_the_line(tmp_path):
    file = write(tmp_path / "log.jsonl", record(0), '{"task": "cvbe', record(1))
    with pytest.raises(UserError, match=r"log.jsonl, line 2: the line is not a JSON object"):
        read_log(file)


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MAX_LINE", 1 << 20)
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"a": "' + b"x" * (8 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"log\.jsonl, line 1: the line is longer than 1 MiB"):
        read_log(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_the_last_record_of_a_key_wins_and_another_key_is_another_record(tmp_path):
    other = KEY._replace(gen_sha="longer answers")
    file = write(
        tmp_path / "log.jsonl",
        to_record(KEY, failed(0, "image lost"), {}),
        record(0, "(B)"),
        record(0, "(C)", key=other),
    )
    assert {key: prediction.response.text for key, prediction in read_log(file).items()} == {
        KEY: "(B)",
        other: "(C)",
    }


# --- a file to be scored ---


def test_the_simple_form_is_enough(tmp_path):
    file = write(
        tmp_path / "p.jsonl",
        {"doc_id": 2, "response": "c"},
        {"doc_id": 0, "response": ""},
        "",
        {
            "doc_id": 1,
            "response": "b",
            "anything": ["else"],
            "n_tokens": 7,
            "finish_reason": "length",
        },
    )
    predictions = {i: one for i, (one,) in read(file, prefill="<think>").items()}
    assert [predictions[i].response.text for i in range(3)] == ["", "b", "c"]
    assert predictions[0].response == Response(
        text="", finish_reason=None, n_tokens=None, prefill="<think>"
    )
    assert predictions[1].response == Response(
        text="b", finish_reason="length", n_tokens=7, prefill="<think>"
    )


def test_a_row_that_records_its_prefill_is_believed(tmp_path):
    file = write(tmp_path / "p.jsonl", {"doc_id": 0, "response": "x", "prefill": ""})
    assert read(file, known=[0], prefill="<think>")[0][0].response.prefill == ""


@pytest.mark.parametrize(
    ("prefill", "inside"),
    [
        ("", False),
        ("<think>", True),
        ("<think>\n\n</think>\n", False),
        ("Sure. <think>\nFirst", True),
        ("<think>a</think><think>", True),
    ],
)
def test_a_response_knows_whether_it_starts_inside_the_reasoning(prefill, inside):
    assert (
        Response(text="", finish_reason="stop", n_tokens=0, prefill=prefill).prefilled_think
        is inside
    )


def test_only_the_docs_that_are_needed_must_be_there(tmp_path):
    file = write(
        tmp_path / "p.jsonl", {"doc_id": 4, "response": "e"}, {"doc_id": 1, "response": "b"}
    )
    assert list(read(file, known=range(6), needed=[1])) == [1]
    with pytest.raises(UserError, match=r"no response for 2 of 3 docs \(doc_id 2, 3\).*--limit"):
        read(file, known=range(6), needed=[1, 2, 3])
    with pytest.raises(
        UserError, match=r"no response for 98 of 100 docs \(doc_id 0, 2, 3, 5, 6, \.\.\.\)"
    ):
        read(file, known=range(100))


def test_where_docs_may_be_missing_those_that_are_there_whole_are_read(tmp_path):
    rows = [
        {"doc_id": i, "sample": k, "response": "x"}
        for i, k in ((0, 0), (0, 1), (1, 1), (3, 0), (3, 1))
    ]
    file = write(tmp_path / "p.jsonl", *rows)
    found = read(file, known=range(5), needed=[0, 1, 2], repeats=2, partial=True)
    assert {doc_id: len(samples) for doc_id, samples in found.items()} == {
        0: 2
    }  # of doc 1 a sample is missing
    with pytest.raises(
        UserError,
        match=r"no response for 3 of 4 samples \(doc_id 1 sample 0, 2 sample 0, 2 sample 1\)",
    ):
        read(file, known=range(5), needed=[1, 2], repeats=2, partial=True)
    with pytest.raises(UserError, match="there is no doc_id 3"):
        read(file, known=range(3), repeats=2, partial=True)


GOOD = {"doc_id": 0, "response": "a"}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "line 2: the line is not a JSON object"),
        ("[0]", "line 2: the line is not a JSON object"),
        ("null", "line 2: the line is not a JSON object"),
        ("[" * 100_000, "line 2: the line is not a JSON object"),
        ('{"doc_id": ' + "9" * 5000 + "}", "line 2: the line is not a JSON object"),
        ({"doc_id": 1}, r"line 2: there is no 'response' in \['doc_id'\]"),
        ({"response": "b"}, r"line 2: there is no 'doc_id' in \['response'\]"),
        ({"doc_id": "1", "response": "b"}, "line 2: 'doc_id' is '1'. Allowed is int"),
        ({"doc_id": True, "response": "b"}, "line 2: 'doc_id' is True. Allowed is int"),
        ({"doc_id": 1.0, "response": "b"}, "line 2: 'doc_id' is 1.0. Allowed is int"),
        ({"doc_id": 1, "response": None}, "line 2: 'response' is None. Allowed is str"),
        ({"doc_id": 1, "response": ["b"]}, "line 2: 'response' is .*. Allowed is str"),
        (
            {"doc_id": 1, "response": "b", "finish_reason": "eos"},
            "line 2: finish_reason is 'eos'. Allowed are 'stop'",
        ),
        (
            {"doc_id": 9, "response": "b"},
            "line 2: there is no doc_id 9 in the data, which has 3 docs",
        ),
        ({"doc_id": -1, "response": "b"}, "line 2: there is no doc_id -1"),
        (
            {"doc_id": 0, "response": "b"},
            "line 2: doc_id 0 was answered in line 1 already. One response per doc",
        ),
        (
            {"doc_id": 1, "response": "b", "task": "refcoco"},
            "line 2: the row is of the task 'refcoco', but 'cvbench'",
        ),
        ({"doc_id": 1, "response": "b", "gen_sha": "x"}, "line 2: there is no 'task'"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, second, message):
    file = write(tmp_path / "p.jsonl", GOOD, second, {"doc_id": 2, "response": "c"})
    with pytest.raises(UserError, match=rf"p\.jsonl, {message}"):
        read(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl cannot be read: No such file"):
        read(tmp_path / "absent.jsonl")


def test_a_log_is_a_predictions_file(tmp_path):
    file = write(
        tmp_path / "log.jsonl",
        record(0, "(B)"),
        to_record(KEY._replace(doc_id=1), failed(1, "lost"), {}),
        record(0, "(C)"),
        record(1, "(D)", key=KEY._replace(prompt_sha="with image")),
    )
    predictions = {i: one for i, (one,) in read(file, known=range(2)).items()}
    assert [predictions[i].response.text for i in range(2)] == ["(C)", "(D)"]
    assert all(prediction.error is None for prediction in predictions.values())


def test_two_runs_in_one_log_are_not_mixed(tmp_path):
    file = write(
        tmp_path / "log.jsonl",
        record(0, "(B)"),
        record(0, "(C)", key=KEY._replace(gen_sha="other")),
    )
    with pytest.raises(
        UserError, match="line 2: doc_id 0 was answered in line 1 already with another prompt"
    ):
        read(file, known=[0])


def test_an_error_is_read_as_one(tmp_path):
    file = write(
        tmp_path / "p.jsonl",
        {"doc_id": 0, "error": "out of memory"},
        {"doc_id": 1, "response": "half", "finish_reason": "error"},
    )
    predictions = {i: one for i, (one,) in read(file, known=range(2)).items()}
    assert predictions[0].error == "out of memory"
    assert predictions[1].error == "no reason was recorded"
    assert predictions[1].response.finish_reason is None
