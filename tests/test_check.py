"""The data check: every problem is found and named, nothing is dropped, and the numbers are right."""

import io
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_images import CASES, bare_png, encoded, gradient

from gpg_vl.answers.options import gold_index
from gpg_vl.data.check import Checks, DataReport, PromptCounts, check, show_progress
from gpg_vl.data.gold_answers import answer_problems
from gpg_vl.data.images import load_image
from gpg_vl.data.read import read_rows
from gpg_vl.data.rows import Row, RowProblem
from gpg_vl.data.summary import histogram, summarise
from gpg_vl.errors import UserError
from gpg_vl.quickstart import scenes
from gpg_vl.rewards.builtin import choice
from gpg_vl.types import Completion, Example

CELL = 28 * 28


def count(example: Example, *, root: Path | None = None) -> PromptCounts:
    """One token for each word and for each square of 28 pixels; every picture is decoded."""
    sizes = tuple(load_image(image, root=root, max_pixels=10**6).size for image in example.images)
    image_tokens = sum(width * height // CELL for width, height in sizes)
    assert isinstance(example.prompt, str)
    return PromptCounts(
        tokens=image_tokens + len(example.prompt.split()),
        image_tokens=image_tokens,
        image_sizes=sizes,
    )


CHECKS = Checks(count=count, max_prompt_tokens=100)
checked = partial(check, checks=CHECKS, source="data")


def example(number: int = 0, **changes: object) -> Example:
    return replace(Example(id=str(number), prompt="How many?", answer="4", task="Count"), **changes)


def printed(report: DataReport, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    report.render(console)
    return console.file.getvalue()


def test_drawn_scenes_are_good_data(tmp_path: Path) -> None:
    rows = list(scenes.rows(3, 40))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    report = check(
        read_rows(tmp_path / "data.parquet", {"prompt": "prompt"}), checks=CHECKS, source="scenes"
    )
    assert report.ok
    assert (report.rows, report.images, len(report.tokens)) == (40, 40, 40)
    assert report.tasks == {"Count": 10, "Depth": 10, "Distance": 10, "Relation": 10}
    sizes = [(s.columns * 28, s.rows * 28) for s in (scenes.scene(3, i) for i in range(40))]
    assert report.image_tokens == tuple(width * height // CELL for width, height in sizes)
    words = tuple(len(row["prompt"].split()) for row in rows)
    assert report.tokens == tuple(map(sum, zip(report.image_tokens, words, strict=True)))
    assert report.image_sizes == {size: sizes.count(size) for size in sizes}
    assert list(report.image_sizes.values()) == sorted(report.image_sizes.values(), reverse=True)


def test_0_1_2_and_5_images_of_mixed_sizes_are_counted() -> None:
    pictures = [encoded(gradient(28 * n, 28)) for n in (1, 2, 3, 1, 1)]
    report = checked([example(n, images=tuple(pictures[:n])) for n in (0, 1, 2, 5)])
    assert report.ok
    assert report.images == 8
    assert report.image_tokens == (0, 1, 3, 8)
    assert report.tokens == (2, 3, 5, 10)
    assert report.image_sizes == {(28, 28): 5, (56, 28): 2, (84, 28): 1}
    assert list(report.image_sizes) == [(28, 28), (56, 28), (84, 28)]


READ_PROBLEM = RowProblem(
    row=1, id="1", source="data.jsonl:2", kind="marks", message="2 marks. One. Add."
)


@pytest.mark.parametrize(
    "row, kind, said, remedy",
    [
        (READ_PROBLEM, "marks", "2 marks", "Add"),
        (example(1, answer=" "), "answer", "The answer is empty", "Fill it in or remove the row"),
        (
            example(1, choices=("a", "b")),
            "choices",
            "The answer '4' is none of the 2 choices 'a', 'b'",
            "Correct",
        ),
        (example(0), "id", "The id '0' already belongs to row 0", "Rename one"),
        (
            example(1, prompt="x " * 101),
            "length",
            "has 101 tokens. max_prompt_tokens=100 are allowed",
            "shorten",
        ),
        (
            example(1, images=(encoded(gradient(280, 280)),) * 2),
            "length",
            "has 202 tokens, 200 of them for 2 image(s) of 280x280, 280x280. max_prompt_tokens=100",
            "shrink the images",
        ),
        (example(1, images=("a.png",)), "image", "no image root was given", "Set the image root"),
        *[
            (example(1, images=(data,)), "image", said, remedy)
            for data, said, remedy in CASES.values()
        ],
    ],
)
def test_a_problem_is_named_by_row_and_id_and_the_rest_is_still_checked(
    row: Row, kind: str, said: str, remedy: str
) -> None:
    report = checked([example(0), row, example(2), example(3, answer="")])
    assert not report.ok
    assert report.rows == 4
    found, last = report.problems
    assert (found.row, found.id, found.kind) == (1, row.id, kind)
    assert said in found.message
    assert remedy in found.message
    assert (last.row, last.id, last.kind) == (3, "3", "answer")
    assert f"row 1, id '{row.id}'" in printed(report)
    assert remedy in printed(report)


@pytest.mark.parametrize(
    "path, said",
    [
        ("../secret.png", "climbs out of a folder"),
        ("{tmp}/secret.png", "outside the image root"),
        ("link.png", "outside the image root"),
        ("none.png", "does not exist"),
        ("bomb.png", "60000x60000|too many pixels"),
        ("cut.jpg", "truncated"),
    ],
)
def test_files_that_a_data_set_names_are_checked(path: str, said: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(gradient()))
    (root / "good.png").write_bytes(encoded(gradient()))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "bomb.png").write_bytes(bare_png(60000, 60000))
    (root / "cut.jpg").write_bytes(encoded(gradient(200, 200), "JPEG")[:900])
    named = [
        {"prompt": "<image>?", "answer": "x", "image": image}
        for image in ("good.png", path.format(tmp=tmp_path))
    ]
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, named)))
    checks = Checks(count=partial(count, root=root), max_prompt_tokens=None)
    report = check(read_rows(root / "data.jsonl"), checks=checks)
    (found,) = report.problems
    assert (found.row, found.kind) == (1, "image")
    assert any(part in found.message for part in said.split("|"))
    assert report.images == 1


def test_one_row_can_have_several_problems() -> None:
    row = example(0, answer="z", choices=("a", "b"), prompt="x " * 200)
    report = checked([example(0), row])
    assert [(problem.row, problem.kind) for problem in report.problems] == [
        (1, "choices"),
        (1, "id"),
        (1, "length"),
    ]
    assert report.tokens == (2, 200)  # too long is still counted


def test_no_limit_means_no_length_problem() -> None:
    assert checked(
        [example(0, prompt="x " * 9999)], checks=replace(CHECKS, max_prompt_tokens=None)
    ).ok


def test_what_the_encoder_refuses_is_a_problem_with_its_words() -> None:
    def refuse(_: Example) -> PromptCounts:
        raise UserError("An image of 1x900 pixels. At most 200:1. Crop it.")

    (found,) = checked([example(0)], checks=replace(CHECKS, count=refuse)).problems
    assert (found.kind, found.message) == (
        "encode",
        "An image of 1x900 pixels. At most 200:1. Crop it.",
    )


def test_a_bug_in_counting_is_no_problem_of_the_data() -> None:
    def fail(_: Example) -> PromptCounts:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checked([example(0)], checks=replace(CHECKS, count=fail))


def test_a_source_that_breaks_off_is_the_last_problem(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield example(0)
        yield READ_PROBLEM
        raise UserError("The file ends early. A whole one is needed. Fetch it again.")

    report = checked(rows())
    assert report.rows == 2
    assert [(problem.row, problem.kind) for problem in report.problems] == [
        (1, "marks"),
        (2, "source"),
    ]
    assert "Fetch it again" in printed(report)

    (tmp_path / "data.jsonl").write_text('{"prompt": "?", "label": "x"}\n')
    report = checked(read_rows(tmp_path / "data.jsonl"))
    assert [problem.kind for problem in report.problems] == ["column", "source"]
    assert "has no column 'answer' or 'solution' or 'ground_truth'" in report.problems[1].message


def test_no_rows_are_a_problem() -> None:
    report = checked([])
    assert [problem.kind for problem in report.problems] == ["source"]
    assert "There are no rows" in printed(report)
    assert json.loads(report.to_json())["tokens"] is None


@pytest.mark.parametrize(
    "answer, good",
    [
        ("A", True),
        ("c", True),
        ("(B)", True),
        ("b.", True),
        ("B:", True),
        (" (A) ", True),
        ("(B) Teal Cube", True),
        ("teal cube", True),
        ("3", True),
        ("a dog", True),
        ("C. a dog", True),
        ("(A) 3", True),
        ("A dog", True),
        ("D", False),
        ("(D)", False),
        ("4", False),
        ("(A) teal cube", False),
        ("cube", False),
        ("teal", False),
        ("AB", False),
        ("1", False),
        ("A cat", False),
        ("(", False),
        ("Baa", False),
    ],
)
def test_a_gold_answer_names_a_choice_by_letter_text_or_both(answer: str, good: bool) -> None:
    found = list(answer_problems(example(answer=answer, choices=("3", "Teal cube", "a dog"))))
    assert [kind for kind, _ in found] == ([] if good else ["choices"])
    assert all("from A to C" in message for _, message in found)


@pytest.mark.parametrize(
    "answer, choices",
    [
        ("<answer>A</answer>", ("ball", "cube")),
        ("<answer>\ncube </answer>", ("ball", "cube")),
        ("<ANSWER>(b)</ANSWER>", ("ball", "cube")),
        ("ball", ("(A) ball", "(B) cube")),
        ("B", ("A. ball", "B. cube")),
        ("(B) cube", ("(A) ball", "(B) cube")),
        ("a", ("ball", "cube")),
    ],
)
def test_a_gold_answer_is_read_as_the_reward_reads_it(
    answer: str, choices: tuple[str, ...]
) -> None:
    row = example(answer=answer, choices=choices)
    assert list(answer_problems(row)) == []
    right = "ball" if gold_index(row) == 0 else "cube"
    completion = Completion(token_ids=(), logprobs=(), text=right, finish_reason="stop")
    assert choice(completion, row) == 1.0


@pytest.mark.parametrize(
    "answer, choices, said",
    [
        (
            "A",
            ("ball", "ball", "cube"),
            "The options A and B of 'ball', 'ball', 'cube' have one text",
        ),
        ("ball", ("ball", " ball ", "cube"), "A and B"),
        ("C", ("ball", "cube", "cube"), "B and C"),
        ("B", ("(A) ball", "(B) ball"), "A and B"),
        ("<answer></answer>", ("ball", "cube"), "is empty"),
        ("<answer>D</answer>", ("ball", "cube"), "none of the 2 choices"),
    ],
)
def test_options_that_a_right_answer_could_be_mistaken_for(
    answer: str, choices: tuple[str, ...], said: str
) -> None:
    (found,) = answer_problems(example(answer=answer, choices=choices))
    assert said in found[1]


@pytest.mark.parametrize(
    "answer, choices",
    [
        ("C", ("ball", "ball", "cube")),
        ("Cu", ("cu", "Cu", "Fe")),
        ("A", ("pH", "PH")),
    ],
)
def test_options_that_no_right_answer_could_be_mistaken_for(
    answer: str, choices: tuple[str, ...]
) -> None:
    assert list(answer_problems(example(answer=answer, choices=choices))) == []


def test_an_open_question_takes_any_answer() -> None:
    assert list(answer_problems(example(answer="anything", choices=None))) == []


@given(values=st.lists(st.integers(0, 5000), min_size=1, max_size=60))
@settings(deadline=None, derandomize=True)
def test_summaries_and_histograms_account_for_every_value(values: list[int]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert (summary.total, summary.min, summary.max) == (sum(values), min(values), max(values))
    assert summary.median == statistics.median_low(values)
    at_most = sum(value <= summary.p95 for value in values)
    assert at_most * 100 >= 95 * len(values)
    assert sum(value < summary.p95 for value in values) * 100 < 95 * len(values)
    bins = histogram(values)
    assert 1 <= len(bins) <= 10
    for low, high, rows in bins:
        assert rows == sum(low <= value <= high for value in values)
    assert sum(rows for _, _, rows in bins) == len(values)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(bins))


def test_a_hand_made_summary() -> None:
    summary = summarise([*range(1, 20), 1000])  # the 19th of 20 is the 95th percentile
    assert summary is not None
    assert (summary.total, summary.min, summary.median, summary.p95, summary.max) == (
        1190,
        1,
        10,
        19,
        1000,
    )
    assert summarise([]) is None
    assert histogram([]) == ()
    assert histogram([7, 7]) == ((7, 7, 2),)


def test_the_report_prints_statistics_and_counts_problems() -> None:
    pictures = [encoded(gradient(28 * (n + 1), 28)) for n in range(12)]
    rows = [example(n, images=(pictures[n],)) for n in range(12)]
    text = printed(checked([*rows, *(example(0) for _ in range(23))]))
    assert "35 rows, 12 images, 23 problems; at most 100 tokens allowed" in text
    assert "2 other sizes" in text
    assert "28x28" in text
    assert "Count" in text
    assert "23 problems: id 23" in text
    assert "row 31" in text
    assert "row 32" not in text
    assert "... and 3 more; the JSON report lists all of them." in text
    bars = [line for line in text.splitlines() if "━" in line]
    assert bars
    assert max(line.count("━") for line in bars) == 30
    assert bars[0].count("━") == 30  # prompts without a picture are the most frequent


def test_text_that_looks_like_markup_is_printed_as_it_is() -> None:
    text = printed(
        checked([example(0, id="[/red]", answer="", task="[bold]")], source="[/x].jsonl")
    )
    assert "id '[/red]'" in text
    assert "[bold]" in text
    assert "[/x].jsonl" in text


def test_the_json_report_holds_everything() -> None:
    picture = encoded(gradient(56, 28))
    report = checked([example(0, images=(picture,)), example(1, answer=""), READ_PROBLEM])
    got = json.loads(report.to_json())
    assert got["problems"] == [
        {
            "row": 1,
            "source": "",
            "kind": "answer",
            "message": report.problems[0].message,
            "id": "1",
        },
        {
            "row": 1,
            "source": "data.jsonl:2",
            "kind": "marks",
            "message": READ_PROBLEM.message,
            "id": "1",
        },
    ]
    del got["problems"]
    (note,) = got.pop("notes")
    assert note.startswith("1 of the 2 rows have no image, and 1 have one.")
    assert got == {
        "source": "data",
        "ok": False,
        "rows": 3,
        "images": 1,
        "max_prompt_tokens": 100,
        "golds": [{"id": "0", "answer": "4"}, {"id": "1", "answer": ""}],
        "tasks": {"Count": 2},
        "tokens": {"total": 6, "min": 2, "median": 2, "p95": 4, "max": 4},
        "image_tokens": {"total": 2, "min": 0, "median": 0, "p95": 2, "max": 2},
        "image_sizes": [{"width": 56, "height": 28, "images": 1}],
        "histogram": [{"from": n, "to": n, "rows": rows} for n, rows in ((2, 1), (3, 0), (4, 1))],
    }


@pytest.mark.parametrize("total", [None, 3])
def test_a_console_shows_progress_and_changes_nothing(total: int | None) -> None:
    rows = [example(0), READ_PROBLEM, example(2)]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    assert checked(show_progress(rows, console, total=total)) == checked(rows)
    assert "checking rows" in console.file.getvalue()
