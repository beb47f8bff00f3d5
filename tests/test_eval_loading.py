"""Reading benchmarks: which files of a download are taken, what a wrong row is called, and what is never run or followed."""

import json
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmark_data import WRITERS, multiple_choice, text_math, virft, visual_math
from benchmark_data.files import picture, write_jsonl, write_parquet, write_picture

from gpg_vl.data.images import ImageError, image_size, read_image
from gpg_vl.errors import UserError
from gpg_vl.eval.loading import image_cell, rows_of, tables
from gpg_vl.eval.runner import check_gold
from gpg_vl.eval.task import pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.eval.tasks.text_math import olympiadbench
from gpg_vl.eval.tasks.visual_math import mathvista

# --- which files --------------------------------------------------------------------------------------------------------


def test_shards_of_a_split_are_taken_in_order_and_only_of_that_split(tmp_path):
    for split, shards in (("test", 3), ("train", 2)):
        for shard in range(shards):
            file = tmp_path / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet"
            write_parquet(file, [{"split": split, "shard": shard}])
    files = tables(tmp_path, name="Set", split="test")
    assert [row["shard"] for row, _ in rows_of(files, required=("shard",))] == [0, 1, 2]
    (tmp_path / "data" / "test-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"has 2 of the 3 shards of test\. Fetch the others"):
        tables(tmp_path, name="Set", split="test")


def test_a_folder_without_the_split_is_refused_by_what_it_holds(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1}])
    assert tables(tmp_path, name="Set", split="test") == (tmp_path / "a.jsonl",)
    write_jsonl(tmp_path / "b.jsonl", [{"x": 1}])
    with pytest.raises(
        UserError,
        match=r"holds a\.jsonl, b\.jsonl. A Set folder holds test-\*\.parquet or test\.jsonl",
    ):
        tables(tmp_path, name="Set", split="test")
    with pytest.raises(UserError, match="There is no Set data at"):
        tables(tmp_path / "absent", name="Set", split="test")


def test_what_a_recipe_wrote_is_found_by_its_folder_or_its_split(tmp_path):
    for split in ("train", "test"):
        for part in (1, 0):
            write_jsonl(tmp_path / split / f"part-{part:05}.jsonl", [{"from": f"{split} {part}"}])
    for path, found in (
        (tmp_path, "test"),
        (tmp_path / "test", "test"),
        (tmp_path / "train", "train"),
    ):
        rows = rows_of(tables(path, name="Set", split="test"), required=("from",))
        assert [row["from"] for row, _ in rows] == [f"{found} 0", f"{found} 1"]


@pytest.mark.parametrize("group", [10, 200])
def test_a_table_of_pictures_is_never_in_memory_as_a_whole(tmp_path, group):
    """40 MB of pictures, in many row groups or in one, cost what a few rows of them need."""
    pictures = [
        {"image": {"bytes": bytes([n]) + random.Random(n).randbytes(200_000)}} for n in range(200)
    ]
    file = tmp_path / "test.parquet"
    pq.write_table(
        pa.Table.from_pylist(pictures),
        file,
        row_group_size=group,
        compression="none",
        write_batch_size=8,
    )
    before, firsts, held = pa.total_allocated_bytes(), [], []
    for row, _ in rows_of([file], required=("image",)):
        firsts.append(row["image"]["bytes"][0])
        held.append(pa.total_allocated_bytes() - before)
    assert firsts == list(range(200))
    assert 1_000_000 < max(held) < 20_000_000


def test_rows_are_numbered_in_their_own_file(tmp_path):
    files = [write_jsonl(tmp_path / f"{name}.jsonl", [{"x": name}] * 2) for name in "ab"]
    assert [(place.file.name, place.number) for _, place in rows_of(files, required=("x",))] == [
        ("a.jsonl", 0),
        ("a.jsonl", 1),
        ("b.jsonl", 0),
        ("b.jsonl", 1),
    ]
    with pytest.raises(UserError, match=r"a\.jsonl has no rows"):
        list(rows_of([write_jsonl(tmp_path / "a.jsonl", [])], required=()))


@pytest.mark.parametrize(
    ("task", "other"),
    [("gsm8k", "socratic"), ("docvqa", "InfographicVQA")],
    ids=["gsm8k", "docvqa"],
)
def test_another_config_of_the_same_download_is_left_alone(task, other, tmp_path):
    folder = WRITERS[task](tmp_path)
    files = tasks.get(task)().files(folder)
    assert len(files) == 1
    assert other not in str(files[0])


def test_blink_reads_its_subtasks_in_the_published_order(tmp_path):
    docs = tasks.get("blink")().load(WRITERS["blink"](tmp_path))
    names = [name for name, _, _, _ in multiple_choice.BLINK]
    assert [doc.columns["sub_task"] for doc in docs] == sorted(names * 2)
    assert [len(doc.example.images) for doc in docs] == [1, 1, 3, 3, 1, 1, 4, 4]


# --- what a row becomes -------------------------------------------------------------------------------------------------


def test_mmmu_shows_the_pictures_that_its_text_names(tmp_path):
    docs = tasks.get("mmmu")().load(WRITERS["mmmu"](tmp_path))
    assert [len(doc.example.images) for doc in docs] == [1, 2, 1, 3, 1]
    assert docs[0].example.images == (picture(1),)
    assert docs[1].example.images == (picture(11), picture(12))
    assert docs[0].example.choices == ("$6", "$7", "$8", "$9")
    assert docs[0].example.prompt == "<image 1> What is the profit?\nA. $6\nB. $7\nC. $8\nD. $9"
    assert [doc.columns["subject"] for doc in docs] == [
        "Accounting",
        "Art_Theory",
        "Math",
        "Music",
        "Physics",
    ]
    assert [doc.columns["domain"] for doc in docs][:2] == ["Business", "Art and Design"]
    assert docs[4].columns["golds"] == ["Ohm", "Ohm's law"]
    assert docs[2].columns["instruction"] == "Answer the question using a single word or phrase."


def test_mathverse_reads_options_out_of_the_question(tmp_path):
    docs = tasks.get("mathverse")().load(WRITERS["mathverse"](tmp_path))
    assert docs[0].example.choices == docs[4].example.choices == ("20°", "40°", "70°", "110°")
    assert docs[9].example.choices is None
    assert [doc.columns["problem_index"] for doc in docs] == ["0"] * 5 + ["1"] * 5
    assert [doc.columns["problem_version"] for doc in docs[:5]] == list(visual_math.VERSIONS)
    assert docs[4].example.prompt.startswith(
        "Please directly answer"
    )  # the question itself stands in the picture


def test_mathvista_golds_are_letters_where_there_are_options(tmp_path):
    docs = tasks.get("mathvista")().load(WRITERS["mathvista"](tmp_path))
    assert [doc.gold for doc in docs] == ["(B)", "14", "1.2", "[2007, 2008]", "0.25"]
    assert docs[0].columns["task"] == "textbook question answering"


def test_golds_of_text_mathematics_are_the_last_box_or_the_marked_number(tmp_path):
    def golds(task):
        return [doc.gold for doc in tasks.get(task)().load(WRITERS[task](tmp_path / task))]

    assert golds("gsm8k") == ["72", "1200"]
    assert golds("minerva") == golds("math500") == [gold for _, _, gold in text_math.MATH500]
    assert golds("aime24") == ["204", "25", "073"]


def test_classes_come_from_the_list_of_names(tmp_path):
    task = tasks.get("flowers102")()
    docs = task.load(WRITERS["flowers102"](tmp_path))
    names = virft.LISTS["flowers102"][2]
    assert [doc.gold for doc in docs] == [names[n % 4] for n in range(5)]
    assert docs[0].example.choices == names
    assert docs[3].example.images == (
        "3.jpg",
    )  # the file name alone: the list was written on somebody else's disk
    assert read_image(docs[3].example.images[0], root=docs[3].root) == picture(3, form="JPEG")
    assert task.load(tmp_path / "oxford_flowers.pth")[0].gold == names[0]


def test_a_table_of_ones_own_needs_all_classes(tmp_path):
    task = tasks.get("pets37")()
    rows = [
        {"image": "0.png", "solution": f"<answer>{name}</answer>"}
        for name in ("pug", "Abyssinian", "pug")
    ]
    file = write_jsonl(tmp_path / "test.jsonl", rows)
    assert [doc.example.choices for doc in task.load(file)] == [("Abyssinian", "pug")] * 3
    (tmp_path / "classes.txt").write_text("pug\nBeagle\nAbyssinian\n", encoding="utf-8")
    assert task.load(file)[0].example.choices == ("pug", "Beagle", "Abyssinian")
    (tmp_path / "classes.txt").write_text("pug\nBeagle\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"the class 'Abyssinian' is not among the 2 classes\. List all of them in"
    ):
        task.load(file)
    (tmp_path / "classes.txt").write_text("pug\nPug\nAbyssinian\n", encoding="utf-8")
    with pytest.raises(UserError, match="names 3 classes, of which some are the same"):
        task.load(file)


class Bomb:
    """What a pickle may do to who opens it."""

    def __reduce__(self):
        return (Path.write_text, (Path("opened"), "boom"))


def test_a_list_of_images_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.txt").write_text("pug\nBeagle\n")
    (tmp_path / "pets.pth").write_bytes(pickle.dumps([{"a.jpg": Bomb()}]))
    task = tasks.get("pets37")()
    with pytest.raises(UserError, match=r"pets\.pth cannot be read as a list of images"):
        task.load(tmp_path)
    torch.save([{"a.jpg": Bomb()}], tmp_path / "pets.pth")
    with pytest.raises(UserError, match=r"pets\.pth cannot be read as a list of images"):
        task.load(tmp_path)
    assert not (tmp_path / "opened").exists()
    torch.save([{"a.jpg": {"label": torch.tensor(2)}}], tmp_path / "pets.pth")
    with pytest.raises(UserError, match=r"row 0, column 'label': .* 0 to 1, a line of pets\.txt"):
        task.load(tmp_path)
    (tmp_path / "pets.txt").unlink()
    with pytest.raises(UserError, match="needs the class names next to it"):
        task.load(tmp_path)


# --- wrong rows -----------------------------------------------------------------------------------------------------------


def broken(task, folder, **cells):
    """The benchmark with other cells in its last row, as JSONL."""
    (file, *_) = tasks.get(task)().files(WRITERS[task](folder))
    rows = (
        pq.read_table(file).to_pylist()
        if file.suffix == ".parquet"
        else [json.loads(x) for x in open_lines(file)]
    )
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dict) and "bytes" in value:
                row[name] = "a.png"
            elif (
                isinstance(value, list)
                and value
                and isinstance(value[0], dict)
                and "bytes" in value[0]
            ):
                row[name] = ["a.png"]
    rows[-1] |= cells
    return write_jsonl(folder / "broken" / "rows.jsonl", rows)


def open_lines(file):
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("task", "cells", "message"),
    [
        (
            "geoqa",
            {"ground_truth": None},
            "column 'ground_truth': the value is None. Allowed is a text",
        ),
        ("geoqa", {"image_path": "../a.png"}, "column 'image_path': .* a path below"),
        ("geoqa", {"image_path": "/etc/passwd"}, "column 'image_path': .* a path below"),
        ("superclevr", {"ground_truth": "many"}, "column 'ground_truth': .* a whole number"),
        ("superclevr", {"question": " "}, "column 'question': .* a text"),
        ("refcoco", {"answer": "left"}, "column 'answer': .* a list of expressions"),
        ("refcoco", {"bbox": [1, 2, 3]}, r"column 'bbox': .* \[left, top, width, height\]"),
        ("math500", {"solution": ""}, "column 'solution': .* a text"),
        ("gsm8k", {"answer": "72"}, "column 'answer': .* a solution that ends in"),
        (
            "mathvista",
            {"answer_type": "date"},
            "column 'answer_type': .* text, integer, float, list",
        ),
        (
            "mathvista",
            {"answer": ""},
            "column 'answer': .* a text",
        ),  # the test split hides its answers
        (
            "mathvista",
            {"question_type": "multi_choice", "choices": ["1"]},
            "column 'choices': .* 2 to 26 option texts",
        ),
        (
            "mathvista",
            {"question_type": "multi_choice", "choices": ["1", "2"]},
            "column 'answer': .* one of the choices",
        ),
        (
            "mathverse",
            {"question_type": "multi-choice", "answer": "5"},
            "column 'answer': .* the letter of an option",
        ),
        ("mmmu", {"question_type": "essay"}, "column 'question_type': .* multiple-choice, open"),
        ("mmmu", {"options": "['a', 'b'"}, "column 'options': .* a list, or the text of one"),
        (
            "mmmu",
            {"options": "__import__('os').getcwd()"},
            "column 'options': .* a list, or the text of one",
        ),
        (
            "mmmu",
            {"question_type": "multiple-choice", "options": "['a', 'b']", "answer": "C"},
            "'answer': .* A, B",
        ),
        ("blink", {"answer": "hidden"}, r"column 'answer': .* \(A\), \(B\)"),
        ("blink", {"sub_task": "Colour"}, "column 'sub_task': .* Art_Style"),
        ("geometry3k", {"problem": None}, "column 'problem': .* a text"),
        ("chartqa", {"answer": None}, "column 'answer': .* a text, or a list of texts"),
        ("docvqa", {"answers": []}, "column 'answers': .* a text, or a list of texts"),
        ("vqav2", {"answers": [{"answer": 3}]}, "column 'answers': .* a text, or a list of texts"),
        ("flowers102", None, "There is no flowers102 data at"),
    ],
)
def test_a_wrong_cell_is_named_by_file_row_and_column(task, cells, message, tmp_path):
    file = tmp_path / "absent" if cells is None else broken(task, tmp_path, **cells)
    if cells is not None and task == "refcoco":
        write_picture(file.parent / "a.png", 1, (100, 50))
    expected = message if cells is None else rf"rows\.jsonl, row \d+, .*{message}"
    with pytest.raises(UserError, match=expected):
        tasks.get(task)().load(file)


@pytest.mark.parametrize(
    "task", [name for name in sorted(WRITERS) if name not in ("lisa", "digits", "cvbench")]
)
def test_a_missing_column_names_file_and_column(task, tmp_path):
    if task in virft.LISTS:
        file = write_jsonl(tmp_path / "x.jsonl", [{"image": "a.png"}])
        with pytest.raises(UserError, match=r"x\.jsonl, row 0, column 'answer': the value is None"):
            tasks.get(task)().load(file)
        return
    file = write_jsonl(tmp_path / "x.jsonl", [{"something": 1}])
    with pytest.raises(UserError, match=r"x\.jsonl:1 has no column '\w+'; it has something"):
        tasks.get(task)().load(file)


# --- images ---------------------------------------------------------------------------------------------------------------


def test_the_size_of_an_image_is_read_from_its_header(tmp_path):
    assert image_size(picture(1, (30, 20)), root=None) == (30, 20)
    write_picture(tmp_path / "a.jpg", 1, (31, 21))
    assert image_size("a.jpg", root=tmp_path) == (31, 21)
    assert image_size(picture(1, (300, 200))[:60], root=None) == (300, 200)  # the rest is missing
    with pytest.raises(ImageError, match="is no picture that can be read"):
        image_size(b"no picture", root=None)


def test_a_turned_photograph_has_the_size_that_is_shown(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size("a.jpg", root=tmp_path) == (20, 30)


def test_an_image_cell_is_bytes_a_struct_or_a_path_below_the_root(tmp_path):
    (_, place) = next(
        rows_of(
            [write_jsonl(tmp_path / "x.jsonl", [{"x": 1}])], required=(), root=tmp_path / "images"
        )
    )
    assert (
        image_cell(b"x", "image", place)
        == image_cell({"bytes": b"x", "path": "p"}, "image", place)
        == b"x"
    )
    assert image_cell({"bytes": None, "path": "p.png"}, "image", place) == "p.png"
    assert place.root == tmp_path / "images"
    for wrong in (None, "", 3, "/p.png", "a/../../p.png"):
        with pytest.raises(UserError, match="an encoded image, or a path below"):
            image_cell(wrong, "image", place)


def test_numbers_that_json_cannot_hold_do_not_stop_a_table(tmp_path):
    table = pa.table(
        {
            "question": ["x"],
            "answer": ["14"],
            "image": [picture(1)],
            "type": ["human"],
            "odd": [float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "test.parquet")
    (doc,) = tasks.get("chartqa")().load(tmp_path)
    assert doc.columns["odd"] is None
    assert doc.columns["kind"] == "human"


def test_the_layout_of_github_is_read_for_mathvista(tmp_path):
    """One object of rows by their ids, without the ready prompts."""
    row = {
        "question": "How long?",
        "image": "1.jpg",
        "choices": None,
        "unit": "cm",
        "precision": 1.0,
    }
    row |= {"answer": "1.2", "question_type": "free_form", "answer_type": "float", "metadata": {}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "testmini.json").write_text(json.dumps({"1": row}))
    (doc,) = mathvista().load(tmp_path, images=False)
    assert doc.gold == "1.2"
    assert "one decimal place" in doc.example.prompt
    assert doc.example.prompt.endswith("Question: How long? (Unit: cm)")


def test_golds_in_a_list_and_in_dollars_are_read(tmp_path):
    file = tmp_path / "train.jsonl"
    golds = [["$\\frac{1}{2}$"], ["2"], ["$1$", "$2$"]]
    file.write_text("".join(json.dumps({"question": "?", "final_answer": g}) + "\n" for g in golds))
    docs = olympiadbench().load(file)
    assert [doc.gold for doc in docs] == [r"\frac{1}{2}", "2", "$1$, $2$"]
    ceilings = check_gold(olympiadbench(), docs, pick_scorers(olympiadbench(), ["all"]))
    assert ceilings == {"strict": 1.0, "official": 1.0}
