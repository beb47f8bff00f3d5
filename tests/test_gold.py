"""The proof of gold answers: what a reward declares of itself, what is proved, and where the proof ends."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import gpg_vl, write_config

from gpg_vl import rewards
from gpg_vl.errors import UserError
from gpg_vl.rewards.gold_proof import (
    GoldScore,
    check_gold,
    explain,
    gold_completion,
    needs_answer,
)
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import RewardFailure, RewardValueError, load
from gpg_vl.types import Example

ROOT = Path(__file__).parent.parent

MINE = """
import json, time
from gpg_vl.rewards import batched, gold_form, in_range

@gold_form("{answer}")
def bare(completion, example): return float(completion.response == example.answer)

@gold_form(lambda example: json.dumps({"answer": example.answer}))
def in_json(completion, example):
    return float(json.loads(completion.response) == {"answer": example.answer})

@gold_form(None)
def long_think(completion, example): return min(len(completion.response) / 1000, 1.0)

@gold_form("anything at all")
@batched
def never_empty(completions, example): return [float(bool(one.response)) for one in completions]

def boxed(completion, example):
    return float(completion.response == "\\\\boxed{%s}" % example.answer)

@gold_form(lambda example: None)
def odd(completion, example): return 1.0

def undeclared(completion, example): return min(len(completion.response) / 1000, 1.0)
undeclared.gold_form = None  # without an import

def broken(completion, example): return {"red": 1.0}[example.answer]

def half_broken(completion, example):
    return 1.0 / (int(example.id) % 2) if int(example.id) < 3 else 1.0

def hangs(completion, example): time.sleep(600)

def nothing(completion, example): pass
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def row(identity, answer, choices=("ball", "cube")):
    return Example(id=identity, prompt="Which?", answer=answer, choices=choices)


def test_good_gold_has_no_problems():
    rows = [row("1", "(B)"), row("2", "A"), row("3", "cube"), row("4", "2", ("3", "2", "1"))]
    assert check_gold({"choice": 1.0, "format": 0.2}, rows) == []


def test_every_bad_gold_is_reported_with_what_the_reward_saw():
    rows = [
        row("good", "(B)"),
        row("range", "(C)"),
        row("bare", "left", None),
        row("empty", "", ("", "x")),
        row("tagged", "<answer>B</answer>"),  # as some data sets write it: no problem
    ]
    problems = check_gold({"choice": 1.0, "format": 0.2}, rows)
    assert [(p.reward, p.example_id, p.score, p.best) for p in problems] == [
        ("choice", "range", None, 1.0),
        ("choice", "bare", None, 1.0),
        ("choice", "empty", None, 1.0),
    ]
    assert problems[0].scored_text.startswith("<think>\n\n</think>\n<answer>(C)</answer>\n")
    assert "names no option" in problems[0].scored_text
    assert "'choice' fails on the gold answer of example 'range'" in str(problems[0])


def test_gold_that_the_scorer_never_credits_is_reported():
    # "a" is the text of option (A), but a bare "a" is an article to the scorer.
    problems = check_gold(
        {"choice": 1.0}, [row("text", "a", ("a", "the")), row("letter", "(A)", ("a", "the"))]
    )
    assert [(p.example_id, p.score) for p in problems] == [("text", 0.0)]
    assert problems[0].scored_text == "<think>\n\n</think>\n<answer>a</answer>"
    assert "'choice' gives 0 instead of 1 to the gold answer of example 'text'" in str(problems[0])


class FakePool:
    """Stands for a RewardPool whose reward `mine.py:f` gives what is asked for."""

    def __init__(self, **scores):
        self.scores = scores

    def ranges(self):
        return {"mine.py:f": (-1.0, 2.0)}

    def unproved(self):
        return frozenset()

    def prove(self, examples, name):
        assert name == "mine.py:f"
        scores = [self.scores[example.id] for example in examples]
        return [one if isinstance(one, RewardFailure) else GoldScore(one, "said") for one in scores]


def test_user_rewards_are_checked_in_the_pool_only():
    with pytest.raises(ValueError, match=r"'mine.py:f' is not known to be fast.*pool=RewardPool"):
        check_gold({"mine.py:f": 1.0}, [row("1", "A")])
    broke = RewardFailure(
        kind="crash", reward="mine.py:f", example_id="3", member=0, message="it died"
    )
    pool = FakePool(**{"1": 2.0, "2": 1.0, "3": broke, "4": 2.0 - 1e-12})
    problems = check_gold(
        {"mine.py:f": 0.5, "choice": 1.0}, [row(str(i), "A") for i in range(1, 5)], pool=pool
    )
    assert [(p.reward, p.example_id, p.score, p.best) for p in problems] == [
        ("mine.py:f", "2", 1.0, 2.0),
        ("mine.py:f", "3", None, 2.0),
    ]
    assert [problem.scored_text for problem in problems] == ["said", "it died"]


def test_a_penalty_is_best_at_its_minimum():
    problems = check_gold(
        {"mine.py:f": -1.0}, [row("1", "A"), row("2", "A")], pool=FakePool(**{"1": -1.0, "2": 2.0})
    )
    assert [(p.example_id, p.score, p.best) for p in problems] == [("2", 2.0, -1.0)]


def test_gold_of_a_large_data_set_is_checked_in_process():
    rows = [row(str(i), "(B)") for i in range(20_000)] + [row("last", "(C)")]
    assert [p.example_id for p in check_gold({"choice": 1.0, "format": 0.2}, rows)] == ["last"]


# ---- what a reward declares

QUOTED = [row(str(i), answer, None) for i, answer in enumerate(["4", 'a "quoted" one', "{answer}"])]


@pytest.mark.parametrize("name", ["bare", "in_json", "long_think", "never_empty", "undeclared"])
def test_a_reward_is_proved_in_the_form_that_it_declares(mine: str, name: str) -> None:
    weights = {f"{mine}:{name}": 1.0}
    with RewardPool(weights, workers=1) as pool:
        assert check_gold(weights, QUOTED, pool=pool) == []


def test_the_config_has_the_form_of_all_others(mine: str) -> None:
    weights = {f"{mine}:boxed": 1.0, f"{mine}:bare": 1.0}
    with RewardPool(weights, workers=1, gold="\\boxed{{answer}}") as pool:
        assert check_gold(weights, QUOTED[:2], pool=pool) == []
    with RewardPool(weights, workers=1) as pool:
        problems = check_gold(weights, QUOTED[:1], pool=pool)
    assert [(p.reward, p.score, p.scored_text) for p in problems] == [
        (f"{mine}:boxed", 0.0, "<think>\n\n</think>\n<answer>4</answer>")
    ]


def test_a_form_that_makes_no_text_is_named(mine: str) -> None:
    weights = {f"{mine}:odd": 1.0}
    with RewardPool(weights, workers=1) as pool:
        (problem,) = check_gold(weights, QUOTED[:1], pool=pool)
    assert "The gold form of a reward returned None for example '0'" in problem.scored_text


def test_the_built_in_rewards_without_answers_are_proved_all_the_same() -> None:
    """`format` in any form of gold answers; `length` finds rows without its columns."""
    assert check_gold({"format": 0.2}, [row("1", "")], gold='{"answer": "{answer}"}') == []
    lengths = {"length_limit": 100, "length_cache": 20}
    good = Example(id="good", prompt="?", answer="", meta=lengths)
    problems = check_gold({"length": 1.0}, [good, row("bad", "")])
    assert [problem.example_id for problem in problems] == ["bad"]


@pytest.mark.parametrize(
    "form, needs",
    [
        ("{answer}", True),
        (lambda example: example.answer, True),
        ("<answer>any</answer>", False),
        (None, False),
    ],
)
def test_who_needs_gold_answers(form: rewards.GoldForm, needs: bool) -> None:
    assert needs_answer(form) is needs


def test_a_decorator_with_a_name_can_declare_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards.rewards, "_registered", {})

    @rewards.reward("short", gold=None)
    def short(completion, example):
        return 0.5

    @rewards.reward("plain")
    def plain(completion, example):
        return 0.5

    assert load("short").gold is None
    assert load("plain").gold == rewards.GOLD_FORM
    assert load("plain", "{answer}").gold == "{answer}"


def test_a_form_is_a_text_a_function_or_none() -> None:
    with pytest.raises(UserError, match=r"@gold_form was given 7.*a function of the example"):
        rewards.gold_form(7)  # type: ignore[arg-type]
    with pytest.raises(RewardValueError, match="must return the text"):
        gold_completion(row("1", "A"), lambda example: 7)  # type: ignore[arg-type,return-value]


# ---- where the proof ends


def test_one_bug_ends_the_proof_with_one_message(mine: str) -> None:
    examples = [row(str(i), f"colour {i}", None) for i in range(1000)]
    weights = {f"{mine}:broken": 1.0, f"{mine}:nothing": 1.0}
    with RewardPool(weights, workers=1) as pool:
        problems = check_gold(weights, examples, pool=pool)
        assert pool.prove(examples, f"{mine}:broken")[-1] is None

    assert [p.example_id for p in problems] == ["0", "1", "2"] * 2
    assert [p.ends for p in problems] == [False, False, True] * 2
    said = explain(problems)
    assert said.count("failed 3 times for the same cause") == 2
    assert said.count("KeyError: 'colour") == 1
    assert said.count("returned None") == 1
    assert "on the gold answers of examples '0', '1' and '2'" in said


def test_failures_of_rows_do_not_end_it(mine: str) -> None:
    examples = [row(str(i), "4", None) for i in range(200)]
    weights = {f"{mine}:half_broken": 1.0}
    with RewardPool(weights, workers=2) as pool:
        problems = check_gold(weights, examples, pool=pool)
    assert [p.example_id for p in problems] == ["0", "2"]

    bad = [row(str(i), "(C)") for i in range(50)]
    assert len(check_gold({"choice": 1.0}, bad)) == 50


def test_a_reward_that_hangs_ends_it_after_three_time_outs(mine: str) -> None:
    examples = [row(str(i), "4", None) for i in range(500)]
    weights = {f"{mine}:hangs": 1.0}
    with RewardPool(weights, workers=1, time_limit=0.5) as pool:
        pool.start()
        start = time.monotonic()
        problems = check_gold(weights, examples, pool=pool)
        seconds = time.monotonic() - start
        # the pool can be used again
        assert len(pool.prove(examples[:2], f"{mine}:hangs")) == 2

    assert [p.ends for p in problems] == [False, False, True]
    assert "gave no result within 0.5 s on the gold answer of example" in explain(problems)
    assert seconds < 60


def test_the_message_names_every_way_on(mine: str) -> None:
    (problem,) = check_gold({"choice": 1.0}, [row("7", "a", ("a", "the"))])
    said = explain([problem] * 9, "<answer>{answer}</answer>")
    assert said.startswith("9 gold answer(s) do not get full marks")
    assert "and 4 more of 'choice'" in said
    for way in (
        "rewards.gold",
        "'<answer>{answer}</answer>'",
        "@gold_form(None)",
        "@gold_form('{answer}')",
    ):
        assert way in said


# ---- on the command line


def write_rows(folder: Path, rows: list[dict[str, object]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def tried(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpg_vl", "rewards", "test", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )


def test_rewards_test_tries_the_form_that_is_declared_or_given(mine: str, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path, [{"prompt": "How many?", "answer": "4"}]))

    done = tried(tmp_path, "mine.py:boxed", "--data", data)
    assert done.returncode == 1, done.stderr
    assert "rewards.gold" in done.stdout
    assert "@gold_form(None)" in done.stdout

    done = tried(tmp_path, "mine.py:boxed", "--data", data, "--gold", "\\boxed{{answer}}")
    assert done.returncode == 0, done.stdout
    done = tried(tmp_path, "mine.py:long_think", "--data", data)
    assert done.returncode == 0, done.stdout
    assert "not tried, as mine.py:long_think declares" in done.stdout
    done = tried(tmp_path, "mine.py:bare", "--data", data, "--gold", "4")
    assert (done.returncode, "no {answer}" in done.stderr) == (2, True)


def test_rewards_test_ends_where_a_bug_repeats(mine: str, tmp_path: Path) -> None:
    rows = [{"prompt": "How many?", "answer": str(i)} for i in range(500)]
    done = tried(
        tmp_path, "mine.py:broken", "--data", str(write_rows(tmp_path, rows)), "--workers", "1"
    )

    assert done.returncode == 1
    assert "were not tried, because the reward failed 3 times for the same cause" in done.stdout
    assert done.stdout.count("KeyError") <= 12


def test_training_without_answers_where_no_reward_needs_them(
    tiny_checkpoint: Path, mine: str, tmp_path: Path
) -> None:
    """A shaping reward alone trains on rows without answers; beside one that judges, every row needs one."""
    rows = write_rows(
        tmp_path, [{"prompt": "Think long."}, {"prompt": "And hard.", "answer": None}]
    )
    settings = {"data": {"train": str(rows), "columns": {}}}
    shaping = {f"{mine}:long_think": 1.0, "format": 0.1}

    config = write_config(tmp_path, tiny_checkpoint, **settings, rewards={"weights": shaping})
    done = gpg_vl("train", config, "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr

    config = write_config(
        tmp_path, tiny_checkpoint, **settings, rewards={"weights": {**shaping, f"{mine}:bare": 1.0}}
    )
    done = gpg_vl("train", config, "--dry-run")
    assert done.returncode == 2
    assert "answer" in done.stdout


def test_a_template_without_its_mark_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rewards_of = {"weights": {"counting": 1.0}, "gold": "<answer>"}
    done = gpg_vl("train", write_config(tmp_path, tiny_checkpoint, rewards=rewards_of))
    assert done.returncode == 2
    assert "gold is '<answer>', which has no {answer}" in done.stderr
