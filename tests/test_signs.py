"""The world of two signs: right answers, worked answers with full marks, and nothing without the picture."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from runs import gpg_vl, metrics, run_python

from gpg_vl.eval.tasks.signs import CHANCE
from gpg_vl.quickstart import lessons, scenes, signs
from gpg_vl.rewards.builtin import counting
from gpg_vl.rewards.format import format
from gpg_vl.types import Completion, Example

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def drawn() -> list[signs.Signs]:
    return [signs.signs(1, number) for number in range(3000)]


def test_the_answers_are_right(drawn: list[signs.Signs]) -> None:
    """Recomputed from what is drawn."""
    for number, one in enumerate(drawn):
        boxed = {t.box: int(t.shape) for t in one.scene.things if t.box}
        assert boxed == {"red": one.red, "blue": one.blue}
        if number % 2 == 0:
            assert (one.task, one.answer) == ("Add", one.red + one.blue)
        else:
            assert (one.task, one.answer) == ("Compare", max(one.red, one.blue))
            assert one.red != one.blue
        cells = [(t.column, t.row) for t in one.scene.things]
        assert len(set(cells)) == len(cells)


def test_without_the_picture_there_is_the_most_frequent_answer_and_no_more(
    drawn: list[signs.Signs],
) -> None:
    for task, chance in CHANCE.items():
        answers = Counter(one.answer for one in drawn if one.task == task)
        most, number = answers.most_common(1)[0]
        assert number / answers.total() == pytest.approx(chance, abs=0.03)
        assert most == 9


def test_a_worked_answer_gets_full_marks_from_both_rewards(drawn: list[signs.Signs]) -> None:
    for one in drawn[:200]:
        completion = Completion(
            token_ids=(), logprobs=(), text=signs.worked_answer(one), finish_reason="stop"
        )
        example = Example(id="", images=(), prompt="", answer=str(one.answer))
        assert counting(completion, example) == format(completion, example) == 1.0
        thought = completion.text.partition("</think>")[0]
        assert [int(n) for n in re.findall(r"sign (\d)", thought)] == [one.red, one.blue]


def test_rows_are_a_function_of_seed_and_number() -> None:
    assert list(signs.rows(2, 6))[4] == next(signs.rows(2, 1, start=4))
    assert next(signs.rows(2, 1))["prompt"].endswith(lessons.THINK)
    assert set(scenes.DIGITS) == {str(n) for n in range(signs.LARGEST + 1)}


def test_signs_are_made_learned_from_worked_answers_trained_on_and_evaluated(
    tmp_path: Path,
) -> None:
    """The documented commands with few rows and steps: sft on worked answers, gpg from there, evaluation."""
    base = tmp_path / "quickstart" / "base"
    prepared = gpg_vl(
        "quickstart", "--prepare-only", "--folder", base.parent, "--train-rows", "4", "--test-rows", "4"
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    recipe = ROOT / "data_recipes" / "signs.py"
    for words in (
        ("--rows", 24, "--test-rows", 20, "--out", tmp_path / "signs"),
        ("--rows", 8, "--seed", 2, "--answers", "worked", "--out", tmp_path / "worked"),
    ):
        assert run_python(recipe, *words, cwd=ROOT).returncode == 0

    learned = gpg_vl(
        "train", ROOT / "configs" / "signs_sft.yaml", f"model.path={base}", f"data.train={tmp_path / 'worked' / 'train'}",
        f"output.folder={tmp_path / 'sft'}", "train.steps=2", "train.prompts_per_step=8", "eval.every=0", "eval.task=null",
    )  # fmt: skip
    assert learned.returncode == 0, learned.stderr
    start = tmp_path / "sft" / "checkpoints" / "step-000002" / "model"

    trained = gpg_vl(
        "train", ROOT / "configs" / "signs.yaml", f"model.path={start}", f"data.train={tmp_path / 'signs' / 'train'}",
        f"eval.data={tmp_path / 'signs'}", f"output.folder={tmp_path / 'run'}", "train.steps=2", "train.prompts_per_step=4",
        "eval.limit=10",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    steps = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all({"reward/counting", "reward/format"} <= set(row) for row in steps), steps[0].keys()

    answered = run_python(
        "-m", "gpg_vl.eval", "signs", "--model", tmp_path / "run" / "checkpoints" / "step-000002" / "model",
        "--data", tmp_path / "signs", "--limit", 10, "--output", tmp_path / "eval", cwd=ROOT,
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    scored = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]["signs"]
    assert scored["n"] == 10
    assert scored["chance_Add"] == pytest.approx(0.1)
    assert scored["chance_Compare"] == pytest.approx(0.2)
