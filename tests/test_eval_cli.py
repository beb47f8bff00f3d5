"""`python -m gpg_vl.eval` as a user runs it: scoring files end to end, and every mistake as one message."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import run_python

from gpg_vl.eval.__main__ import main
from gpg_vl.pipes import run_until_pipe_breaks
from gpg_vl.quickstart import scenes

N = 24
ROWS = list(scenes.rows(seed=9, number=N))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "test.parquet")
    return folder


def responses(right):
    """Right answers for the first `right` docs, wrong letters for the rest."""
    for doc_id, row in enumerate(ROWS):
        wrong = "(B)" if row["answer"] == "(A)" else "(A)"
        yield {"doc_id": doc_id, "response": row["answer"] if doc_id < right else wrong}


def write(file: Path, rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run(*arguments, cwd=None, code=0):
    done = run_python("-W", "error", "-m", "gpg_vl.eval", *arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


# --- it works ---


def test_a_file_is_scored_end_to_end(data, tmp_path):
    file = write(tmp_path / "p.jsonl", responses(18))
    out = tmp_path / "out"
    done = run(
        "cvbench",
        "--predictions",
        file,
        "--data",
        data,
        "--scorer",
        "all",
        "--output",
        out,
        "--seed",
        3,
    )
    assert done.stderr == ""
    tree = json.loads((out / "results.json").read_text(encoding="utf-8"))
    numbers = tree["results"]["cvbench"]
    assert numbers["acc_micro,strict"] == numbers["acc_micro,cambrian"] == 18 / 24
    right = {
        source: [i < 18 for i, row in enumerate(ROWS) if row["source"] == source]
        for source in ("drawn 2D bright", "drawn 2D dark", "drawn 3D")
    }
    by_hand = {source: sum(marks) / len(marks) for source, marks in right.items()}
    assert numbers["acc_official,strict"] == pytest.approx(
        ((by_hand["drawn 2D bright"] + by_hand["drawn 2D dark"]) / 2 + by_hand["drawn 3D"]) / 2
    )
    assert 0 < numbers["acc_official_stderr,strict"] < 0.2
    low, high = numbers["acc_micro_ci95,strict"]
    assert low < 0.75 < high
    assert (numbers["n"], numbers["answered"], numbers["truncated"], numbers["errors"]) == (
        N,
        1.0,
        None,
        0,
    )
    assert numbers["chance"] == pytest.approx((6 / 4 + 18 / 2) / 24)
    assert tree["n-samples"] == {"cvbench": {"original": N, "effective": N}}
    assert tree["versions"] == {"cvbench": "1"}
    assert tree["config"]["prompt"] is None  # nobody said how these responses were asked for
    assert list(tree["config"]["data"]) == [str(data / "test.parquet")]
    samples = [
        json.loads(line)
        for line in (out / "samples_cvbench.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [sample["doc_id"] for sample in samples] == list(range(N))
    assert samples[20]["scores"]["strict"] == {
        "parsed": samples[20]["response"][1],
        "answered": True,
        "score": 0.0,
        "notes": "",
    }
    assert samples[0]["doc"]["columns"]["question"] == ROWS[0]["question"]
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "samples_cvbench.jsonl"]


def test_the_table_names_every_aggregate_and_its_interval(data, tmp_path):
    done = run(
        "cvbench", "--predictions", write(tmp_path / "p.jsonl", responses(24)), "--data", data
    )
    for name in (
        "official",
        "micro",
        "2D",
        "3D",
        "Count",
        "Relation",
        "Depth",
        "Distance",
        "no rows for: ADE20K, COCO, Omni3D",
        "strict",
        "chance",
        "answered",
        "errors 0",
        "truncated not recorded",
        "prompt: not given",
        "1000 resamples",
    ):
        assert name in done.stdout
    assert "100.00 ± 0.00 [100.00, 100.00]" in done.stdout
    assert "the data has 24 rows, the published benchmark 2638" in done.stdout


def test_scoring_a_file_imports_no_torch(data, tmp_path):
    file = write(tmp_path / "p.jsonl", responses(24))
    code = (
        "import sys; from gpg_vl.eval.__main__ import main; "
        f"code = main(['cvbench', '--predictions', {str(file)!r}, '--data', {str(data)!r}]); "
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_same_seed_gives_the_same_results_and_another_one_another_interval(data, tmp_path):
    file = write(tmp_path / "p.jsonl", responses(11))
    numbers = []
    for seed in (1, 1, 2):
        assert (
            main(
                [
                    "cvbench",
                    "--predictions",
                    str(file),
                    "--data",
                    str(data),
                    "--seed",
                    str(seed),
                    "--output",
                    str(tmp_path / "out"),
                ]
            )
            == 0
        )
        numbers.append(
            json.loads((tmp_path / "out" / "results.json").read_text())["results"]["cvbench"]
        )
    assert numbers[0] == numbers[1]
    assert numbers[0]["acc_micro,strict"] == numbers[2]["acc_micro,strict"]
    assert numbers[0]["acc_micro_stderr,strict"] != numbers[2]["acc_micro_stderr,strict"]


def test_a_limit_takes_rows_of_every_stratum(data, tmp_path):
    file = write(tmp_path / "p.jsonl", responses(24))
    out = tmp_path / "out"
    done = run("cvbench", "--predictions", file, "--data", data, "--limit", 12, "--output", out)
    assert "note: 12 of 24 rows, drawn by --limit and --seed 0." in done.stdout
    samples = [
        json.loads(line)["doc"]["columns"]
        for line in (out / "samples_cvbench.jsonl").read_text().splitlines()
    ]
    assert len(samples) == 12
    assert {(doc["source"], doc["task"]) for doc in samples} == {
        (row["source"], row["task"]) for row in ROWS
    }
    assert json.loads((out / "results.json").read_text())["n-samples"]["cvbench"] == {
        "original": 24,
        "effective": 12,
    }


def numbers_of(out, task="cvbench"):
    return json.loads((out / "results.json").read_text())["results"][task]


def test_with_a_limit_the_rows_that_have_an_answer_are_scored(data, tmp_path, here):
    out = tmp_path / "out"
    ten = list(responses(20))[14:]  # 6 right, 4 wrong
    arguments = ("cvbench", "--data", data, "--output", out, "--predictions")
    done = here(*arguments, write(tmp_path / "ten.jsonl", ten), "--limit", 12)
    assert "note: 10 of 12 rows have an answer; the others are left out." in done.stdout
    assert (numbers_of(out)["n"], numbers_of(out)["acc_micro,strict"]) == (10, 0.6)
    assert json.loads((out / "results.json").read_text())["n-samples"]["cvbench"] == {
        "original": 24,
        "effective": 10,
    }
    # Half of 24 rows are 12 as well; more than there are is all of them.
    for limit, asked in ((0.5, 12), (24, 24), (1000, 24)):
        assert (
            f"note: 10 of {asked} rows have"
            in here(*arguments, tmp_path / "ten.jsonl", "--limit", limit).stdout
        )
    assert (
        "no response for 14 of 24 docs" in here(*arguments, tmp_path / "ten.jsonl", code=2).stderr
    )
    none = here(*arguments, write(tmp_path / "none.jsonl", []), "--limit", 12, code=2)
    assert "has no response for 24 of 24 docs" in none.stderr
    double = here(
        *arguments, write(tmp_path / "double.jsonl", ten + ten[:1]), "--limit", 12, code=2
    )
    assert "line 11: doc_id 14 was answered in line 1 already" in double.stderr
    more = here(
        *arguments,
        write(tmp_path / "more.jsonl", [{"doc_id": 24, "response": "x"}]),
        "--limit",
        12,
        code=2,
    )
    assert "there is no doc_id 24 in the data" in more.stderr


def test_with_a_limit_the_seed_chooses_among_more_rows(data, tmp_path, here):
    def taken(file, seed):
        out = tmp_path / "out"
        here(
            "cvbench",
            "--predictions",
            file,
            "--data",
            data,
            "--limit",
            12,
            "--seed",
            seed,
            "--output",
            out,
        )
        return [
            json.loads(line)["doc_id"]
            for line in (out / "samples_cvbench.jsonl").read_text().splitlines()
        ]

    whole, some = list(responses(24)), write(tmp_path / "some.jsonl", list(responses(24))[4:])
    assert [len(taken(some, seed)) for seed in (0, 1)] == [12, 12]
    assert taken(some, 0) == taken(some, 0) != taken(some, 1)
    assert min(taken(some, 0)) >= 4
    first = taken(write(tmp_path / "whole.jsonl", whole), 0)
    assert taken(write(tmp_path / "drawn.jsonl", [whole[doc_id] for doc_id in first]), 0) == first


def test_an_intersection_is_compared_on_the_rows_of_both(data, tmp_path, here):
    first = write(tmp_path / "a.jsonl", list(responses(20))[:22])
    second = write(tmp_path / "b.jsonl", list(responses(12))[4:])
    out = tmp_path / "out"
    arguments = (
        "cvbench",
        "--predictions",
        first,
        "--data",
        data,
        "--output",
        out,
        "--compare",
        second,
    )
    assert "no response for 2 of 24 docs" in here(*arguments, code=2).stderr
    done = here(*arguments, "--intersect")
    assert "note: 18 of 24 rows are in both; the others are left out." in done.stdout
    assert "on the same 18 rows" in done.stdout
    comparison = json.loads((out / "results.json").read_text())["comparison"]
    assert (comparison["rows"], numbers_of(out)["n"]) == (18, 18)
    # Rows 4 to 21: the first is right up to 19, the second up to 11.
    assert numbers_of(out)["acc_micro,strict"] == pytest.approx(16 / 18)
    assert comparison["strict"]["diff_micro"]["value"] == pytest.approx(8 / 18)
    assert comparison["strict"]["mcnemar"]["only_this"] == 8
    whole = write(tmp_path / "whole.jsonl", responses(24))
    assert "no response for 4 of 24" in here(*arguments[:2], whole, *arguments[3:], code=2).stderr
    assert (
        "20 of 24 rows are in both"
        in here(*arguments[:2], whole, *arguments[3:], "--intersect").stdout
    )
    apart = write(tmp_path / "apart.jsonl", list(responses(24))[22:])
    assert "no response for" in here(*arguments[:-1], apart, "--intersect", code=2).stderr
    assert "nothing to compare with" in here(*arguments[:-2], "--intersect", code=2).stderr


def test_a_comparison_prints_the_difference_and_its_test(data, tmp_path):
    better, worse = (
        write(tmp_path / "a.jsonl", responses(20)),
        write(tmp_path / "b.jsonl", responses(12)),
    )
    out = tmp_path / "out"
    done = run(
        "cvbench", "--predictions", better, "--data", data, "--compare", worse, "--output", out
    )
    assert "8 / 0" in done.stdout
    assert "+33.33 ±" in done.stdout
    strict = json.loads((out / "results.json").read_text())["comparison"]["strict"]
    assert strict["diff_micro"]["value"] == pytest.approx(8 / 24)
    assert strict["diff_micro"]["ci95"][0] > 0
    assert strict["mcnemar"] == {"only_this": 8, "only_other": 0, "p_value": 2 / 2**8}


def test_the_prompt_tells_whether_responses_start_inside_the_reasoning(data, tmp_path):
    rows = [{"doc_id": i, "response": f"hm {row['answer']}"} for i, row in enumerate(ROWS)]
    file, out = write(tmp_path / "p.jsonl", rows), tmp_path / "out"
    arguments = [
        "cvbench",
        "--predictions",
        file,
        "--data",
        data,
        "--scorer",
        "strict",
        "--output",
        out,
    ]
    run(*arguments)
    assert (
        json.loads((out / "results.json").read_text())["results"]["cvbench"]["acc_micro,strict"]
        == 1.0
    )
    done = run(*arguments, "--prompt", "visualthinker_base")
    numbers = json.loads((out / "results.json").read_text())["results"]["cvbench"]
    assert (numbers["acc_micro,strict"], numbers["answered,strict"]) == (0.0, 0.0)
    assert (
        "warning: strict finds an answer in only 0.0% of the responses (prompt: visualthinker_base)"
        in done.stdout
    )


def test_rows_with_errors_count_as_wrong_and_are_told_by_the_exit_code(data, tmp_path):
    rows = [
        {"doc_id": 5, "error": "out of memory"} if row["doc_id"] == 5 else row
        for row in responses(24)
    ]
    done = run(
        "cvbench", "--predictions", write(tmp_path / "p.jsonl", rows), "--data", data, code=1
    )
    assert "errors 1" in done.stdout
    assert "the first is doc_id 5: out of memory" in done.stdout
    assert "95.83 ±" in done.stdout  # 23 of 24


def test_truncation_is_a_share_of_the_rows_that_record_how_they_ended(data, tmp_path):
    endings = ["length", "stop", "stop", "stop"]
    rows = [
        row | ({"finish_reason": endings[row["doc_id"]]} if row["doc_id"] < 4 else {})
        for row in responses(24)
    ]
    done = run("cvbench", "--predictions", write(tmp_path / "p.jsonl", rows), "--data", data)
    assert "truncated 25.00%" in done.stdout


def test_the_list_shows_what_there_is_to_choose_from():
    done = run("cvbench", "--list")
    for name in (
        "cvbench: CV-Bench",
        "official (default)",
        "visualthinker_base",
        "strict (default)",
        "cambrian",
        "test 2638",
        "nyu-visionx/CV-Bench",
        "50 %",
    ):
        assert name in done.stdout


def test_help_shows_examples_and_exit_codes():
    out = run("--help").stdout
    for text in ("--predictions mine.jsonl", "--compare theirs.jsonl", '{"doc_id"', "exit code: 0"):
        assert text in out


def test_a_task_of_ones_own_is_named_by_its_file(data, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom gpg_vl.eval.tasks.cvbench import cvbench\n"
        "def small():\n    return replace(cvbench(), name='small', sizes={'test': 24})\n",
        encoding="utf-8",
    )
    file = write(tmp_path / "p.jsonl", responses(24))
    done = run("mine.py:small", "--predictions", file, "--data", data, cwd=tmp_path)
    assert done.stdout.startswith("small   ")
    assert "published benchmark" not in done.stdout


# --- more ways to measure ---


@pytest.fixture
def here(capsys):
    """The program in this process: as quick as the scoring itself."""

    def call(*arguments, code=0):
        got = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert got == code, said.out + said.err
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    return call


def test_repeated_answers_of_a_file(data, tmp_path, here):
    rows = [
        {"doc_id": i, "sample": k, "response": row["answer"] if (i + k) % 2 else "(F)"}
        for i, row in enumerate(ROWS)
        for k in range(2)
    ]
    file, out = write(tmp_path / "p.jsonl", rows), tmp_path / "out"
    done = here("cvbench", "--predictions", file, "--data", data, "--repeats", 2, "--output", out)
    assert "n = 24 x 2 answers (avg@2)" in done.stdout
    assert "pass@2" in done.stdout
    numbers = json.loads((out / "results.json").read_text())["results"]["cvbench"]
    assert (
        numbers["acc_micro,strict"],
        numbers["acc_pass@1,strict"],
        numbers["acc_pass@2,strict"],
    ) == (0.5, 0.5, 1.0)
    other = write(tmp_path / "q.jsonl", [row | {"response": "(F)"} for row in rows])
    done = here(
        "cvbench",
        "--predictions",
        file,
        "--data",
        data,
        "--repeats",
        2,
        "--compare",
        other,
        "--output",
        out,
    )
    assert "+50.00" in done.stdout  # paired by doc and sample
    comparison = json.loads((out / "results.json").read_text())["comparison"]["strict"]
    assert comparison["diff_micro"]["value"] == 0.5
    assert "mcnemar" not in comparison  # which has no meaning for several answers to a doc
    done = here("cvbench", "--predictions", file, "--data", data, code=2)
    assert "the row is sample 1 of doc_id 0, but --repeats is 1" in done.stderr
    done = here("cvbench", "--predictions", file, "--data", data, "--repeats", 3, code=2)
    assert "no response for 24 of 72 samples (doc_id 0 sample 2, 1 sample 2" in done.stderr
    double = write(tmp_path / "d.jsonl", [*rows, rows[3]])
    done = here("cvbench", "--predictions", double, "--data", data, "--repeats", 2, code=2)
    assert "line 49: sample 1 of doc_id 1 was answered in line 4 already" in done.stderr


def test_a_samples_file_of_lmms_eval_is_scored(data, tmp_path, here):
    rows = [
        {"doc_id": i, "target": "x", "resps": [[row["answer"]]], "filtered_resps": ["x"]}
        for i, row in enumerate(ROWS)
    ]
    done = here("cvbench", "--predictions", write(tmp_path / "p.jsonl", rows), "--data", data)
    assert "100.00 ± 0.00" in done.stdout
    twice = [row | {"resps": [row["resps"][0] * 2]} for row in rows]
    done = here(
        "cvbench",
        "--predictions",
        write(tmp_path / "p.jsonl", twice),
        "--data",
        data,
        "--repeats",
        2,
    )
    assert "x 2 answers" in done.stdout
    none = [row | {"resps": []} for row in rows]
    done = here(
        "cvbench", "--predictions", write(tmp_path / "p.jsonl", none), "--data", data, code=2
    )
    assert "line 1: 'response' is None. Allowed is str" in done.stderr


def test_the_answers_on_which_scorers_disagree_are_shown(data, tmp_path, here):
    rows = [row | {"response": f"<answer>{row['response']}</answer>"} for row in responses(18)]
    done = here(
        "cvbench",
        "--predictions",
        write(tmp_path / "p.jsonl", rows),
        "--data",
        data,
        "--scorer",
        "strict,lmms",
    )
    assert "scorers disagree on 18 of 24 answers" in done.stdout
    line = next(line for line in done.stdout.splitlines() if "doc 0, gold" in line)
    assert [cell.strip() for cell in line.split("│")[1:4]] == ["18", "1", "0"]
    agreed = here(
        "cvbench", "--predictions", write(tmp_path / "p.jsonl", responses(18)), "--data", data
    )
    assert "disagree" not in agreed.stdout


def test_a_samples_file_is_scored_again_without_the_data(data, tmp_path, here):
    file, out = write(tmp_path / "p.jsonl", responses(18)), tmp_path / "out"
    here("cvbench", "--predictions", file, "--data", data, "--output", out)
    samples = out / "samples_cvbench.jsonl"
    done = here("cvbench", "--predictions", samples, "--scorer", "lmms")
    assert "75.00 ±" in done.stdout
    done = here("geoqa", "--predictions", samples, code=2)
    assert "the row is of the task 'cvbench', but 'geoqa' is evaluated" in done.stderr


def test_errors_may_be_allowed(data, tmp_path, here):
    rows = [
        {"doc_id": 5, "error": "out of memory"} if row["doc_id"] == 5 else row
        for row in responses(24)
    ]
    file = write(tmp_path / "p.jsonl", rows)
    here("cvbench", "--predictions", file, "--data", data, code=1)
    assert (
        "errors 1"
        in here("cvbench", "--predictions", file, "--data", data, "--allow-errors").stdout
    )


def test_a_gold_that_strict_refuses_stops_everything_or_is_an_error_row(tmp_path, here):
    from benchmark_data import WRITERS

    folder = WRITERS["geoqa"](tmp_path / "data")
    file = folder / "geoqa_test_prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[2]["ground_truth"] = "see the figure"
    write(file, rows)
    answers = write(
        tmp_path / "p.jsonl",
        [{"doc_id": i, "response": row["ground_truth"]} for i, row in enumerate(rows)],
    )
    done = here("geoqa", "--predictions", answers, "--data", folder, code=2)
    assert "Doc 2 of geoqa: the scorer 'strict' does not accept the right answer" in done.stderr
    done = here("geoqa", "--predictions", answers, "--data", folder, "--allow-errors")
    assert "errors 1" in done.stdout
    assert (
        "the first is doc_id 2: Doc 2 of geoqa: the scorer 'strict' does not accept" in done.stdout
    )


def test_a_gold_that_strict_alone_refuses_counts_under_the_published_rule(tmp_path, here):
    from benchmark_data import WRITERS

    folder, out = WRITERS["geoqa"](tmp_path / "data"), tmp_path / "out"
    file = folder / "geoqa_test_prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["ground_truth"] = "5 or 6"  # which of the two? the published rule takes the last number
    write(file, rows)
    answers = write(
        tmp_path / "p.jsonl",
        [{"doc_id": i, "response": "6" if i == 0 else "?"} for i in range(len(rows))],
    )
    arguments = (
        "geoqa",
        "--predictions",
        answers,
        "--data",
        folder,
        "--scorer",
        "strict,official",
        "--output",
        out,
    )
    assert "Doc 0 of geoqa: the scorer 'strict' does not accept" in here(*arguments, code=2).stderr
    assert "errors 1" in here(*arguments, "--allow-errors").stdout
    (first, *_) = (
        json.loads(line) for line in (out / "samples_geoqa.jsonl").read_text().splitlines()
    )
    assert first["scores"]["official"]["score"] == 1
    assert first["scores"]["strict"]["score"] == 0
    assert first["scores"]["strict"]["notes"].startswith(
        "error: Doc 0 of geoqa: the scorer 'strict' does not accept"
    )
    assert first["response"] == "6"
    done = here(
        "geoqa",
        "--predictions",
        out / "samples_geoqa.jsonl",
        "--scorer",
        "official",
        "--allow-errors",
    )
    assert "errors 0" in done.stdout


@pytest.mark.parametrize("name", ["textvqa", "vqav2"])
@pytest.mark.parametrize("gold", ["a", "A", "An", "the", "-"])
def test_the_answer_may_be_an_article(tmp_path, here, name, gold):
    from benchmark_data.files import image

    row = {
        "question_id": 0,
        "image_id": "0",
        "question": "What letter is it?",
        "image": image(0),
        "answers": [gold] * 10,
    }
    data, out = tmp_path / "validation.parquet", tmp_path / "out"
    pq.write_table(pa.Table.from_pylist([row, {**row, "answers": ["red"] * 10}]), data)
    for response, strict, official in (
        (gold, 1, 1),
        (f"<answer>{gold}</answer>", 1, 0),
        ("", 0, 0),
    ):
        answers = write(
            tmp_path / "p.jsonl",
            [{"doc_id": 0, "response": response}, {"doc_id": 1, "response": gold}],
        )
        here(name, "--predictions", answers, "--data", data, "--output", out)
        (first, second) = (
            json.loads(line)["scores"]
            for line in (out / f"samples_{name}.jsonl").read_text().splitlines()
        )
        assert (first["strict"]["score"], first["official"]["score"]) == (strict, official)
        assert (second["strict"]["score"], second["official"]["score"]) == (0, 0)


def test_the_ceiling_of_a_published_rule_is_shown(tmp_path, here):
    from benchmark_data import WRITERS
    from benchmark_data.r1v import GOLDS

    folder, out = WRITERS["geoqa"](tmp_path / "data"), tmp_path / "out"
    answers = write(
        tmp_path / "p.jsonl",
        [{"doc_id": i, "response": gold} for i, (gold, _, _) in enumerate(GOLDS)],
    )
    done = here("geoqa", "--predictions", answers, "--data", folder, "--output", out)
    (line,) = (line for line in done.stdout.splitlines() if "ceiling: mean score" in line)
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["100.00", "90.00"]
    numbers = json.loads((out / "results.json").read_text())["results"]["geoqa"]
    assert numbers["ceiling,strict"] == 1
    # The rule cannot read a root over 2 at all. Golds of the others it misreads, but in an answer in the same way.
    assert (
        numbers["ceiling,official"] == numbers["acc,official"] == pytest.approx(1 - 1 / len(GOLDS))
    )


@pytest.mark.parametrize("name", ["chartqa", "docvqa"])
def test_a_score_that_was_reached_is_not_above_the_ceiling(tmp_path, here, name):
    """The published rules read no tags, and that takes nothing from the ceiling: bare answers are right answers, too."""
    from benchmark_data import WRITERS

    from gpg_vl.eval.tasks import tasks

    folder, out = WRITERS[name](tmp_path / "data"), tmp_path / "out"
    rows = [
        {"doc_id": doc.doc_id, "response": doc.gold}
        for doc in tasks.get(name)().load(folder, images=False)
    ]
    done = here(
        name, "--predictions", write(tmp_path / "p.jsonl", rows), "--data", folder, "--output", out
    )
    numbers = json.loads((out / "results.json").read_text())["results"][name]
    assert numbers["acc,official"] == numbers["ceiling,official"] == 1
    assert "ceiling" not in done.stdout  # there is none to speak of


@pytest.mark.parametrize(
    ("name", "rows", "answers"),
    [
        (
            "minerva",
            [
                {"problem": "How long?", "solution": r"It lasts \boxed{$3.5$ } s."},
                {"problem": "How far?", "solution": r"As $x$ shows, \boxed{ $\frac{1}{2} c t$ }."},
                {"problem": "How warm?", "solution": r"So \boxed{2 \cdot 10^{3}}."},
            ],
            [r"$\boxed{3.5}$", r"$\boxed{\frac{ct}{2}}$", r"$\boxed{2000}$"],
        ),
        (
            "olympiadbench",
            [
                {"question": "How many?", "final_answer": ["2"]},
                {"question": "What share?", "final_answer": [r"$\frac{1}{2}$"]},
                {"question": "Which?", "final_answer": ["$1$", "$2$"]},
            ],
            [r"$\boxed{2}$", r"$\boxed{\frac12}$", r"$\boxed{1, 2}$"],
        ),
    ],
)
def test_golds_between_dollars_and_in_lists_are_scored(tmp_path, here, name, rows, answers):
    data, out = write(tmp_path / "train.jsonl", rows), tmp_path / "out"
    given = [{"doc_id": n, "response": text} for n, text in enumerate([*answers[:2], "no idea"])]
    here(name, "--predictions", write(tmp_path / "p.jsonl", given), "--data", data)
    given[2]["response"] = answers[2]
    here(name, "--predictions", write(tmp_path / "q.jsonl", given), "--data", data, "--output", out)
    numbers = json.loads((out / "results.json").read_text())["results"][name]
    assert (numbers["n"], numbers["acc,strict"]) == (3, 1)
    assert numbers["ceiling,official"] == 1


def test_masks_bring_the_scorers_of_masks(tmp_path, here):
    from benchmark_data import reasonseg

    from gpg_vl.eval.masks import encode

    folder, out = reasonseg.write("lisa", tmp_path / "data"), tmp_path / "out"
    boxes = [{"doc_id": i, "response": "(100,100),(500,900)"} for i in range(4)]
    plain = write(tmp_path / "p.jsonl", boxes)
    done = here("lisa", "--predictions", plain, "--data", folder)
    assert "official" not in done.stdout
    done = here(
        "lisa", "--predictions", plain, "--data", folder, "--scorer", "strict,official", code=2
    )
    assert "The scorers official of lisa compare segmentations, and there are none" in done.stderr
    masked = [box | {"mask": encode(reasonseg.mask())} for box in boxes[:3]]
    file = write(tmp_path / "m.jsonl", [*masked, boxes[3]])
    done = here("lisa", "--predictions", file, "--data", folder, "--output", out)
    numbers = json.loads((out / "results.json").read_text())["results"]["lisa"]
    assert numbers["acc_mIoU,strict"] == 1
    assert numbers["acc_mIoU,official"] == pytest.approx(0.75)  # gIoU: the fourth row has no mask
    assert numbers["acc_cIoU,official"] == pytest.approx(0.75)  # its target counts in the union
    assert numbers["answered,official"] == 0.75
    again = here("lisa", "--predictions", out / "samples_lisa.jsonl")
    assert "official" in again.stdout


def test_the_convention_of_boxes_is_said_and_never_guessed(tmp_path, here):
    from benchmark_data import refcoco

    folder, out = refcoco.write("refcoco", tmp_path / "data"), tmp_path / "out"
    pixels = write(
        tmp_path / "p.jsonl", [{"doc_id": i, "response": "[10, 5, 50, 25]"} for i in range(12)]
    )
    done = here("refcoco", "--predictions", pixels, "--data", folder)
    assert "coordinates: rel1000" in done.stdout  # what is assumed is printed
    done = here(
        "refcoco",
        "--predictions",
        pixels,
        "--data",
        folder,
        "--coordinates",
        "abs_orig",
        "--output",
        out,
    )
    numbers = json.loads((out / "results.json").read_text())["results"]["refcoco"]
    assert (numbers["acc,strict"], numbers["acc_mIoU,strict"]) == (1, 1)
    # Read again alone, as it was declared.
    assert "100.00 ± 0.00" in here("refcoco", "--predictions", out / "samples_refcoco.jsonl").stdout
    done = here("cvbench", "--predictions", "p", "--data", "d", "--coordinates", "rel1", code=2)
    assert "note: --coordinates has no effect on cvbench" in done.stderr


def test_images_may_lie_elsewhere(tmp_path, here):
    from benchmark_data import WRITERS

    from gpg_vl.eval.tasks import tasks

    folder = WRITERS["geoqa"](tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (folder / "Geo170K").rename(tmp_path / "elsewhere" / "Geo170K")
    docs = tasks.get("geoqa")().load(folder, root=tmp_path / "elsewhere")
    assert {doc.root for doc in docs} == {tmp_path / "elsewhere"}
    here(
        "geoqa",
        "--predictions",
        "absent",
        "--data",
        folder,
        "--images",
        tmp_path / "elsewhere",
        code=2,
    )


def test_the_whole_list_has_size_metric_chance_and_source(here):
    out = here("--list").stdout
    for text in (
        "cvbench",
        "test 2638",
        "lisa",
        "test 779, val 200",
        "mean box IoU",
        "1/102",
        "nyu-visionx/CV-Bench",
    ):
        assert text in out


@pytest.mark.parametrize("program", ["gpg_vl.eval", "gpg_vl eval"])
@pytest.mark.parametrize(
    "rest", [["--list"], ["--help"], ["cvbench", "--predictions", "P", "--data", "D"]]
)
def test_it_ends_quietly_when_the_reader_leaves(data, tmp_path, program, rest):
    files = {"P": str(write(tmp_path / "p.jsonl", responses(20))), "D": str(data)}
    command = [sys.executable, "-m", *program.split(), *(files.get(word, word) for word in rest)]
    # Found out at the end, or at the first line; argparse keeps a help text that nobody reads to itself.
    for unbuffered in ("",) if "--help" in rest else ("", "1"):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as running:
            running.stdout.close()
            assert running.stderr.read() == ""
            assert running.wait(timeout=120) == 141


def test_a_broken_pipe_to_somebody_else_is_no_reader_that_left(capfd):
    def run():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_until_pipe_breaks(run)


# --- it refuses ---


def test_flags_without_an_effect_are_named(data, tmp_path):
    file = write(tmp_path / "p.jsonl", responses(24))
    done = run("cvbench", "--predictions", file, "--data", data, "--batch-size", 4)
    assert (
        done.stderr
        == "note: --batch-size has no effect with --predictions, where nothing is generated.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No benchmark was named. Known: aime24, amc23, blink"),
        (
            ["cvbech", "--predictions", "P", "--data", "D"],
            "no eval task called 'cvbech'. Did you mean 'cvbench'?",
        ),
        (["cvbench", "--data", "D"], "Name a checkpoint with --model DIR, or a file of responses"),
        (["cvbench", "--model", "M"], "Name the benchmark's file or folder with --data PATH"),
        (["cvbench", "--predictions", "P"], "p.jsonl, line 1: the row does not carry its question"),
        (
            ["cvbench", "--predictions", "P", "--model", "M", "--data", "D"],
            "not allowed with argument --predictions",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--scorer", "strct"],
            "Did you mean 'strict'?",
        ),
        (["cvbench", "--predictions", "P", "--data", "D", "--scorer", ""], "no scorer called ''"),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--prompt", "lms"],
            "Did you mean 'lmms'?",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--limit", "few"],
            "'few' is not a number; give rows (200) or",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--limit", "0"],
            "The limit is 0. Allowed is",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--max-new-tokens", "0"],
            "max_new_tokens is 0",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "absent"],
            "There is no CV-Bench data at absent",
        ),
        (
            ["cvbench", "--predictions", "absent", "--data", "D"],
            "The predictions file absent cannot be read",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--compare", "absent"],
            "The predictions file absent cannot",
        ),
        (["cvbench", "--model", "absent", "--data", "D"], "There is no checkpoint folder absent"),
        (
            ["cvbench", "--predictions", "SHORT", "--data", "D"],
            "no response for 4 of 24 docs (doc_id 20, 21, 22, 23)",
        ),
        (
            ["cvbench", "--predictions", "P", "--data", "D", "--compare", "SHORT"],
            "no response for 4 of 24 docs",
        ),
        (
            ["cvbench", "--predictions", "BROKEN", "--data", "D"],
            "line 2: the line is not a JSON object",
        ),
        (
            ["cvbench", "--predictions", "DOUBLE", "--data", "D"],
            "line 25: doc_id 0 was answered in line 1 already",
        ),
        (
            ["cvbench", "--predictions", "MORE", "--data", "D"],
            "line 25: there is no doc_id 24 in the data",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(data, tmp_path, arguments, message):
    whole = list(responses(24))
    files = {
        "D": data,
        "M": tmp_path,
        "P": write(tmp_path / "p.jsonl", whole),
        "SHORT": write(tmp_path / "short.jsonl", whole[:20]),
        "DOUBLE": write(tmp_path / "double.jsonl", whole + whole[:1]),
        "MORE": write(tmp_path / "more.jsonl", [*whole, {"doc_id": 24, "response": "x"}]),
    }
    files["BROKEN"] = tmp_path / "broken.jsonl"
    files["BROKEN"].write_text(json.dumps(whole[0]) + '\n{"doc_id": 1, "resp\n', encoding="utf-8")
    done = run(*[files.get(argument, argument) for argument in arguments], cwd=tmp_path, code=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert "error: " in done.stderr


@pytest.mark.parametrize("name", ["blink", "mathvista", "mathverse", "geometry3k"])
def test_a_benchmark_without_an_official_rule_says_what_it_has(name, here):
    """The owners' rules need a language model, or there is none; another rule under that name would be no official number."""
    from gpg_vl.eval.tasks import tasks

    done = here(name, "--predictions", "p", "--data", "d", "--scorer", "strict,official", code=2)
    known = ", ".join(sorted(tasks.get(name)().scorers))
    assert f"The task {name} has no scorer called 'official'. Known: {known}." in done.stderr


def test_a_missing_column_names_file_and_column(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).drop_columns(["source"]), tmp_path / "test.parquet")
    file = write(tmp_path / "p.jsonl", responses(24))
    done = run("cvbench", "--predictions", file, "--data", tmp_path, code=2)
    assert "test.parquet has no column 'source'; it has idx, type, task" in done.stderr
