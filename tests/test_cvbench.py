"""CV-Bench: reading both published layouts, scorers on every documented case, aggregates on published numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpg_vl.data.images import read_image
from gpg_vl.errors import UserError
from gpg_vl.eval.loading import rows_of
from gpg_vl.eval.predictions import Prediction, Response
from gpg_vl.eval.results import ScoredRow, summarise
from gpg_vl.eval.runner import check_gold
from gpg_vl.eval.settings import render, render_turn, settings_for
from gpg_vl.eval.statistics import point
from gpg_vl.eval.task import Doc, make_verdict, pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.eval.tasks.cvbench import cvbench, load
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example, Message

TASK = cvbench()


def strict(doc, text, prefilled=False):
    return TASK.scorers["strict"](doc, Response(text=text, prefill="<think>" if prefilled else ""))


def cambrian(doc, text):
    return TASK.scorers["cambrian"](doc, Response(text=text))


ROWS = list(scenes.rows(seed=5, number=12))


def make_doc(choices, gold="(A)", kind="2D", task="Relation", source="COCO", doc_id=0):
    columns = {"type": kind, "task": task, "source": source}
    prompt = "Which one? Select from the following choices.\n" + "\n".join(
        f"({chr(65 + i)}) {text}" for i, text in enumerate(choices)
    )
    example = Example(
        id=str(doc_id), prompt=prompt, answer=gold, choices=tuple(choices), task=task, meta=columns
    )
    return Doc(doc_id=doc_id, example=example)


# --- scorers ---

CHAIR = {"choices": ("table", "chair"), "gold": "(B)"}
COUNT = {"choices": ("11", "1", "10", "0"), "gold": "(B)"}
SIX = {"choices": ("1", "2", "3", "4", "5", "6"), "gold": "(F)"}


@pytest.mark.parametrize(
    ("given", "response", "score", "parsed"),
    [
        (CHAIR, "(B)", 1, "B"),
        (CHAIR, "B", 1, "B"),
        (CHAIR, "B.", 1, "B"),
        (CHAIR, "(B) chair", 1, "B"),
        (CHAIR, "Chair.", 1, "B"),
        (CHAIR, "(A)", 0, "A"),
        (CHAIR, "", 0, None),
        (CHAIR, "<answer></answer>", 0, None),
        (CHAIR, "a", 0, None),  # the article, although option A exists
        (CHAIR, "I cannot tell", 0, None),
        (CHAIR, "(A) (B)", 0, None),  # a list of all options
        (CHAIR, "(A) table or (B) chair", 0, None),
        (
            CHAIR,
            "The chair is closer than a table",
            1,
            "B",
        ),  # what it is compared with is not named
        (CHAIR, "The chair is closer to the camera.", 1, "B"),
        (CHAIR, "The answer is (B)", 1, "B"),
        (CHAIR, "The answer is not (B)", 0, None),
        (CHAIR, "<answer>not the chair</answer>", 0, None),
        (CHAIR, "answer is: b", 1, "B"),
        (CHAIR, "<think>first (A)</think><answer>(B)</answer>", 1, "B"),
        (CHAIR, "<think>so <answer>(B)</answer></think>", 0, None),  # inside the reasoning
        (CHAIR, "<answer>(A)</answer> no, <answer>(B)</answer>", 1, "B"),
        (CHAIR, "<answer>\n(B)\n</answer>", 1, "B"),
        (CHAIR, "so <answer>(B)", 0, None),  # cut off
        (CHAIR, "<think>it must be (B)", 0, None),  # never left the reasoning
        (CHAIR, r"\boxed{\text{B}}", 1, "B"),
        (COUNT, "11", 0, "A"),
        (COUNT, "There is 1 ball.", 1, "B"),
        (COUNT, "one", 1, "B"),
        (COUNT, "10", 0, "C"),
        (SIX, "(F)", 1, "F"),
        (CHAIR, "(F)", 0, None),  # not an option here
    ],
)
def test_strict_scores_each_case_by_hand(given, response, score, parsed):
    got = strict(make_doc(**given), response, False)
    assert (got.score, got.parsed) == (score, parsed)


def test_strict_knows_that_a_prefilled_response_starts_inside_the_reasoning():
    doc = make_doc(**CHAIR)
    got = strict(doc, "a table... (B)", True)
    assert (got.score, got.parsed, got.note) == (0, None, "unclosed_think")
    assert strict(doc, "(A)?</think> (B)", True).score == 1
    assert strict(doc, "hm <answer>(B)</answer>", True).note == "unclosed_think"
    assert strict(doc, "<answer>(A)</answer><answer>(B)</answer>", False).note == "several"


@pytest.mark.parametrize(
    ("kind", "given", "response", "score", "parsed"),
    [
        ("2D", CHAIR, "B", 1, "B"),
        ("2D", CHAIR, "(b).", 1, "B"),
        ("2D", CHAIR, "The answer is (B).", 1, "B"),
        ("2D", CHAIR, "Answer: B", 1, "B"),
        ("2D", CHAIR, "The answer is: b", 0, None),  # the first keyword wins and leaves the colon
        ("3D", CHAIR, "The answer is: b", 0, None),
        ("2D", CHAIR, "answer is a. No, the answer is b", 1, "B"),  # the last occurrence
        ("2D", CHAIR, "chair", 0, None),  # c is not among two letters
        ("2D", CHAIR, "but which?", 1, "B"),  # the first character of any prose
        ("2D", CHAIR, "", 0, None),
        ("2D", CHAIR, "<answer>B</answer>", 0, None),  # tags are not looked at
        ("3D", CHAIR, "B:", 1, "B"),
        ("3D", CHAIR, "(B),", 1, "B"),
        ("2D", COUNT, "1", 0, None),  # the option's text counts in 3D only,
        ("3D", COUNT, "1", 1, "1"),
        ("3D", COUNT, "100 of them", 1, "1"),  # where it is compared after the cut to one character
        ("3D", CHAIR, ".,:", 0, None),  # trailing punctuation goes first, and more of it in 3D
        ("2D", CHAIR, ".,:", 0, None),
        ("2D", SIX, "F", 1, "F"),
        # An article at the start is option A. In prose behind it, it is not looked at.
        ("2D", {"choices": ("table", "chair"), "gold": "(A)"}, "a chair", 1, "A"),
        (
            "2D",
            {"choices": ("table", "chair"), "gold": "(A)"},
            "The chair is closer than a table",
            0,
            None,
        ),
    ],
)
def test_cambrian_keeps_its_quirks(kind, given, response, score, parsed):
    got = cambrian(make_doc(kind=kind, **given), response)
    assert (got.score, got.parsed) == (score, parsed)


def test_cambrian_counts_as_answered_only_what_could_be_right():
    doc = make_doc(**CHAIR)
    assert [
        cambrian(doc, text).parsed is not None
        for text in ("A", "b", "chair", "", "<answer>B", "100")
    ] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert cambrian(make_doc(kind="3D", **COUNT), "100").parsed is not None


def test_official_scores_like_cambrian():
    doc = make_doc(**CHAIR)
    for response in ("B", "answer is: b", "chair", "<answer>B</answer>"):
        assert TASK.scorers["official"](doc, Response(text=response)) == cambrian(doc, response)


def test_every_gold_answer_is_accepted_by_every_scorer(tmp_path):
    docs = load(write_parquet(tmp_path / "test.parquet", ROWS))
    check_gold(TASK, docs, pick_scorers(TASK, ["all"]))


def test_a_scorer_that_refuses_the_gold_stops_the_evaluation():
    def refuse(doc, response):
        return make_verdict(doc, 0.5, "A")

    with pytest.raises(
        UserError, match=r"Doc 7 of cvbench: the scorer 'odd' does not accept .* '\(B\)' scores 0.5"
    ):
        check_gold(TASK, [make_doc(**CHAIR, doc_id=7)], {"odd": refuse})
    # `strict` is proved whether or not it was asked for, and must accept the option's text as well as its letter.
    with pytest.raises(UserError, match="Doc 4 of cvbench: the scorer 'strict' does not accept"):
        check_gold(TASK, [make_doc(("answer: 2", "1"), gold="(A)", doc_id=4)], {})


def test_an_ambiguous_option_text_is_no_way_to_write_the_gold():
    def golds(*choices):
        return [gold.text for gold in TASK.gold_responses(make_doc(choices, gold="(B)"))]

    assert golds("desk", "Desk ") == golds("B", "A") == ["(B)", "<answer>(B)</answer>"]
    assert golds("desk", "chair") == ["(B)", "<answer>(B)</answer>", "chair"]


# --- aggregates ---


def rows_with(accuracies):
    """Rows of (source, task, n, right) with 0/1 scores, as the runner makes them."""
    rows = []
    for source, task, n, right in accuracies:
        for i in range(n):
            doc = make_doc(
                ("1", "2", "3", "4") if task == "Count" else ("1", "2"),
                doc_id=len(rows),
                source=source,
                task=task,
                kind="3D" if source == "Omni3D" else "2D",
            )
            text = "(A)" if i < right else "(B)"
            prediction = Prediction(
                doc_id=len(rows), response=Response(text=text, finish_reason="stop", n_tokens=2)
            )
            rows.append(
                ScoredRow(
                    doc=doc, prediction=prediction, scores={"strict": strict(doc, text, False)}
                )
            )
    return rows


PUBLISHED = [  # total, count, relation, depth, distance: Qwen2-VL-2B base, SAT training
    ("SFT", 57.84, 60.02, 68.92, 55.00, 45.83),
    ("GRPO", 59.47, 59.64, 66.76, 54.16, 56.66),
    ("GPG without alpha", 69.11, 65.36, 82.62, 67.83, 60.67),
    ("GPG", 76.15, 66.62, 83.23, 81.66, 75.50),
    ("base", 29.11, 54.69, 22.46, 0.16, 31.66),  # 31.38 was published; its own columns give 29.11
]


@pytest.mark.parametrize(
    ("name", "total", "columns"), [(row[0], row[1], row[2:]) for row in PUBLISHED]
)
def test_published_columns_give_the_published_total_as_micro(name, total, columns):
    sizes = {"Count": 788, "Relation": 650, "Depth": 600, "Distance": 600}
    # The right answers behind a column that was rounded or cut to two places.
    right = {
        task: round(column / 100 * sizes[task]) for task, column in zip(sizes, columns, strict=True)
    }
    rows = rows_with(
        [
            ("Omni3D" if task in ("Depth", "Distance") else "COCO", task, sizes[task], right[task])
            for task in sizes
        ]
    )
    results = summarise(TASK, rows, seed=0, draws=200)
    estimates = results.estimates["strict"]
    for task, column in zip(sizes, columns, strict=True):
        assert 100 * estimates[task].value == pytest.approx(column, abs=0.01)
    assert 100 * estimates["micro"].value == pytest.approx(total, abs=0.011)
    if name == "base":
        assert abs(100 * estimates["micro"].value - 31.38) > 2
    # Half-widths that other people's error bars of this benchmark have.
    assert 1.0 < 100 * estimates["micro"].half_width < 2.0


def test_aggregates_by_hand():
    rows = rows_with(
        [
            ("ADE20K", "Count", 10, 5),
            ("ADE20K", "Relation", 10, 10),
            ("COCO", "Count", 40, 10),
            ("Omni3D", "Depth", 30, 15),
            ("Omni3D", "Distance", 10, 0),
        ]
    )
    estimates = summarise(TASK, rows, seed=0, draws=50).estimates["strict"]
    by_hand = {
        "ADE20K": 15 / 20,
        "COCO": 10 / 40,
        "Omni3D": 15 / 40,
        "Count": 15 / 50,
        "Relation": 1.0,
        "Depth": 0.5,
        "Distance": 0.0,
        "2D": (0.75 + 0.25) / 2,
        "3D": 0.375,
        "official": (0.5 + 0.375) / 2,
        "micro": 40 / 100,
    }
    assert {name: estimate.value for name, estimate in estimates.items()} == pytest.approx(by_hand)


def test_drawn_sources_are_weighed_like_those_they_stand_for_and_not_reported_under_their_names():
    counts = [("Count", 10, 5), ("Count", 40, 10), ("Depth", 30, 12)]
    names = ("ADE20K", "COCO", "Omni3D"), ("drawn 2D bright", "drawn 2D dark", "drawn 3D")
    real, drawn = (
        summarise(
            TASK,
            rows_with([(n, *c) for n, c in zip(sources, counts, strict=True)]),
            seed=3,
            draws=50,
        )
        for sources in names
    )
    assert drawn.estimates["strict"]["official"].value == ((0.5 + 0.25) / 2 + 0.4) / 2
    for name in ("official", "2D", "3D", "micro", "Count", "Depth"):
        assert drawn.estimates["strict"][name] == real.estimates["strict"][name]
    assert drawn.flat()["acc_COCO,strict"] is None
    assert real.flat()["acc_COCO,strict"] == 0.25


def test_chance_is_the_mean_of_one_over_the_options_under_every_aggregate():
    rows = rows_with(
        [
            ("ADE20K", "Count", 10, 0),
            ("ADE20K", "Relation", 30, 0),
            ("COCO", "Relation", 20, 0),
            ("Omni3D", "Depth", 40, 0),
        ]
    )
    results = summarise(TASK, rows, seed=0, draws=10)
    assert results.chance["Count"] == 0.25
    assert results.chance["Depth"] == 0.5
    assert results.chance["ADE20K"] == pytest.approx((10 / 4 + 30 / 2) / 40)
    assert results.chance["micro"] == results.mean_chance == pytest.approx((10 / 4 + 90 / 2) / 100)
    assert results.chance["official"] == pytest.approx(((0.4375 + 0.5) / 2 + 0.5) / 2)


def test_one_dimension_alone_has_no_official_number():
    rows = rows_with([("Omni3D", "Depth", 4, 2)])
    flat = summarise(TASK, rows, seed=0, draws=10).flat()
    assert flat["acc_3D,strict"] == 0.5
    assert (
        flat["acc_official,strict"]
        is flat["acc_2D,strict"]
        is flat["acc_official_stderr,strict"]
        is None
    )
    json.dumps(flat, allow_nan=False)


def test_the_letter_histogram_shows_a_preference_for_a_letter():
    rows = rows_with([("COCO", "Count", 5, 3)])
    assert summarise(TASK, rows, seed=0, draws=10).labels == {
        "strict": {"A": 3, "B": 2},
        "gold": {"A": 5},
    }


def test_official_exists_in_every_resample_of_the_smallest_data():
    rows = rows_with(
        [("ADE20K", "Count", 1, 1), ("COCO", "Count", 1, 0), ("Omni3D", "Depth", 1, 1)]
    )
    assert summarise(TASK, rows, seed=0).estimates["strict"]["official"].stderr == 0.0
    columns = {"source": np.array(["ADE20K", "COCO", "Omni3D"])}
    assert point(TASK.aggregates["official"], np.array([1.0, 0.0, 1.0]), columns) == 0.75


def test_the_bootstrap_draws_within_sources():
    """Each source is all right or all wrong: within sources no draw differs, across them the share of each varies."""
    rows = rows_with(
        [("ADE20K", "Count", 20, 20), ("COCO", "Count", 20, 0), ("Omni3D", "Depth", 20, 20)]
    )
    for name in ("micro", "Count"):
        within = summarise(TASK, rows, seed=0).estimates["strict"][name]
        across = summarise(replace(TASK, resample_within=()), rows, seed=0).estimates["strict"][
            name
        ]
        assert within.low == within.high == within.value
        assert across.high - across.low > 0.1


# --- prompts ---


@pytest.mark.parametrize(
    ("name", "text", "system", "tokens"),
    [
        (
            "official",
            "{p}\nAnswer with the option's letter from the given choices directly.",
            None,
            512,
        ),
        (
            "cambrian",
            "{p}\nAnswer with the option's letter from the given choices directly.",
            None,
            512,
        ),
        (
            "lmms",
            "Note: You only need to respond with A, B, C, D without providing any additional information.\n\n{p}",
            "You are a helpful assistant.",
            1024,
        ),
        (
            "visualthinker",
            "{p}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags.",
            None,
            1024,
        ),
        ("plain", "{p}", None, 1024),
    ],
)
def test_prompts_are_the_published_ones_to_the_letter(name, text, system, tokens):
    doc = make_doc(("3", "2", "1", "0"))
    settings = settings_for(TASK, name)
    turns = render(settings, doc).prompt
    assert turns[-1] == Message(role="user", content=text.replace("{p}", doc.example.prompt))
    assert [turn.content for turn in turns[:-1]] == ([system] if system else [])
    assert settings.max_new_tokens == tokens
    assert settings.style.prefill == ""


def test_the_base_prompt_ends_inside_the_reasoning():
    doc = make_doc(("3", "2"))
    settings = settings_for(TASK, "visualthinker_base")
    assert render_turn(settings, doc) + settings.style.prefill == (
        "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with "
        f"the answer.\nUser: {doc.example.prompt} \nAssistant: Let me solve this step by step.\n<think>"
    )
    assert settings.style.chat == "plain"


def test_the_letters_of_the_prompt_are_those_of_the_options():
    assert "respond with A, B without" in render_turn(
        settings_for(TASK, "lmms"), make_doc(("x", "y"))
    )


def test_a_question_may_contain_a_mark_of_the_template():
    doc = make_doc(("{letters}", "{prompt}"))
    assert render_turn(settings_for(TASK, "plain"), doc) == doc.example.prompt


def test_an_unknown_prompt_or_scorer_names_the_nearest():
    with pytest.raises(
        UserError, match=r"has no prompt called 'oficial'\. Did you mean 'official'"
    ):
        settings_for(TASK, "oficial")
    with pytest.raises(UserError, match=r"has no scorer called 'strct'\. Did you mean 'strict'"):
        pick_scorers(TASK, ["strct"])
    everyone = [
        "strict",
        "official",
        "cambrian",
        "lmms",
        "lmms_reasoning",
        "vlmevalkit",
        "visualthinker",
    ]
    assert list(pick_scorers(TASK, ["all"])) == everyone
    assert list(pick_scorers(TASK, ["lmms", "all", "lmms"])) == [
        "lmms",
        *(name for name in everyone if name != "lmms"),
    ]


# --- data ---


def write_parquet(file: Path, rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def write_jsonl(file: Path, rows) -> Path:
    """Rows without their image, which goes below img/, as in the published folders."""
    for row in rows:
        image = file.parent / row["filename"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(row["image"]["bytes"])
    lines = [
        json.dumps({name: value for name, value in row.items() if name != "image"}) for row in rows
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def by_kind(kind):
    return [row for row in ROWS if row["type"] == kind]


LAYOUTS = {
    "test_2d.parquet + test_3d.parquet": lambda at: (
        [write_parquet(at / f"test_{k.lower()}.parquet", by_kind(k)) for k in ("3D", "2D")] and at
    ),
    "test.parquet": lambda at: (
        write_parquet(at / "test.parquet", by_kind("2D") + by_kind("3D")).parent
    ),
    "test_2d.jsonl + test_3d.jsonl": lambda at: (
        [write_jsonl(at / f"test_{k.lower()}.jsonl", by_kind(k)) for k in ("3D", "2D")] and at
    ),
    "test.jsonl": lambda at: write_jsonl(at / "test.jsonl", by_kind("2D") + by_kind("3D")).parent,
    "a parquet file": lambda at: write_parquet(at / "mine.parquet", by_kind("2D") + by_kind("3D")),
    "a jsonl file": lambda at: write_jsonl(at / "mine.jsonl", by_kind("2D") + by_kind("3D")),
    "a folder with one table": lambda at: (
        write_parquet(at / "mine.parquet", by_kind("2D") + by_kind("3D")).parent
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_docs(tmp_path, layout):
    path = LAYOUTS[layout](tmp_path)
    docs = load(path)
    expected = by_kind("2D") + by_kind("3D")
    assert [doc.doc_id for doc in docs] == list(range(12))
    for doc, row in zip(docs, expected, strict=True):
        assert (doc.gold, doc.example.answer, doc.example.task) == (
            row["answer"],
            row["answer"],
            row["task"],
        )
        assert doc.example.choices == tuple(row["choices"])
        assert doc.example.prompt == row["prompt"]
        assert doc.columns == {name: value for name, value in row.items() if name != "image"}
        (image,) = doc.example.images
        assert read_image(image, root=doc.root) == row["image"]["bytes"]
    assert [doc.example.images for doc in load(path, images=False)] == [()] * 12


def test_parquet_is_taken_before_jsonl_in_a_complete_download(tmp_path):
    for kind in ("2D", "3D"):
        write_parquet(tmp_path / f"test_{kind.lower()}.parquet", by_kind(kind))
        (tmp_path / f"test_{kind.lower()}.jsonl").write_text("not read", encoding="utf-8")
    assert [file.name for file in TASK.files(tmp_path)] == ["test_2d.parquet", "test_3d.parquet"]
    assert len(load(tmp_path)) == 12


@pytest.mark.parametrize("column", ["type", "task", "choices", "answer", "prompt", "source"])
@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_a_missing_column_names_file_and_column(tmp_path, write, column):
    suffix = ".parquet" if write is write_parquet else ".jsonl"
    rows = [{name: value for name, value in row.items() if name != column} for row in ROWS]
    with pytest.raises(UserError, match=rf"test\{suffix}.* has no column '{column}'; it has "):
        load(write(tmp_path / f"test{suffix}", rows))


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("answer", "C", r"\(A\), \(B\)"),
        ("answer", "(E)", r"\(A\), \(B\), \(C\), \(D\)\."),
        ("answer", None, r"\(A\), \(B\)"),
        ("type", "2d", "2D, 3D"),
        ("task", "count", "Count, Relation, Depth, Distance"),
        ("source", "ADE", "ADE20K, COCO, Omni3D"),
        ("choices", ["one"], "2 to 26 option texts"),
        ("choices", "one", "2 to 26 option texts"),
        ("choices", ["one", ""], "2 to 26 option texts"),
        ("prompt", " ", "a text"),
        ("filename", "../secret.png", "a path below"),
        ("filename", "/etc/passwd", "a path below"),
        ("filename", None, "an encoded image, or a path below"),
    ],
)
def test_a_wrong_value_names_file_row_and_column(tmp_path, column, value, allowed):
    file = write_jsonl(tmp_path / "test.jsonl", ROWS)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines[4][column] = value
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"test\.jsonl, row 4, column '{column}': the value is .*{allowed}"
    ):
        load(file)


def test_half_a_download_is_refused(tmp_path):
    write_parquet(tmp_path / "test_2d.parquet", by_kind("2D"))
    with pytest.raises(UserError, match=r"has test_2d\.parquet but not test_3d\.parquet"):
        load(tmp_path)
    assert len(load(tmp_path / "test_2d.parquet")) == 6  # but the half may be asked for


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "There is no CV-Bench data at"),
        ("folder/", None, "holds no .parquet and no .jsonl file"),
        ("test.csv", b"a,b", "ends in '.csv'. .parquet, .jsonl and .json files"),
        ("test.parquet", b"PAR1 torn", "cannot be read"),
        ("test.jsonl", b"", "has no rows"),
        ("test.jsonl", b'{"type": "2D"\n', r"test\.jsonl:1: The line is not JSON"),
        ("test.jsonl", b"[1]\n", "begins with a list that is one JSON document"),
        ("test.jsonl", b"1\n", r"test\.jsonl:1: The line is 1, JSON of type int"),
        ("test.jsonl", b"\xff\xfe\x00\n", "is text in UTF-16 or UTF-32"),
    ],
)
def test_unreadable_data_is_one_clear_message(tmp_path, name, content, message):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_columns_that_are_not_wanted_are_not_read(tmp_path, suffix):
    rows = [{"question": "x", "image": "big"}]
    file = tmp_path / f"rows{suffix}"
    write_parquet(file, rows) if suffix == ".parquet" else file.write_text(json.dumps(rows[0]))
    rows = rows_of([file], required=("question",), without=("image",))
    assert [row for row, _ in rows] == [{"question": "x"}]


def test_columns_of_others_are_kept_if_json_can_hold_them(tmp_path):
    rows = [
        {**row, "difficulty": {"level": float("nan"), "tags": ["x"]}, "thumbnail": b"\x89PNG"}
        for row in ROWS
    ]
    doc = load(write_parquet(tmp_path / "test.parquet", rows))[0]
    assert doc.columns["difficulty"] == {"level": None, "tags": ["x"]}
    assert "thumbnail" not in doc.columns
    json.dumps(dict(doc.columns), allow_nan=False)


def test_the_task_is_found_by_name():
    assert tasks.get("cvbench")().sizes == {"test": 2638}
