"""`gpg-vl rewards list | show | test`, from the outside, in a process of its own."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from gpg_vl.errors import UserError
from gpg_vl.rewards import BUILTIN, QUICK
from gpg_vl.rewards.catalogue import documentation, entries, run_samples
from gpg_vl.rewards.scoring import load

ROOT = Path(__file__).parents[1]

MINE = '''
from gpg_vl.rewards import batched, in_range
from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards.samples import Sample, explained

def exact(completion, example):
    """1.0 if the answer is the gold answer to the letter."""
    if "hang" in completion.text: import time; time.sleep(600)
    if "raise" in completion.text: raise KeyError("colour")
    return float(extract_answer(completion.response).candidate == example.answer)

def why(completion, example):
    return Verdict(score=0.0, parsed="my reading", gold=example.answer, note="my note")

@explained(why, [Sample(response="yes", answer="yes"), Sample(response="no", answer="yes")])
def told(completion, example):
    """Full marks for yes."""
    return float("yes" in completion.text)

@batched
@in_range(0, 2)
def many(completions, example): return [2.0] * len(completions)
'''


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpg_vl", "rewards", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )


def write(file: Path, rows: list) -> Path:
    file.write_text(
        "".join(json.dumps(row) + "\n" if not isinstance(row, str) else row + "\n" for row in rows)
    )
    return file


@pytest.fixture
def data(tmp_path):
    rows = [{"id": str(i), "prompt": "How many?", "answer": str(i + 3)} for i in range(4)]
    return write(tmp_path / "data.jsonl", rows)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


# --- list and show


def test_list_names_every_reward_with_its_range_and_origin():
    done = run("list")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(BUILTIN) <= set(lines)
    assert "-1 to 0" in lines["length"]
    assert "in workers only" in lines["math"]
    assert "in workers only" not in lines["counting"]
    assert "states the gold number" in lines["counting"]


def test_the_catalogue_is_the_registry():
    found = {entry.name: entry for entry in entries()}
    assert set(found) >= set(BUILTIN)
    for name in BUILTIN:
        assert found[name].meaning[-1] in ".:;" or len(found[name].meaning) > 40
        assert (found[name].source == "built in") == (name in QUICK)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_reward_shows_an_answer_that_it_accepts_and_one_that_it_refuses(name):
    """And its explanation agrees with its value: what was not read earns nothing."""
    reward = load(name)
    assert len(documentation(reward)) > 40
    made = run_samples(reward)
    assert max(one.score for one in made) == reward.high
    assert min(one.score for one in made) < reward.high
    for one in made:
        assert one.verdict is not None
        assert one.verdict.score == one.score
        if one.verdict.parsed is None:
            assert one.score == reward.low


def test_show_runs_the_samples():
    done = run("show", "counting")
    assert done.returncode == 0, done.stderr
    assert "counting: 0 to 1, built in" in done.stdout
    assert '"not 4" and "2+2" score 0.0' in done.stdout  # the whole docstring
    (row,) = [line for line in done.stdout.splitlines() if "4 or 5" in line and "<answer>" in line]
    assert row.split()[-2:] == ["unparsed", "4"]
    (row,) = [line for line in done.stdout.splitlines() if "four items" in line]
    assert " 1 " in row


def test_show_knows_a_reward_of_ones_own(mine):
    done = run("show", "mine.py:told", folder=mine)
    assert done.returncode == 0, done.stderr
    assert "Full marks for yes." in done.stdout
    assert "my reading" in done.stdout
    done = run("show", "mine.py:many", folder=mine)
    assert "0 to 2" in done.stdout
    assert "all completions of an example at once" in done.stdout
    assert "(no docstring)" in done.stdout


def test_an_unknown_name_is_one_message():
    for action in (["show", "countin"], ["test", "countin", "--data", "configs/quickstart.yaml"]):
        done = run(*action)
        assert done.returncode == 2
    done = run("show", "countin")
    assert "Did you mean 'counting'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["list"], ["show"], ["test"]])
def test_help_teaches(arguments):
    done = run(*arguments, "--help")
    assert done.returncode == 0
    if arguments in ([], ["test"]):
        assert "gold answers" in done.stdout


# --- test


def test_completions_are_scored_and_explained(data, tmp_path):
    answers = write(
        tmp_path / "answers.jsonl",
        [
            {"id": "0", "response": "<think>1+2</think><answer>three</answer>"},
            {"id": "2", "response": "<answer>5 or 6</answer>"},
            {"id": 1, "response": "<answer>9</answer>"},
        ],
    )
    done = run("test", "counting", "--data", data, "--completions", answers)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["0"] == ["0", "1", "<think>1+2</think><answer>three</answer>", "3", "3"]
    assert rows["1"] == ["1", "0", "<answer>9</answer>", "9", "4"]
    assert rows["2"] == ["2", "0", "<answer>5", "or", "6</answer>", "unparsed", "5"]
    assert "completions 3: mean 0.3333, full marks 1, unparsed 1, failed 0" in done.stdout
    assert "gold answers 4: 4 get full marks (1)" in done.stdout


def test_the_rows_to_print_can_be_limited(data, tmp_path):
    answers = write(
        tmp_path / "answers.jsonl", [{"id": str(i), "response": str(i + 3)} for i in range(4)]
    )
    done = run("test", "counting", "--data", data, "--completions", answers, "--rows", "1")
    assert "... and 3 more" in done.stdout
    assert "mean 1.0000, full marks 4" in done.stdout


def test_a_gold_answer_without_full_marks_is_exit_code_1(tmp_path):
    rows = [
        {"id": "good", "prompt": "?", "answer": "3"},
        {"id": "bad", "prompt": "?", "answer": "many"},
    ]
    done = run("test", "counting", "--data", write(tmp_path / "data.jsonl", rows))
    assert done.returncode == 1
    assert "gold answers 2: 1 get full marks (1), 1 do not:" in done.stdout
    assert "example 'bad' is not a count" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_columns_of_other_names(tmp_path):
    rows = [{"key": "a", "q": "?", "solution": "<answer> 4 </answer>", "answer": "no"}]
    data = write(tmp_path / "data.jsonl", rows)
    assert (
        run("test", "counting", "--data", data, "--columns", "prompt=q").returncode == 2
    )  # answer or solution?
    done = run(
        "test", "counting", "--data", data, "--columns", "prompt=q", "answer=solution", "id=key"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert run("test", "counting", "--data", data, "--columns", "prompt").returncode == 2


def test_a_reward_of_ones_own_is_tried_in_processes_of_its_own(mine, data):
    answers = write(
        mine / "answers.jsonl",
        [
            {"id": "0", "response": "3"},
            {"id": "1", "response": "hang"},
            {"id": "2", "response": "raise"},
            {"id": "3", "response": "7"},
        ],
    )
    done = run(
        "test",
        "mine.py:exact",
        "--data",
        data,
        "--completions",
        answers,
        "--time-limit",
        "1.5",
        "--workers",
        "1",
        folder=mine,
    )
    assert done.returncode == 1
    assert "full marks 1, unparsed 0, failed 2" in done.stdout
    assert "gave no result within 1.5 s" in done.stdout
    assert "KeyError: 'colour'" in done.stdout
    assert "gold answers 4: 4 get full marks" in done.stdout
    done = run("test", "mine.py:told", "--data", data, "--completions", answers, folder=mine)
    assert done.returncode == 1  # its gold answers do not say yes
    assert "my reading" in done.stdout
    assert "my note" in done.stdout


def test_what_a_reward_does_not_tell_has_no_columns(mine, data):
    """`exact` is a bare function: its answers stand beside the gold ones, and it is said how to learn more."""
    answers = write(
        mine / "answers.jsonl", [{"id": "0", "response": "3"}, {"id": "3", "response": "so 7"}]
    )
    done = run("test", "mine.py:exact", "--data", data, "--completions", answers, folder=mine)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[:3] == [
        ["id", "value", "response", "gold"],
        ["3", "0", "so", "7", "6"],
        ["0", "1", "3", "3"],
    ]
    assert "Decorate it with @explained of gpg_vl.rewards.samples" in done.stdout
    done = run("test", "mine.py:told", "--data", data, "--completions", answers, folder=mine)
    assert done.stdout.split("\n")[0].split() == [
        "id",
        "value",
        "response",
        "read",
        "as",
        "gold",
        "note",
    ]
    assert "@explained" not in done.stdout


def test_a_call_that_failed_has_no_reading(mine, data):
    answers = write(
        mine / "answers.jsonl", [{"id": "0", "response": "3"}, {"id": "1", "response": "yes raise"}]
    )
    raising = (
        '    if "raise" in completion.text: raise KeyError("colour")\n    return float("yes" in'
    )
    (mine / "mine.py").write_text(MINE.replace('    return float("yes" in', raising))
    done = run("test", "mine.py:told", "--data", data, "--completions", answers, folder=mine)
    (row,) = [
        line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["1", "failed"]
    ]
    assert row[:6] == ["1", "failed", "yes", "raise", "-", "4"]


def test_a_batched_reward_is_given_one_completion_per_example(mine, data):
    answers = write(mine / "answers.jsonl", [{"id": "0", "response": "3"}])
    done = run("test", "mine.py:many", "--data", data, "--completions", answers, folder=mine)
    assert done.returncode == 0, done.stderr
    assert "mean 2.0000, full marks 1" in done.stdout


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"id": "9", "response": "3"}],
            "line 1 answers the example '9', which the data does not have",
        ),
        (
            [{"id": "0", "response": "3"}, {"id": 0, "response": "4"}],
            "line 2 answers the example '0' a second time",
        ),
        ([{"id": "0"}], "line 1 holds"),
        ([{"id": "0", "response": 3}], "line 1 holds"),
        ([{"id": None, "response": "3"}], "line 1 holds"),
        ([{"id": True, "response": "3"}], "line 1 holds"),
        (["3"], "line 1 holds"),
        (['{"id": "0",'], "line 1 is not JSON"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([], "has no lines"),
    ],
)
def test_completions_that_do_not_fit_are_one_message(data, tmp_path, rows, said):
    done = run(
        "test", "counting", "--data", data, "--completions", write(tmp_path / "answers.jsonl", rows)
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_files_that_are_not_there_are_one_message(data, tmp_path):
    done = run("test", "counting", "--data", data, "--completions", tmp_path / "none.jsonl")
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)
    done = run("test", "counting", "--data", tmp_path / "none.jsonl")
    assert done.returncode == 2
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    done = run("test", "counting", "--data", data, "--completions", tmp_path / "binary.jsonl")
    assert (done.returncode, "UTF-8" in done.stderr) == (2, True)


def test_two_examples_of_one_id_are_one_message(tmp_path):
    rows = [{"id": "a", "prompt": "?", "answer": "3"}] * 2
    done = run("test", "counting", "--data", write(tmp_path / "data.jsonl", rows))
    assert (done.returncode, "the id 'a' more than once" in done.stderr) == (2, True)


LOUD = '''
print("\\x1b[2Jimported", flush=True)
from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards.samples import explained

def why(completion, example):
    if "hang" in completion.text: import time; time.sleep(600)
    if "raise" in completion.text: raise KeyError("\\x1b[2Jcolour")
    return Verdict(score=0.0, parsed="\\x1b[2Jread", gold="[/red]", note="[bold]") if example.answer == "3" else None

@explained(why)
def loud(completion, example):
    """\\x1b[2JFull marks. [/red]"""
    print("\\x1b[2Jcalled")
    return 1.0
'''


def test_what_rewards_and_their_explanations_say_is_escaped(data, tmp_path):
    (tmp_path / "loud.py").write_text(LOUD)
    shown = run("show", "loud.py:loud", folder=tmp_path)
    answers = write(
        tmp_path / "answers.jsonl",
        [{"id": "0", "response": "\x1b[2J [/red]"}, {"id": "1", "response": "B"}],
    )
    tried = run("test", "loud.py:loud", "--data", data, "--completions", answers, folder=tmp_path)

    assert (shown.returncode, tried.returncode) == (0, 1)
    assert "\\x1b[2JFull marks. [/red]" in shown.stdout
    assert "\\x1b[2Jimported" in shown.stdout
    for text in ("\\x1b[2J [/red]", "\\x1b[2Jread", "[bold]", "must return a gpg_vl.answers"):
        assert text in tried.stdout
    for text in ("\\x1b[2Jimported", "\\x1b[2Jcalled"):
        assert text in tried.stderr
    assert "\x1b" not in shown.stdout + shown.stderr + tried.stdout + tried.stderr


def test_an_explanation_that_hangs_or_raises_is_a_failed_call(data, tmp_path):
    (tmp_path / "loud.py").write_text(LOUD)
    answers = write(
        tmp_path / "answers.jsonl",
        [{"id": "0", "response": "hang"}, {"id": "1", "response": "raise"}],
    )
    words = ("--data", data, "--completions", answers, "--time-limit", "2")
    result = run("test", "loud.py:loud", *words, folder=tmp_path)

    assert result.returncode == 1
    assert "gave no result within 2 s" in result.stdout
    assert "KeyError: '\\x1b[2Jcolour'" in result.stdout


def test_a_line_of_completions_without_end_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpg_vl.rewards import try_reward

    monkeypatch.setattr(try_reward, "MAX_LINE", 1 << 20)
    file = tmp_path / "completions.jsonl"
    file.write_bytes(b'{"id": "' + b"x" * (8 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="line 1 has more than 1048576 characters"):
        try_reward.read_responses(file, ["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
