"""Rows as ms-swift, LLaMA-Factory, EasyR1, verl, VLM-R1 and R1-V lay them out: read as they are, or asked about."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import gpg_vl, metrics, write_config

from gpg_vl.config import load_config
from gpg_vl.data.read import load_examples, read_rows
from gpg_vl.data.rows import RowProblem
from gpg_vl.errors import UserError
from gpg_vl.quickstart import scenes
from gpg_vl.training.prepare import prepare
from gpg_vl.types import Example, Message

SYSTEM = "Answer with a letter."
ASKED = "<image>Which is closer?\n(A) ball\n(B) cube"
BOTH = "<image><image>Which picture has more balls?"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


ROWS: Mapping[str, list[dict[str, Any]]] = {
    "ms-swift, GRPO": [
        {
            "messages": [turn("system", SYSTEM), turn("user", ASKED)],
            "images": ["a.png"],
            "solution": "<answer>(B)</answer>",
        },
        {
            "messages": [turn("user", BOTH)],
            "images": ["a.png", "b.png"],
            "solution": "<think>More of them.</think><answer>(A)</answer>",
        },
    ],
    "ms-swift, messages": [
        {
            "messages": [turn("system", SYSTEM), turn("user", ASKED), turn("assistant", "(B)")],
            "images": ["a.png"],
        },
        {
            "messages": [turn("user", BOTH), turn("assistant", "<answer>(A)</answer>")],
            "images": ["a.png", "b.png"],
        },
    ],
    "ms-swift, query and response": [
        {"query": ASKED, "response": "(B)", "system": SYSTEM, "images": ["a.png"]},
        {"query": BOTH, "response": "(A)", "images": ["a.png", "b.png"]},
    ],
    "LLaMA-Factory, sharegpt": [
        {
            "conversations": [said("human", ASKED), said("gpt", "<answer>(B)</answer>")],
            "system": SYSTEM,
            "images": ["a.png"],
        },
        {
            "conversations": [said("human", BOTH), said("gpt", "(A)")],
            "system": "",
            "images": ["a.png", "b.png"],
        },
    ],
    "LLaMA-Factory, alpaca": [
        {
            "instruction": "<image>Which is closer?",
            "input": "(A) ball\n(B) cube",
            "output": "(B)",
            "system": SYSTEM,
            "history": [],
            "images": ["a.png"],
        },
        {"instruction": BOTH, "input": "", "output": "(A)", "images": ["a.png", "b.png"]},
    ],
    "VLM-R1": [
        {
            "id": 1,
            "image": "a.png",
            "conversations": [said("system", SYSTEM), said("human", ASKED), said("gpt", "(B)")],
        },
        {
            "id": 2,
            "image": ["a.png", "b.png"],
            "conversations": [said("human", BOTH), said("gpt", "<answer>(A)</answer>")],
        },
    ],
    "EasyR1": [
        {"images": [b"A"], "problem": ASKED, "answer": "(B)"},
        {"images": [b"A", b"B"], "problem": BOTH, "answer": "(A)"},
    ],
    "verl": [
        {
            "data_source": "scenes",
            "prompt": [turn("system", SYSTEM), turn("user", ASKED)],
            "images": [b"A"],
            "ability": "depth",
            "reward_model": {"style": "rule", "ground_truth": "(B)"},
            "extra_info": {"split": "train", "index": 0, "answer": "cube"},
        },
        {
            "data_source": "scenes",
            "prompt": [turn("user", BOTH)],
            "images": [b"A", b"B"],
            "ability": "count",
            "reward_model": {"style": "rule", "ground_truth": "(A)"},
            "extra_info": {"split": "train", "index": 1, "answer": "first"},
        },
    ],
    "R1-V": [
        {
            "image": b"A",
            "problem": ASKED.removeprefix("<image>"),
            "solution": "<answer> (B) </answer>",
        },
        {"image": b"B", "problem": "Which is larger?", "solution": "<answer> (A) </answer>"},
    ],
}
"""Two rows each: one picture, where there can be one a system turn; then two pictures, where there can be two."""
WITHOUT_SYSTEM = {"EasyR1", "R1-V"}
NAMES = sorted(ROWS)


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    rows = list(scenes.rows(3, 2))
    return {name: row["image"]["bytes"] for name, row in zip("ab", rows, strict=True)}


def write_rows(folder: Path, name: str, pictures: Mapping[str, bytes]) -> Path:
    """The rows in the kind of file that they come in: Parquet with pictures inside, or JSONL with paths to them."""
    stored = {b"A": pictures["a"], b"B": pictures["b"]}
    for letter, data in pictures.items():
        (folder / f"{letter}.png").write_bytes(data)

    def fill(cell: object) -> object:
        if isinstance(cell, list):
            return [fill(one) for one in cell]
        return {"bytes": stored[cell], "path": None} if isinstance(cell, bytes) else cell

    rows = [{key: fill(cell) for key, cell in row.items()} for row in ROWS[name]]
    if any(isinstance(cell, bytes | list) and b"A" in cell for cell in ROWS[name][0].values()):
        file = folder / "train.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_other_programs_are_read_as_they_are(
    name: str, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    first, second = load_examples(write_rows(tmp_path, name, pictures))
    answers = [example.answer for example in (first, second)]
    assert ["(B)" in answers[0], "(A)" in answers[1]] == [True, True]
    assert "closer" in str(first.prompt)
    assert "(B) cube" in str(first.prompt)

    turns = first.prompt if isinstance(first.prompt, tuple) else ()
    systems = [one.content for one in turns if one.role == "system"]
    assert systems == ([] if name in WITHOUT_SYSTEM else [SYSTEM])
    assert not turns or turns[-1].role == "user"
    if name != "R1-V":
        assert len(second.images) == 2
        assert "system" not in str(second.prompt)


def config_of(folder: Path, name: str, pictures: Mapping[str, bytes], checkpoint: Path) -> Path:
    """One step on the rows: a reward that reads their gold answers, and one that varies on a random model."""
    data = write_rows(folder, name, pictures)
    return write_config(
        folder,
        checkpoint,
        data={"train": str(data), "columns": {}},
        rewards={"weights": {"vqa": 1.0, f"{folder / 'luck.py'}:luck": 1.0}},
        train={"prompts_per_step": 2, "steps": 1},
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_data_check_has_nothing_against_them(
    name: str, tmp_path: Path, pictures: dict[str, bytes], tiny_checkpoint: Path
) -> None:
    """Each row is rendered, each picture decoded, each gold answer read as the reward reads it."""
    config = load_config(config_of(tmp_path, name, pictures, tiny_checkpoint))
    report = prepare(config, processes=1, console=None).sets[0].report
    assert report.ok
    assert len(report.tokens) == 2


@pytest.mark.parametrize(
    "name", ["ms-swift, GRPO", "LLaMA-Factory, alpaca", "VLM-R1", "verl", "R1-V"]
)
def test_a_step_is_trained_on_them(
    name: str, tmp_path: Path, pictures: dict[str, bytes], tiny_checkpoint: Path
) -> None:
    config = config_of(tmp_path, name, pictures, tiny_checkpoint)
    checked = gpg_vl("data", "check", config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    trained = gpg_vl("train", config)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    [step] = metrics(tmp_path / "run")
    assert (step["kind"], step["groups_seen"]) == ("train", 2)


# ---- one by one


def read_one(row: Mapping[str, Any], tmp_path: Path, **columns: str) -> Example | RowProblem:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    [read] = read_rows(file, columns)
    return read


def test_turns_of_from_and_value_are_turns_of_role_and_content(tmp_path: Path) -> None:
    row = {
        "conversations": [
            said("system", "s"),
            said("human", "1"),
            said("gpt", "2"),
            said("human", "3"),
            said("gpt", "4"),
        ]
    }
    example = read_one(row, tmp_path)
    assert isinstance(example, Example)
    assert example.prompt == (
        Message(role="system", content="s"),
        Message(role="user", content="1"),
        Message(role="assistant", content="2"),
        Message(role="user", content="3"),
    )
    assert example.answer == "4"


def test_history_comes_before_the_question(tmp_path: Path) -> None:
    row = {"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]], "system": "s"}
    example = read_one(row, tmp_path)
    assert isinstance(example, Example)
    assert [(m.role, m.content) for m in example.prompt if isinstance(m, Message)] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c\nd"),
    ]
    assert example.answer == "e"


def test_a_system_column_of_other_rows_is_read_where_it_is_declared(tmp_path: Path) -> None:
    """Of a row with a common name it may be anything: an operating system, say."""
    row = {"question": "q", "answer": "a", "system": "Linux", "more": {"system": "Linux"}}
    plain, declared = read_one(row, tmp_path), read_one(row, tmp_path, system="more.system")
    assert isinstance(plain, Example)
    assert (plain.prompt, plain.meta["system"]) == ("q", "Linux")
    assert isinstance(declared, Example)
    assert declared.prompt == (
        Message(role="system", content="Linux"),
        Message(role="user", content="q"),
    )


def test_a_common_name_comes_before_those_of_other_programs(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "messages": [turn("user", "no")], "response": "no"}
    example = read_one(row, tmp_path)
    assert isinstance(example, Example)
    assert (example.prompt, example.answer) == ("q", "a")


def test_an_answer_may_be_declared_to_be_the_last_turn(tmp_path: Path) -> None:
    """With a column of answers as well, which of them counts is not guessed."""
    row = {"messages": [turn("user", "q"), turn("assistant", "last")], "solution": "other"}
    problem = read_one(row, tmp_path)
    assert isinstance(problem, RowProblem)
    assert "columns: {answer: <column of the conversation>}" in problem.message
    example = read_one(row, tmp_path, answer="messages")
    assert isinstance(example, Example)
    assert example.answer == "last"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [turn("user", "q")]}, "columns: {answer: <column>}"),
        ({"conversations": [said("observation", "q")]}, "Message 1 of 1 is from 'observation'"),
        ({"conversations": [said("human", "q"), said("tool", "r"), said("gpt", "a")]}, "'tool'"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, "The column 'input' is ['x']"),
        ({"query": "q", "response": "a", "history": ["x"]}, "The history is ['x']"),
        (
            {
                "system": "s",
                "messages": [turn("system", "t"), turn("user", "q"), turn("assistant", "a")],
            },
            "2 system turns",
        ),
        (
            {"messages": [{"human": "q", "assistant": "a"}], "solution": "a"},
            "has a role and a content",
        ),
        ({"prompt": "q", "reward_model": {"style": "rule"}}, "reward_model.ground_truth"),
    ],
)
def test_what_is_not_understood_is_asked_about(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    problem = read_one(row, tmp_path)
    assert isinstance(problem, RowProblem)
    assert words in problem.message


def test_two_columns_that_could_be_the_question_are_asked_about(tmp_path: Path) -> None:
    row = {"messages": [turn("user", "q")], "query": "q", "response": "a"}
    with pytest.raises(UserError, match=r"Declare which it is: columns: \{prompt: messages\}"):
        read_one(row, tmp_path)


def test_without_gold_answers_a_conversation_may_end_with_the_user(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [turn("user", "q")]},
        {"messages": [turn("user", "q"), turn("assistant", "a")]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_examples(file, answers=False)
    assert [example.answer for example in read] == ["", "a"]
    assert read[0].prompt == read[1].prompt


texts = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_every_layout_of_one_conversation_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    *earlier, (asked, answer) = pairs
    ours = [turn(r, x) for pair in pairs for r, x in zip(("user", "assistant"), pair, strict=True)]
    theirs = [said(r, x) for pair in pairs for r, x in zip(("human", "gpt"), pair, strict=True)]
    history = [list(pair) for pair in earlier]
    read = [
        read_one(row, folder)
        for row in (
            {"messages": ours},
            {"conversations": theirs},
            {"instruction": asked, "output": answer, "history": history},
            {"query": asked, "response": answer, "history": history},
        )
    ]
    assert all(isinstance(one, Example) and one.answer == answer for one in read)
    turns = [
        [(m.role, m.content) for m in one.prompt]
        if isinstance(one.prompt, tuple)
        else [("user", one.prompt)]
        for one in read
        if isinstance(one, Example)
    ]
    assert all(one == turns[0] for one in turns)
