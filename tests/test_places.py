"""The world of two boxes: right answers, worked answers with full marks, and nothing without the picture."""

import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from runs import gpg_vl, metrics, run_python

from gpg_vl.eval.tasks.places import CHANCE
from gpg_vl.quickstart import lessons, places, scenes
from gpg_vl.rewards.builtin import counting
from gpg_vl.rewards.format import format
from gpg_vl.types import Completion, Example

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def drawn() -> list[places.Places]:
    return [places.places(1, number) for number in range(3000)]


def test_the_answers_are_right(drawn: list[places.Places]) -> None:
    """Recomputed from what is drawn."""
    for number, one in enumerate(drawn):
        rows = {thing.box: thing.row + 1 for thing in one.scene.things if thing.box}
        assert one.rows == (rows["red"], rows["blue"])
        if number % 2 == 0:
            assert (one.task, one.answer) == ("Add", rows["red"] + rows["blue"])
        else:
            assert (one.task, one.answer) == ("Compare", max(rows.values()))
            assert rows["red"] != rows["blue"]
        cells = [(t.column, t.row) for t in one.scene.things]
        assert len(set(cells)) == len(cells)


def test_without_the_picture_there_is_the_most_frequent_answer_and_no_more(
    drawn: list[places.Places],
) -> None:
    """By counting all pairs of cells of all grids; what is drawn is close to it."""
    weights: dict[str, Counter[int]] = {"Add": Counter(), "Compare": Counter()}
    for columns, rows in scenes.GRIDS:
        cells = [row + 1 for row in range(rows) for _ in range(columns)]
        pairs = list(permutations(cells, 2))
        for a, b in pairs:
            weights["Add"][a + b] += 1 / len(pairs)
            if a != b:
                weights["Compare"][max(a, b)] += 1 / len(pairs)

    for task, most in (("Add", 5), ("Compare", 4)):
        answer, weight = weights[task].most_common(1)[0]
        assert answer == most
        assert weight / weights[task].total() == pytest.approx(CHANCE[task], abs=5e-4)
        of_task = [one.answer for one in drawn if one.task == task]
        assert of_task.count(most) / len(of_task) == pytest.approx(CHANCE[task], abs=0.03)


def test_a_worked_answer_gets_full_marks_from_both_rewards(drawn: list[places.Places]) -> None:
    for one in drawn[:200]:
        completion = Completion(
            token_ids=(), logprobs=(), text=places.worked_answer(one), finish_reason="stop"
        )
        example = Example(id="", images=(), prompt="", answer=str(one.answer))
        assert counting(completion, example) == format(completion, example) == 1.0
        thought = completion.text.partition("</think>")[0]
        seen = {box: int(row) for row, box in re.findall(r"(\d) \d (red|blue) box", thought)}
        assert (seen["red"], seen["blue"]) == one.rows


def test_rows_are_a_function_of_seed_and_number() -> None:
    assert list(places.rows(2, 6))[4] == next(places.rows(2, 1, start=4))
    assert next(places.rows(2, 1))["prompt"].endswith(lessons.THINK)


def test_places_are_made_learned_from_worked_answers_trained_on_and_evaluated(
    tmp_path: Path,
) -> None:
    """The documented commands with few rows and steps: sft on worked answers, gpg from there, evaluation."""
    base = tmp_path / "quickstart" / "base"
    prepared = gpg_vl(
        "quickstart", "--prepare-only", "--folder", base.parent, "--train-rows", "4", "--test-rows", "4"
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    recipe = ROOT / "data_recipes" / "places.py"
    for words in (
        ("--rows", 24, "--test-rows", 20, "--out", tmp_path / "places"),
        ("--rows", 8, "--seed", 2, "--answers", "worked", "--out", tmp_path / "worked"),
    ):
        assert run_python(recipe, *words, cwd=ROOT).returncode == 0

    learned = gpg_vl(
        "train", ROOT / "configs" / "places_sft.yaml", f"model.path={base}", f"data.train={tmp_path / 'worked' / 'train'}",
        f"output.folder={tmp_path / 'sft'}", "train.steps=2", "train.prompts_per_step=8", "eval.every=0", "eval.task=null",
    )  # fmt: skip
    assert learned.returncode == 0, learned.stderr
    start = tmp_path / "sft" / "checkpoints" / "step-000002" / "model"

    trained = gpg_vl(
        "train", ROOT / "configs" / "places.yaml", f"model.path={start}", f"data.train={tmp_path / 'places' / 'train'}",
        f"eval.data={tmp_path / 'places'}", f"output.folder={tmp_path / 'run'}", "train.steps=2", "train.prompts_per_step=4",
        "eval.limit=10",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    steps = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all({"reward/counting", "reward/format"} <= set(row) for row in steps), steps[0].keys()

    answered = run_python(
        "-m", "gpg_vl.eval", "places", "--model", tmp_path / "run" / "checkpoints" / "step-000002" / "model",
        "--data", tmp_path / "places", "--limit", 10, "--output", tmp_path / "eval", cwd=ROOT,
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    scored = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]["places"]
    assert scored["n"] == 10
    assert scored["chance_Add"] == pytest.approx(0.233)
    assert scored["chance_Compare"] == pytest.approx(0.431)
