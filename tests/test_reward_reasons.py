"""What a reward of a user's own says of its values is kept with the samples of a run, whatever else its explanation does."""

import json
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import gpg_vl, write_config

from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.reasons import LONGEST, Explainer
from gpg_vl.rewards.scoring import Item
from gpg_vl.types import Completion, Example, Group

MODULE = """
import math, os, time
from gpg_vl.answers.verdict import Verdict
from gpg_vl.rewards.samples import explained


def why(completion, example):
    text = completion.text
    if text == "hang":
        time.sleep(60)
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise KeyError("no \\x1b such key")
    if text == "odd":
        return Verdict(score=math.nan, parsed=4, gold="", note=["n"])
    return Verdict(score=len(text) / 10, parsed=text, gold=example.answer, note="n" * 5000)


@explained(why)
def mine(completion, example):
    return len(completion.text) / 10


def silent(completion, example):
    return 0.0
"""


def a_group(*texts: str) -> Group:
    completions = tuple(
        Completion(token_ids=(1,), logprobs=(), text=text, finish_reason="stop") for text in texts
    )
    example = Example(id="7", prompt="How many?", answer="4")
    return Group(example=example, prompt=types.SimpleNamespace(), completions=completions)  # type: ignore[arg-type]  # no reward looks at it


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    return f"{file}:mine"


@pytest.fixture
def pool(mine: str) -> Iterator[RewardPool]:
    weights = {"choice": 1.0, mine: 1.0, mine.replace(":mine", ":silent"): 1.0}
    with RewardPool(weights, time_limit=1.0, workers=1) as pool:
        yield pool


def test_only_explained_rewards_of_ones_own_are_asked(pool: RewardPool, mine: str) -> None:
    one, other = Explainer(pool)([a_group("four", "no"), a_group("x")])
    assert one.keys() == other.keys() == {mine}
    assert [(reason["parsed"], reason["score"]) for reason in one[mine]] == [
        ("four", 0.4),
        ("no", 0.2),
    ]
    assert one[mine][0]["note"] == "n" * LONGEST


def test_no_worker_starts_for_rewards_of_this_package() -> None:
    pool = RewardPool({"choice": 1.0})
    assert Explainer(pool)([a_group("x")]) == [{}]
    assert not pool._workers


def test_an_explanation_that_fails_is_a_note_and_odd_values_are_plain(
    pool: RewardPool, mine: str
) -> None:
    [reasons] = Explainer(pool)([a_group("raise", "odd")])
    broken, odd = reasons[mine]
    assert str(broken["note"]).startswith("not explained: ")
    assert "KeyError" in str(broken["note"])
    assert odd == {"parsed": "4", "note": "['n']", "score": None}
    json.dumps(reasons, allow_nan=False)


@pytest.mark.parametrize("how", ["hang", "die"])
def test_an_explanation_that_costs_a_worker_is_not_asked_again(
    pool: RewardPool, mine: str, how: str
) -> None:
    explain = Explainer(pool)
    first, second = explain([a_group("ok", how), a_group("ok")])
    assert first[mine][0]["parsed"] == "ok"
    assert str(second[mine][0]["note"]).startswith("not explained: not asked any more")

    # the pool is as it was
    one = a_group("four")
    assert pool.evaluate([Item(one.example, one.completions)], [mine]) == [{mine: (0.4,)}]


def test_a_run_keeps_the_reasons_and_its_page_shows_them(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from gpg_vl.answers.verdict import Verdict\n"
        "from gpg_vl.rewards import gold_form\nfrom gpg_vl.rewards.samples import explained\n"
        "def why(completion, example):\n"
        "    return Verdict(score=0.0, parsed='<i>seen', gold='', note='because')\n"
        "@explained(why)\n"
        "@gold_form(None)\n"
        "def f(completion, example):\n"
        "    return sum(map(ord, completion.text)) % 5 / 4\n"
    )
    weights = {f"{tmp_path / 'own.py'}:f": 1.0}
    config = write_config(
        tmp_path, tiny_checkpoint, rewards={"weights": weights}, train={"steps": 1}
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    (tmp_path / "own.py").unlink()
    lines = (tmp_path / "run" / "samples" / "step-000001" / "samples.jsonl").read_text()
    told = json.loads(lines.splitlines()[0])["completions"][0][f"verdict/{tmp_path / 'own.py'}:f"]
    assert told == {"parsed": "<i>seen", "note": "because", "score": 0.0}
    assert "read as &#39;&lt;i&gt;seen&#39;; because" in (tmp_path / "run/report.html").read_text()
