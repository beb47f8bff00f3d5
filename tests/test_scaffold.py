"""`gpg-vl init` and `gpg-vl new-task`: what they write is read by the programs that it is for."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import scene_example
from pages import files
from runs import gpg_vl, run_python, write_scenes

from gpg_vl.cli import main
from gpg_vl.config import load_config
from gpg_vl.scaffold.columns import guess_columns

ROOT = Path(__file__).parents[1]


def write_rows(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def said_by_init(data: Path, out: Path, *options: str) -> str:
    assert main(["init", str(data), "--out", str(out), *options]) == 0
    return out.read_text()


# ---- init


@pytest.mark.parametrize(
    "row,expected",
    [
        (
            {"query": "Which?", "img": "a.png", "label": "B"},
            {"prompt": "query", "images": "img", "answer": "label"},
        ),
        (
            {
                "idx": 1,
                "question": "Q?",
                "problem": "P?",
                "solution": "2",
                "note": "long text here",
            },
            {"id": "idx", "prompt": "question", "answer": "solution"},
        ),
        (
            {"messages": [{"role": "user", "content": "Q?"}], "reward": {"ground_truth": "7"}},
            {"prompt": "messages", "answer": "reward.ground_truth"},
        ),
        (
            {"text": "Q?", "candidates": ["a", "b"], "target": "a", "category": "x"},
            {"prompt": "text", "choices": "candidates", "answer": "target", "task": "category"},
        ),
        (
            {"photo": {"bytes": b"\x89PNG", "path": None}, "Question": "Q?", "gtAnswer": 3},
            {"images": "photo", "prompt": "Question", "answer": "gtAnswer"},
        ),
    ],
    ids=["synonyms", "two-questions", "messages", "choices", "struct"],
)
def test_columns_are_guessed(row: dict[str, object], expected: dict[str, str]) -> None:
    from gpg_vl.scaffold.columns import _flat

    guesses = guess_columns([dict(_flat(row))], {})
    assert {guess.field: guess.column for guess in guesses} == expected


def test_what_the_user_says_is_taken(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "no", "label": f"{n} km"} for n in range(3)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    said_by_init(data, tmp_path / "c.yaml", "--columns", "answer=label")
    config = load_config(tmp_path / "c.yaml")
    assert config.data.columns == {"prompt": "question", "answer": "label"}
    assert config.rewards.weights == {"math": 1.0}


@pytest.mark.parametrize(
    "rows,weights",
    [
        ([{"q": "How many cats?", "answer": n} for n in (2, 5)], {"counting": 1.0}),
        ([{"q": "What is it worth?", "answer": n} for n in (2, 5)], {"math": 1.0}),
        ([{"q": "Half?", "answer": r"\frac{1}{2}"}], {"math": 1.0}),
        ([{"q": "Who?", "answer": "Ada"}], {"vqa": 1.0}),
        ([{"q": "?", "answer": "b", "choices": ["a", "b"]}], {"choice": 1.0}),
        # one answer that is none of its choices: the rule does not fit, and the check will say so
        ([{"q": "?", "answer": "c", "choices": ["a", "b"]}], {"vqa": 1.0}),
    ],
    ids=["counting", "number", "formula", "text", "choice", "bad-choice"],
)
def test_the_reward_is_one_that_gives_the_gold_answers_full_marks(
    tmp_path: Path, rows: list[dict[str, object]], weights: dict[str, float]
) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"question": row.pop("q"), **row} for row in rows])
    said_by_init(data, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml").rewards.weights == weights


def test_the_config_passes_the_check_of_the_data(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Pictures as bytes in a Parquet file, and as files in a folder beside that of the rows."""
    scenes = write_scenes(tmp_path / "scenes.parquet", 8)
    said_by_init(scenes, tmp_path / "scenes.yaml", "--model", str(tiny_checkpoint))

    (tmp_path / "images").mkdir()
    (tmp_path / "rows").mkdir()
    examples = [scene_example(number) for number in range(4)]
    for one in examples:
        (tmp_path / "images" / f"{one.id}.png").write_bytes(bytes(one.images[0]))
    rows = [
        {
            "query": "Which is it?",
            "pic": f"{one.id}.png",
            "label": one.answer,
            "options": one.choices,
        }
        for one in examples
    ]
    files_of = write_rows(tmp_path / "rows" / "train.jsonl", rows)
    text = said_by_init(files_of, tmp_path / "files.yaml", "--model", str(tiny_checkpoint))
    assert yaml.safe_load(text)["data"]["root"] == str(tmp_path / "images")
    assert "{choices}" in yaml.safe_load(text)["prompt"]["template"]

    for config in ("scenes.yaml", "files.yaml"):
        result = gpg_vl("data", "check", tmp_path / config)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "0 problems" in result.stdout
        assert "no image" not in result.stdout


def test_init_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"question": "Q?", "size": [1, 2]}])
    out = tmp_path / "c.yaml"
    assert main(["init", str(data), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "None of the columns looks like the gold answer: size. Say which it is" in said
    assert not out.exists()

    out.write_text("mine")
    assert main(["init", str(data), "--out", str(out)]) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["init", str(data), "--columns", "gold=x", "--out", str(tmp_path / "e.yaml")]) == 2
    assert "--columns has 'gold=x'. Write FIELD=COLUMN" in capsys.readouterr().err


# ---- new-task


def test_new_task_writes_the_files_of_the_page(tmp_path: Path) -> None:
    page = files((ROOT / "docs" / "new_task.md").read_text())
    assert main(["new-task", "corners", "--folder", str(tmp_path / "new")]) == 0
    written = {file.name: file.read_text() for file in (tmp_path / "new").iterdir()}
    assert written == page


def test_a_task_of_another_name_is_called_so_everywhere(tmp_path: Path) -> None:
    assert main(["new-task", "stars", "--folder", str(tmp_path)]) == 0
    config = yaml.safe_load((tmp_path / "stars.yaml").read_text())
    assert config["eval"] == {"task": "stars_task.py:stars", "data": "data/stars/test"}
    made = {file.name for file in tmp_path.iterdir()}
    assert made == {
        "stars_recipe.py",
        "stars_reward.py",
        "stars_task.py",
        "stars.yaml",
        "completions.jsonl",
    }
    # the parts find each other under the new name
    result = run_python("stars_recipe.py", "--out", "data/stars", cwd=tmp_path)
    assert "checked: data.train: data/stars/train" in result.stdout, result.stderr
    test = ("rewards", "test", "stars_reward.py:corner", "--data", "data/stars/train")
    assert "60 get full marks" in gpg_vl(*test, cwd=tmp_path).stdout
    (tmp_path / "show.py").write_text("import stars_task; print(stars_task.stars().name)")
    result = run_python("show.py", cwd=tmp_path)
    assert result.stdout == "stars\n", result.stderr


def test_new_task_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stars.yaml").write_text("mine")
    assert main(["new-task", "stars", "--folder", str(tmp_path)]) == 2
    assert "stars.yaml exists already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["stars.yaml"]
    assert main(["new-task", "Two Stars", "--folder", str(tmp_path)]) == 2
    assert "The task is called 'Two Stars'" in capsys.readouterr().err
