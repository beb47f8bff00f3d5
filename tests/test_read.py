"""Sources into examples: round trips, every accepted cell, and every broken row or file with its place and remedy."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_vl.data.prompts import count_marks
from gpg_vl.data.read import load_examples, read_rows, resolve_columns
from gpg_vl.data.rows import (
    CellError,
    RowProblem,
    parse_choices,
    parse_images,
    parse_prompt,
    parse_row,
    parse_text,
)
from gpg_vl.errors import UserError
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example, Message

GOOD = {"prompt": "2+2?", "answer": "4"}


def jsonl(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder / name


def parquet(
    folder: Path, rows: list[dict[str, Any]], name: str = "data.parquet", **options: Any
) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, **options), folder / name)
    return folder / name


def problem(row: object) -> RowProblem:
    assert isinstance(row, RowProblem), row
    return row


# Round trips: what is written is what is read, whatever the file format.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "<image>" not in text
)
seen = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
words = texts.filter(lambda text: bool(text.strip()))
paths = st.from_regex(r"[a-z]{1,6}(/[a-z0-9]{1,6})?\.png", fullmatch=True)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@st.composite
def marked(draw: st.DrawFn, images: int) -> str | tuple[Message, ...]:
    """A prompt with as many marks as there are images, or none; as text or as a conversation."""
    marks = draw(st.sampled_from([0, images]))
    pieces = [draw(words)] + [piece for _ in range(marks) for piece in ("<image>", draw(texts))]
    if draw(st.booleans()):
        return "".join(pieces)
    at = draw(st.integers(0, len(pieces)))
    history = draw(
        st.sampled_from(
            [
                (),
                (Message(role="system", content="Be brief."),),
                (Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
            ]
        )
    )
    return (
        *history,
        *(Message(role="user", content="".join(part)) for part in (pieces[:at], pieces[at:])),
    )


@st.composite
def examples(draw: st.DrawFn) -> Example:
    images = tuple(draw(st.lists(paths | st.binary(min_size=1, max_size=9), max_size=3)))
    return Example(
        id=draw(words),
        images=images,
        prompt=draw(marked(len(images))),
        answer=draw(seen),
        choices=draw(st.none() | st.lists(texts, min_size=1, max_size=4).map(tuple)),
        task=draw(texts),
        meta={"note": draw(texts), "rank": draw(st.integers(-9, 9))},
    )


def plain_row(example: Example) -> dict[str, Any]:
    prompt = (
        example.prompt
        if isinstance(example.prompt, str)
        else [{"role": message.role, "content": message.content} for message in example.prompt]
    )
    choices = None if example.choices is None else list(example.choices)
    return {
        "id": example.id,
        "prompt": prompt,
        "answer": example.answer,
        "choices": choices,
        "task": example.task,
        **example.meta,
    }


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def json_row(example: Example) -> dict[str, Any]:
    images = [image if isinstance(image, str) else data_uri(image) for image in example.images]
    return plain_row(example) | {"images": images}


def arrow_row(example: Example) -> dict[str, Any]:
    images = [
        {"bytes": None, "path": image}
        if isinstance(image, str)
        else {"bytes": image, "path": "lost.png"}
        for image in example.images
    ]
    return plain_row(example) | {"images": images}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(examples(), min_size=1, max_size=5))
def test_what_is_written_is_read_again(
    rows: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    assert load_examples(jsonl(folder, *map(json_row, rows))) == rows
    for kind in (str, tuple):  # a Parquet column holds text or conversations, not both
        chosen = [row for row in rows if isinstance(row.prompt, kind)]
        if chosen:
            assert load_examples(parquet(folder, [arrow_row(row) for row in chosen])) == chosen


@settings(deadline=None, derandomize=True)
@given(value=json_values)
def test_an_unmapped_column_of_json_values_reaches_meta_unchanged(value: object) -> None:
    row = parse_row(
        GOOD | {"extra": value}, {"prompt": "prompt", "answer": "answer"}, row=3, source=""
    )
    assert isinstance(row, Example)
    assert row.meta == {"extra": value}
    assert json.loads(json.dumps(row.meta)) == row.meta


@settings(deadline=None, derandomize=True)
@given(images=st.integers(0, 6), marks=st.integers(0, 6), gap=texts)
def test_marks_are_as_many_as_images_or_none(images: int, marks: int, gap: str) -> None:
    prompt = "Look: " + gap.join(["<image>"] * marks)
    turns = [
        {
            "role": "user",
            "content": [{"type": "image"}] * marks + [{"type": "text", "text": "what?"}],
        }
    ]
    assert count_marks(prompt) == marks
    if marks in (0, images):
        assert parse_prompt(prompt, images=images) == prompt
        assert parse_prompt(turns, images=images) == (
            Message(role="user", content="<image>" * marks + "what?"),
        )
        return
    for cell in (prompt, turns):
        with pytest.raises(
            CellError, match=rf"has {marks} <image> mark\(s\) and the row has {images} image\(s\)"
        ):
            parse_prompt(cell, images=images)


# Any JSON in any cell is an example or a problem.

keys = st.sampled_from(["role", "content", "type", "text", "bytes", "path", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
optional = {"images": anything, "choices": anything, "task": anything, "id": anything}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    cells=st.fixed_dictionaries(
        {"prompt": anything | words, "answer": anything | words}, optional=optional
    )
)
def test_any_cells_are_an_example_or_a_problem(cells: dict[str, Any]) -> None:
    row = parse_row(cells, resolve_columns(list(cells), {}, where="x"), row=5, source="here")
    if isinstance(row, RowProblem):
        assert (row.row, row.source) == (5, "here")
        assert row.message.count(". ") >= 2
    else:
        assert count_marks(row.prompt) in (0, len(row.images))
        assert all(isinstance(image, str | bytes) for image in row.images)


# Sources.


def test_scenes_are_read_from_parquet_as_they_were_drawn(tmp_path: Path) -> None:
    rows = list(scenes.rows(3, 80))  # more than two batches
    read = load_examples(parquet(tmp_path, rows), {"prompt": "prompt"})
    fields = ("idx", "image", "prompt", "answer", "choices", "task")
    assert [example.id for example in read] == [str(i) for i in range(80)]
    for example, row in zip(read, rows, strict=True):
        assert example.images == (row["image"]["bytes"],)
        assert (example.prompt, example.answer, example.task) == (
            row["prompt"],
            row["answer"],
            row["task"],
        )
        assert example.choices == tuple(row["choices"])
        assert example.meta == {key: row[key] for key in row if key not in fields}


def test_rows_with_0_1_2_and_5_images_stand_in_one_file(tmp_path: Path) -> None:
    pictures = [row["image"]["bytes"] for row in scenes.rows(3, 5)]
    rows = [
        {"images": pictures[:n], "prompt": "<image>" * n + "?", "answer": n} for n in (0, 1, 2, 5)
    ]
    in_json = [row | {"images": [data_uri(picture) for picture in row["images"]]} for row in rows]
    for file in (parquet(tmp_path, rows), jsonl(tmp_path, *in_json)):
        read = load_examples(file)
        assert [example.images for example in read] == [tuple(pictures[:n]) for n in (0, 1, 2, 5)]
        assert [example.answer for example in read] == ["0", "1", "2", "5"]


def test_a_folder_is_read_in_the_order_of_names_with_one_numbering(tmp_path: Path) -> None:
    jsonl(tmp_path, GOOD | {"answer": "b0"}, "", GOOD | {"answer": "b1"}, name="b.jsonl")
    parquet(tmp_path, [GOOD | {"answer": "a0"}], name="a.parquet")
    parquet(
        tmp_path,
        [{"question": "?", "solution": "c0"}, {"question": None, "solution": "c1"}],
        name="c.parquet",
    )
    (tmp_path / "README.md").write_text("not data")
    rows = list(read_rows(tmp_path))
    assert [row.answer for row in rows[:4]] == ["a0", "b0", "b1", "c0"]
    assert [row.id for row in rows[:4]] == ["0", "1", "2", "3"]
    assert (problem(rows[4]).row, problem(rows[4]).source) == (4, f"{tmp_path}/c.parquet[1]")


@pytest.mark.parametrize("limit, number", [(None, 5), (1, 1), (3, 3), (99, 5)])
def test_a_limit_takes_the_first_rows(limit: int | None, number: int, tmp_path: Path) -> None:
    file = jsonl(tmp_path, *[GOOD | {"answer": i} for i in range(5)])
    assert [example.answer for example in load_examples(file, limit=limit)] == [
        str(i) for i in range(number)
    ]


def saved(
    folder: Path, splits: Mapping[str, list[dict[str, Any]]], *, images: bool = False
) -> Path:
    """A folder written by `save_to_disk`: a Dataset if the only split is called "", else a DatasetDict."""
    import datasets

    made = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    if images:
        made = {name: data.cast_column("image", datasets.Image()) for name, data in made.items()}
    (made[""] if "" in made else datasets.DatasetDict(made)).save_to_disk(str(folder))
    return folder


def test_image_columns_of_saved_data_sets_stay_encoded(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("image", "prompt", "answer")} for row in scenes.rows(3, 40)]
    folder = saved(tmp_path / "saved", {"": rows}, images=True)
    for source in (folder, f"datasets:{folder}"):
        assert [example.images[0] for example in load_examples(source)] == [
            row["image"]["bytes"] for row in rows
        ]


def test_class_labels_are_read_by_name(tmp_path: Path) -> None:
    import datasets

    kinds = {
        "question": datasets.Value("string"),
        "answer": datasets.ClassLabel(names=["cat", "dog"]),
    }
    data = datasets.Dataset.from_list(
        [{"question": "?", "answer": n} for n in (1, 0, None, -1)],
        features=datasets.Features(kinds),
    )
    data.save_to_disk(str(tmp_path / "saved"))
    rows = list(read_rows(tmp_path / "saved"))
    assert [row.answer for row in rows[:2]] == ["dog", "cat"]
    assert [(problem(row).row, problem(row).kind) for row in rows[2:]] == [
        (2, "answer"),
        (3, "answer"),
    ]


def test_splits_of_saved_data_sets_are_named(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", {"train": [GOOD]})
    two = saved(tmp_path / "two", {"train": [GOOD], "test": [GOOD, GOOD]})
    bare = saved(tmp_path / "bare", {"": [GOOD]})
    assert len(load_examples(f"datasets:{one}")) == len(load_examples(one)) == 1
    assert len(load_examples(f"datasets:{two}:test")) == 2
    for source, said, remedy in (
        (str(two), "names no split, and the data set has 2", f"datasets:{two}:train"),
        (f"datasets:{two}:tset", "'test'?", f"datasets:{two}:train"),
        (f"datasets:{bare}:train", "saved without splits", "Leave the split out"),
    ):
        with pytest.raises(UserError) as caught:
            load_examples(source)
        assert said in str(caught.value)
        assert remedy in str(caught.value)


def test_a_local_folder_is_loaded_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    rows = [{key: row[key] for key in ("image", "prompt", "answer")} for row in scenes.rows(3, 3)]
    parquet(tmp_path / "data", rows, name="train-00000-of-00001.parquet")
    read = load_examples(f"datasets:{tmp_path / 'data'}:train")
    assert [example.images[0] for example in read] == [row["image"]["bytes"] for row in rows]


def test_an_unknown_data_set_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"(?s)cannot be loaded: .*NAME_OR_PATH.*Check the name and the network"
    ):
        load_examples(f"datasets:{tmp_path}/nothing:train")


# Columns.


@pytest.mark.parametrize(
    "row, columns",
    [
        ({"prompt": "?", "answer": "x"}, {}),
        ({"question": "?", "solution": "x"}, {}),
        ({"problem": "?", "ground_truth": "x"}, {}),
        ({"q": "?", "a": "x"}, {"prompt": "q", "answer": "a"}),
        ({"question": "?", "prompt": "no", "answer": "x"}, {"prompt": "question"}),
        ({"prompt": "?", "answer": "no", "solution": "no", "gold": "x"}, {"answer": "gold"}),
        (
            {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": "x"}},
            {"answer": "reward_model.ground_truth"},
        ),
        ({"prompt": "?", "a.b": "x"}, {"answer": "a.b"}),
        ({"problem": "?", "prompt": "kind", "answer": "x"}, {"task": "prompt"}),
    ],
)
def test_common_names_are_found_and_declared_ones_win(
    row: dict[str, Any], columns: dict[str, str], tmp_path: Path
) -> None:
    for file in (jsonl(tmp_path, row), parquet(tmp_path, [row])):
        (example,) = load_examples(file, columns)
        assert example.prompt in ("?", (Message(role="user", content="?"),))
        assert example.answer == "x"


@pytest.mark.parametrize(
    "row, columns, said, remedy",
    [
        (
            {"prompt": "?", "question": "?", "answer": "x"},
            {},
            "'prompt' and 'question', and each could be the prompt",
            "columns: {prompt: prompt}",
        ),
        (
            {"prompt": "?", "answer": "x", "image": "a.png", "images": ["a.png"]},
            {},
            "'images' and 'image'",
            "columns: {images: images}",
        ),
        (
            {"prompt": "?", "label": "x"},
            {},
            "has no column 'answer' or 'solution' or 'ground_truth' for the answer. Known: label, prompt.",
            "columns: {answer: <column>}",
        ),
        (
            {"prompt": "?", "answer": "x", "pics": []},
            {"images": "pic"},
            "has no column 'pic' for the images. Did you mean 'pics'?",
            "columns: {images: <column>}",
        ),
        (
            {"prompt": "?", "answer": "x"},
            {"image": "pics"},
            "the field 'image', which examples do not have. Did you mean 'images'?",
            "columns: {field: column}",
        ),
        (
            {"prompt": "?", "answer": "x"},
            {"images": ""},
            "gives '' for the field 'images'",
            "leave the field out",
        ),
    ],
)
def test_columns_that_cannot_be_told_are_an_error_that_shows_the_mapping(
    row: dict[str, Any], columns: dict[str, str], said: str, remedy: str, tmp_path: Path
) -> None:
    for file in (jsonl(tmp_path, row, row), parquet(tmp_path, [row, row])):
        with pytest.raises(UserError) as caught:
            list(read_rows(file, columns))
        if file.suffix == ".parquet":  # whose columns are known before its rows
            with pytest.raises(UserError):
                next(read_rows(file, columns))
        assert said in str(caught.value)
        assert remedy in str(caught.value)


def test_a_jsonl_row_may_leave_an_optional_column_out(tmp_path: Path) -> None:
    file = jsonl(tmp_path, GOOD, GOOD | {"pics": ["a.png"]}, {"prompt": "?", "anwser": "x"})
    rows = list(read_rows(file, {"images": "pics"}))
    assert [row.images for row in rows[:2]] == [(), ("a.png",)]
    assert problem(rows[2]).source == f"{file}:3"
    assert "no column 'answer' for its answer. Did you mean 'anwser'?" in problem(rows[2]).message


# Cells.


@pytest.mark.parametrize(
    "cell, images",
    [
        (None, ()),
        ([], ()),
        ("a.png", ("a.png",)),
        (b"\x89PNG", (b"\x89PNG",)),
        (["a.png", b"x"], ("a.png", b"x")),
        ({"bytes": b"x", "path": "a.png"}, (b"x",)),
        ({"bytes": None, "path": "a.png"}, ("a.png",)),
        ([{"bytes": b"x"}, {"path": "a.png"}], (b"x", "a.png")),
        ({"bytes": b"", "path": None}, (b"",)),
        ("data:image/png;base64,eHl6", (b"xyz",)),
        ("DATA:image/svg+xml;base64,eH\n l6", (b"xyz",)),
    ],
)
def test_pictures_come_in_every_shape_that_data_sets_use(
    cell: object, images: tuple[str | bytes, ...]
) -> None:
    assert parse_images(cell) == images


@pytest.mark.parametrize(
    "cell, text",
    [
        ("x", "x"),
        ("", ""),
        (7, "7"),
        (0.5, "0.5"),
        (True, "true"),
        (False, "false"),
        (3.0, "3"),
        (-2.0, "-2"),
        (1e-05, "0.00001"),
        (1e20, "100000000000000000000"),
        (2**80, "1208925819614629174706176"),
        ("3.0", "3.0"),
    ],
)
def test_answers_are_texts_numbers_or_truth_values(cell: object, text: str) -> None:
    assert parse_text(cell, "answer") == text


@pytest.mark.parametrize(
    "cell, choices", [(None, None), ([], None), (["a", 2, True], ("a", "2", "true"))]
)
def test_no_choices_mean_an_open_question(cell: object, choices: tuple[str, ...] | None) -> None:
    assert parse_choices(cell) == choices


@pytest.mark.parametrize("cell, name", [(None, "5"), ("", "5"), (0, "0"), ("x", "x")])
def test_a_row_without_an_id_is_called_by_its_number(cell: object, name: str) -> None:
    row = parse_row(GOOD | {"id": cell}, {f: f for f in (*GOOD, "id")}, row=5, source="")
    assert row.id == name


BROKEN = [
    (
        {"images": "http://x.org/a.png"},
        "image",
        "Image 1 of 1 is the address 'http://x.org/a.png'",
        "Download",
    ),
    (
        {"images": "data:image/png;base64,eHl6@"},
        "image",
        "whose base64 is broken",
        "Export the row again",
    ),
    (
        {"images": "data:text/html,hi"},
        "image",
        "no data URI of a picture in base64",
        "Correct its beginning",
    ),
    ({"images": ["a.png", None]}, "image", "Image 2 of 2 is null", "Correct the cell"),
    ({"images": [""]}, "image", "Image 1 of 1 is ''", "write null for a row without images"),
    ({"images": 7}, "image", "Image 1 of 1 is 7", "Correct the cell"),
    (
        {"images": {"bytes": None, "path": None}},
        "image",
        "Image 1 of 1 is {'bytes': None, 'path': None}",
        "Correct the cell",
    ),
    (
        {"images": [{"image": "a.png"}]},
        "image",
        "Image 1 of 1 is the struct {'image': 'a.png'}",
        "Rename its key to path",
    ),
    (
        {"prompt": "<image><image>?", "images": "a.png"},
        "marks",
        "2 <image> mark(s) and the row has 1 image(s)",
        "Add",
    ),
    (
        {"prompt": "<image>?"},
        "marks",
        "1 <image> mark(s) and the row has 0 image(s)",
        "Add or remove",
    ),
    ({"prompt": 7}, "prompt", "The prompt is 7", "Correct the cell"),
    ({"prompt": []}, "prompt", "The prompt is []", "Correct the cell"),
    ({"prompt": " \n"}, "prompt", "The prompt is empty", "Write one"),
    ({"prompt": None}, "prompt", "The column 'prompt' is null", "Fill the cell"),
    (
        {"prompt": "\ud800"},
        "prompt",
        "half a surrogate pair at character 0",
        "Remove the character",
    ),
    ({"prompt": ["?"]}, "prompt", "Message 1 of 1 is '?'", '{"role": "user", "content": "..."}'),
    (
        {"prompt": [{"role": "tool", "content": "?"}]},
        "prompt",
        "has the role 'tool'",
        "system, user, assistant",
    ),
    (
        {"prompt": [{"role": "user", "content": None}]},
        "prompt",
        "has the content null",
        "images column",
    ),
    (
        {"prompt": [{"role": "user", "content": [{"type": "video", "video": "v"}]}]},
        "prompt",
        "has the content {'type': 'video', 'video': 'v'}",
        "{type: image}",
    ),
    (
        {"prompt": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}]},
        "prompt",
        "ends with a turn of the assistant",
        "Remove the turns",
    ),
    ({"answer": None}, "answer", "The column 'answer' is null", "Fill the cell"),
    ({"answer": ["4"]}, "answer", "The answer is ['4']", "Write it as a string"),
    ({"answer": float("nan")}, "answer", "The answer is nan", "Write it as a string"),
    ({"choices": "A, B"}, "choices", "The choices are 'A, B'", "Write them as a list"),
    ({"choices": ["A", None]}, "choices", "The option 2 of 2 is null", "Write it as a string"),
    ({"id": {}}, "id", "The id is {}", "Write it as a string"),
    ({"task": ["Count"]}, "task", "The task is ['Count']", "Write it as a string"),
]


@pytest.mark.parametrize(
    "cells, kind, said, remedy", BROKEN, ids=[str(i) for i in range(len(BROKEN))]
)
def test_a_broken_row_is_a_value_in_its_place(
    cells: dict[str, Any], kind: str, said: str, remedy: str, tmp_path: Path
) -> None:
    file = jsonl(tmp_path, GOOD, {"id": "odd", **GOOD, **cells}, GOOD)
    rows = list(read_rows(file))
    broken = problem(rows[1])
    assert (broken.row, broken.source, broken.kind) == (1, f"{file}:2", kind)
    assert said in broken.message
    assert remedy in broken.message
    assert broken.message.count(". ") >= 2
    assert broken.id == ("" if kind == "id" else "odd")
    assert [row.id for row in (rows[0], rows[2])] == ["0", "2"]
    with pytest.raises(UserError, match=r"^1 of the 3 rows of .* cannot be used:\n  row 1, "):
        load_examples(file)


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"prompt": "?", "answer": "x"', "The line is not JSON"),
        ("[1, 2]", "JSON of type list"),
        ("[" * 100_000, "The line is not JSON"),
        ('{"prompt": "?", "answer": ' + "9" * 5000 + "}", "The line is not JSON"),
    ],
)
def test_a_broken_line_is_named_by_its_number(line: str, said: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path, GOOD, "", line, GOOD)
    rows = list(read_rows(file))
    assert len(rows) == 3  # the blank line is no row
    assert (problem(rows[1]).row, problem(rows[1]).source, problem(rows[1]).kind) == (
        1,
        f"{file}:3",
        "json",
    )
    assert said in problem(rows[1]).message


def test_a_cell_too_deep_for_python_is_a_problem() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for field in ("prompt", "answer", "images", "choices", "extra"):
        row = problem(
            parse_row(
                GOOD | {field: deep},
                {f: f for f in (*GOOD, "images", "choices")},
                row=2,
                source="x",
            )
        )
        assert row.row == 2
        assert row.message.count(". ") >= 2


def test_bytes_that_are_not_utf8_are_a_broken_line(tmp_path: Path) -> None:
    lines = (
        b'\xef\xbb\xbf{"prompt": "?", "answer": "x"}\r\n',
        b'{"prompt": "\xe9", "answer": "x"}\r\n',
    )
    (tmp_path / "data.jsonl").write_bytes(b"".join(lines))
    good, broken = read_rows(tmp_path / "data.jsonl")
    assert isinstance(good, Example)
    assert problem(broken).source.endswith("data.jsonl:2")


def test_columns_that_json_cannot_hold_stay_out_of_meta(tmp_path: Path) -> None:
    import datetime

    row = GOOD | {
        "thumbnail": b"x",
        "day": datetime.date(2025, 1, 1),
        "rank": float("inf"),
        "box": [1.0, float("nan")],
    }
    (example,) = load_examples(parquet(tmp_path, [row]))
    assert example.meta == {"rank": None, "box": [1.0, None]}


# Files.


def test_the_first_ten_problems_and_their_number_are_shown(tmp_path: Path) -> None:
    file = jsonl(tmp_path, *[GOOD | {"answer": None} for _ in range(13)], GOOD)
    with pytest.raises(UserError) as caught:
        load_examples(file)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"13 of the 14 rows of {file} cannot be used:"
    assert [line.split(",")[0] for line in lines[1:11]] == [f"  row {i}" for i in range(10)]
    assert lines[11] == "  ... and 3 more"
    assert lines[12].endswith("Correct or remove these rows.")


@pytest.mark.parametrize(
    "name, content, said, remedy",
    [
        ("data.jsnl", None, "does not exist. Did you mean", "Correct the path"),
        (
            "nothing/at/all.jsonl",
            None,
            "does not exist. A .jsonl, .json or .parquet file",
            "Correct the path",
        ),
        ("data.csv", b"a,b\n", "ends in '.csv'", "Convert it"),
        ("broken.parquet", b"not parquet at all", "cannot be read: ", "Write or fetch it again"),
        ("empty.parquet", b"", "cannot be read: ", "It must be a complete Parquet file"),
        ("empty.jsonl", b"\n\n", "holds no rows", "At least one is needed"),
    ],
)
def test_a_broken_file_is_a_user_error(
    name: str, content: bytes | None, said: str, remedy: str, tmp_path: Path
) -> None:
    jsonl(tmp_path, GOOD)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_examples(tmp_path / name)
    assert name.split("/")[-1] in str(caught.value)
    assert said in str(caught.value)
    assert remedy in str(caught.value)


def test_a_file_that_may_not_be_read_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = jsonl(tmp_path, GOOD)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        UserError, match=r"data\.jsonl cannot be read: Permission denied.*Check its permissions"
    ):
        load_examples(file)


def test_an_empty_folder_and_a_damaged_saved_folder_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds no \.jsonl, \.json or \.parquet file of rows.*Give the folder"
    ):
        load_examples(tmp_path)
    folder = saved(tmp_path / "saved", {"": [GOOD]})
    next(folder.glob("*.arrow")).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cannot be read: .*\. It must be a complete"):
        load_examples(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(
        UserError,
        match=r"cannot be read: .*\. It must be a complete folder.*Write or fetch it again",
    ):
        load_examples(folder)


def test_a_parquet_file_that_breaks_off_in_the_middle_is_a_user_error(tmp_path: Path) -> None:
    rows = list(scenes.rows(3, 40))
    file = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=10, compression="zstd")
    data = bytearray(file.read_bytes())
    middle = pq.read_metadata(file).row_group(2).column(0).data_page_offset
    data[middle : middle + 400] = bytes(400)
    file.write_bytes(data)
    with pytest.raises(
        UserError, match=r"data\.parquet cannot be read: .*It must be a complete Parquet file"
    ):
        load_examples(file, {"prompt": "prompt"})
