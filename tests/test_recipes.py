"""Every recipe on a small copy of its data set: rows by hand, prompts to the letter, broken rows, kills, seeds, help."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from recipe_runs import ROOT, broken, card, examples, run, run_killed, script, tree
from sources import geometry3k, picture, r1v, reasonseg, refcoco, sat, struct, text, virft

from gpg_vl import cli
from gpg_vl.config import load_config, parse_config
from gpg_vl.data.read import load_examples
from gpg_vl.eval.tasks import cvbench
from gpg_vl.quickstart import scenes
from gpg_vl.rewards.gold_proof import check_gold
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item
from gpg_vl.training.prepare import make_encoder
from gpg_vl.types import Completion, Example, Message


class Case(NamedTuple):
    """A recipe with a source to run it on, and how row 6 of that source is spoilt."""

    write: Callable[..., Path] | None
    command: tuple[str, ...]
    rows: int
    """Rows of train that are made."""
    spoil: dict[str, Any] = {}  # noqa: RUF012  nobody writes into it
    place: str = ""
    """Where row 6 stands, and what is said of it."""
    reason: str = ""


PARQUET = "data/train-00000-of-00001.parquet[6]"
SECOND = "data/train-00001-of-00002.parquet[0]"
CASES = {
    "sat": Case(
        sat.write,
        ("sat",),
        10,
        {"correct_answer": "the moon"},
        "SAT_train.parquet[6]",
        "is none of the 2 choices",
    ),
    "geoqa": Case(
        lambda folder, **c: r1v.write(folder, r1v.GEOQA, **c),
        ("geoqa",),
        12,
        {"solution": "<answer>1"},
        SECOND,
        "One answer is needed",
    ),
    "clevr": Case(
        lambda folder, **c: r1v.write(folder, r1v.CLEVR, **c),
        ("clevr",),
        12,
        {"solution": "<answer>many</answer>"},
        SECOND,
        "not a count",
    ),
    "geometry3k": Case(
        geometry3k.write, ("geometry3k",), 8, {"images": []}, PARQUET, "holds no picture"
    ),
    "math_levels": Case(
        text.write_math,
        ("math_levels",),
        7,
        {"level": "Level 9"},
        "train.jsonl:7",
        "The level is 'Level 9'",
    ),
    "gsm8k": Case(
        text.write_gsm8k,
        ("gsm8k",),
        12,
        {"answer": "It is 72."},
        "main/train-00000-of-00001.parquet[6]",
        "does not end in `#### ` and a number",
    ),
    "reasonseg folder": Case(
        reasonseg.write_folder,
        ("reasonseg",),
        15,
        {"shapes": []},
        "train/006.json",
        "not a list of polygons",
    ),
    "reasonseg json": Case(
        reasonseg.write_visual_rft,
        ("reasonseg",),
        16,
        {"boxes": [[1, 2, 3]]},
        "lisa_train.json[6]",
        "not [left, top",
    ),
    "reasonseg parquet": Case(
        reasonseg.write_parquet_copy,
        ("reasonseg",),
        8,
        {"img_width": 400},
        PARQUET,
        "states 400x100 pixels, its picture has 200x100",
    ),
    "refcoco json": Case(
        refcoco.write_vlm_r1,
        ("refcoco", "refcoco", "--image-root", "{folder}/coco"),
        12,
        {"image": "../x.jpg"},
        "refcoco_train.json[6]",
        "climbs out",
    ),
    "refcoco parquet": Case(
        refcoco.write_hub,
        ("refcoco", "refcocog", "--split", "val"),
        23,
        {"bbox": [190.0, 10.0, -5.0, 9.0]},
        "data/val-00000-of-00001.parquet[6]",
        "has no area",
    ),
    "virft_classification": Case(
        lambda folder, **c: virft.write_classification(folder, "flowers", **c),
        ("virft_classification", "flowers"),
        12,
        {"image": struct(b"GIF8")},
        PARQUET,
        "no picture that can be read",
    ),
    "virft_detection": Case(
        virft.write_detection,
        ("virft_detection", "coco"),
        12,
        {"solution": "<answer>[{'Position': [9, 9, 1, 1], 'Confidence': 1}]</answer>"},
        PARQUET,
        "no box with its corners in order",
    ),
    "digits": Case(None, ("digits", "--shots", "4"), 40),
    "scenes": Case(None, ("scenes", "--rows", "20", "--test-rows", "8"), 20),
    "places": Case(None, ("places", "--rows", "20", "--test-rows", "8"), 20),
}
WITH_SOURCE = [name for name, case in CASES.items() if case.write]


def command(name: str, folder: Path, out: Path, *more: str, **changes: Any) -> list[str]:
    """The command of a case, its source written into `folder`."""
    case = CASES[name]
    arguments = [part.replace("{folder}", str(folder)) for part in case.command]
    source = ["--source", str(case.write(folder, **changes))] if case.write else []
    return [
        *arguments,
        *source,
        "--out",
        str(out),
        "--shard-rows",
        "30" if name == "digits" else "3",
        *more,
    ]


def made(name: str, tmp_path: Path, *more: str, split: str = "train") -> list[Example]:
    """The rows of a case."""
    assert run(*command(name, tmp_path / "source", tmp_path / "out", *more)) == 0
    return examples(tmp_path / "out", "val" if name == "refcoco parquet" else split)


def stored(out: Path, row: Example, split: str = "train") -> list[bytes]:
    return [(out / split / str(image)).read_bytes() for image in row.images]


# What holds for each of them.


@pytest.mark.parametrize("name", CASES)
def test_a_kill_costs_nothing(name: str, tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same command again: the folder is byte for byte that of a run without a kill."""
    arguments = command(name, tmp_path / "source", tmp_path / "killed")
    assert run_killed(arguments[0], 4, *arguments[1:]) == -9
    assert not (tmp_path / "killed" / "card.json").exists()
    parts = len(list((tmp_path / "killed").rglob("part-*.jsonl")))
    assert run(*arguments) == 0
    whole = [
        str(tmp_path / "whole") if part == str(tmp_path / "killed") else part for part in arguments
    ]
    assert run(*whole) == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert parts < len(list((tmp_path / "whole").rglob("part-*.jsonl")))


@pytest.mark.parametrize("name", CASES)
def test_all_rows_are_there_and_read_as_they_are(name: str, tmp_path: Path) -> None:
    rows = made(name, tmp_path)
    assert len(rows) == CASES[name].rows
    assert len({row.id for row in rows}) == len(rows)
    facts = card(tmp_path / "out")
    assert all(split["check"] == {"ok": True, "problems": 0} for split in facts["splits"].values())
    assert facts["licence"]
    config = {
        "model": {"path": "x"},
        "output": {"folder": "y"},
        "data": {"train": "z"},
        **facts["settings"],
    }
    assert parse_config(config, "card.json").rewards.weights


@pytest.mark.parametrize("name", CASES)
def test_every_gold_answer_gets_full_marks_from_the_rewards_of_the_card(
    name: str, tmp_path: Path
) -> None:
    """In every split, as a run demands of its training set before it loads a model."""
    made(name, tmp_path)
    facts = card(tmp_path / "out")
    rows = [row for split in facts["splits"] for row in examples(tmp_path / "out", split)]
    assert len(rows) >= CASES[name].rows
    weights = facts["settings"]["rewards"]["weights"]
    with RewardPool(weights, workers=1) as pool:
        assert not check_gold(weights, rows, pool=pool)


@pytest.mark.parametrize("name", CASES)
def test_the_seed_decides_every_byte(name: str, tmp_path: Path) -> None:
    arguments = command(name, tmp_path / "source", tmp_path / "a", "--seed", "1")
    for out in ("a", "b"):
        assert (
            run(
                *[
                    str(tmp_path / out) if part == str(tmp_path / "a") else part
                    for part in arguments
                ]
            )
            == 0
        )
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("name", WITH_SOURCE)
def test_a_broken_row_is_reported_and_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = command(name, tmp_path / "source", out, r6=CASES[name].spoil)
    assert run(*arguments) == 2
    (problem,) = broken(out)
    assert (problem["row"], problem["place"]) == (6, CASES[name].place)
    assert CASES[name].reason in problem["reason"]
    assert "1 of" in capsys.readouterr().err
    split = "val" if name == "refcoco parquet" else "train"
    facts = card(out)["splits"][split]
    assert facts["broken"] == 1
    assert len(examples(out, split)) == facts["rows"] < CASES[name].rows
    assert not [row for row in examples(out, split) if row.id.startswith(f"{split}-000006")]
    assert run(*arguments, "--allow-broken", "1") == 0


@pytest.mark.parametrize("name", ["sat", "math_levels", "reasonseg folder"])
def test_what_is_made_passes_the_data_check_of_a_run(
    name: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the sections that the card shows, a model's own tokens, and no column declared."""
    rows = made(name, tmp_path)
    tree = {
        "model": {"path": str(tiny_checkpoint)},
        "data": {"train": str(tmp_path / "out" / "train"), "max_prompt_tokens": 4000},
        "output": {"folder": str(tmp_path / "run")},
        **card(tmp_path / "out")["settings"],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["data", "check", str(tmp_path / "config.yaml")]) == 0
    images = sum(len(row.images) for row in rows)
    assert f"{len(rows)} rows, {images} images, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({case.command[0] for case in CASES.values()}))
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = getattr(script(name), "RECIPES", None)
    with pytest.raises(SystemExit) as caught:
        run(name, *([next(iter(first))] if first else []), "--help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert f"python data_recipes/{name}.py" in told
    assert "licence: " in told
    assert "--out" in told
    assert ("--source" in told) == (name not in ("digits", "scenes", "places"))


def test_there_is_no_recipe_without_a_test() -> None:
    scripts = {file.stem for file in (ROOT / "data_recipes").glob("*.py")}
    assert scripts == {case.command[0] for case in CASES.values()}


# SAT.


def test_sat_asks_in_the_papers_words_and_leaves_rows_with_two_pictures_out(tmp_path: Path) -> None:
    rows = made("sat", tmp_path)
    assert [row.id for row in rows] == [f"train-{n:06d}" for n in (0, 1, 2, 3, 5, 6, 7, 8, 10, 11)]
    facts = card(tmp_path / "out")["splits"]["train"]
    assert facts["left_out"] == {"more than one image, which the paper skips": 2}
    by_id = {row.id: row for row in rows}
    row = by_id["train-000001"]
    options = ", ".join(row.choices[:2]) + " or " + row.choices[2]
    assert row.prompt == (
        "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with "
        f"the answer.\nUser:  Answer in natural language. How did the camera turn? (1) Choose between the following "
        f"options: {options} \nAssistant: Let me solve this step by step.\n"
    )
    assert sorted(row.choices) == ["it did not turn", "left", "right"]
    assert (row.answer, row.task) == ("left", "action_sequence")
    assert stored(tmp_path / "out", row) == [picture(1, kind="JPEG")]
    comma = by_id["train-000000"]
    assert set(comma.choices) == {"the red, round chair", "the table"}
    assert comma.answer == "the red, round chair"
    assert card(tmp_path / "out")["settings"]["prompt"] == {"chat": "plain", "prefill": "<think>"}
    assert not check_gold({"choice": 1.0}, rows)


def test_the_cvbench_config_asks_for_sat_in_the_papers_prompt(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Recipe and config together, at the folder that the config names. Two blanks stand before "Answer", as published."""
    sat.write(tmp_path / "source", 4)
    assert run("sat", "--source", tmp_path / "source", "--out", tmp_path / "data" / "sat") == 0
    config = load_config(ROOT / "configs" / "cvbench_qwen2vl_2b.yaml")
    model = config.model.model_copy(update={"path": str(tiny_checkpoint)})
    data = config.data.model_copy(update={"train": str(tmp_path / config.data.train)})
    encoder = make_encoder(config.model_copy(update={"model": model, "data": data}))
    rows = load_examples(data.train, data.columns)
    (row,) = (row for row in rows if row.id == "train-000001")
    assert encoder.encode(row).text == (
        "<|vision_start|><|image_pad|><|vision_end|>"
        "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
        "User:  Answer in natural language. How did the camera turn? (1) Choose between the following options: "
        f"{row.choices[0]}, {row.choices[1]} or {row.choices[2]} \nAssistant: Let me solve this step by step.\n<think>"
    )
    assert not check_gold(config.rewards.weights, rows)
    # Trained and evaluated in the same words; only the user's text differs, as in the paper.
    style = cvbench.PROMPTS[str(config.eval.prompt)]
    before, _, after = style.template.partition("{prompt}")
    assert (config.prompt.chat, config.prompt.prefill) == (style.chat, style.prefill)
    assert all(row.prompt.startswith(before) and row.prompt.endswith(after) for row in rows)


def test_sat_keeps_several_pictures_and_asks_an_instruct_model_where_told(tmp_path: Path) -> None:
    rows = made("sat", tmp_path, "--multi-image", "keep", "--prompt", "instruct")
    assert len(rows) == 12
    assert rows[4].prompt == (
        f"<image><image> Answer in natural language. How did the camera turn? (4) Choose between the following options: "
        f"{', '.join(rows[4].choices[:2])} or {rows[4].choices[2]}  Output the thinking process in <think> </think> and "
        f"final answer (option) in <answer> </answer> tags."
    )
    assert stored(tmp_path / "out", rows[4]) == [
        picture(4, kind="JPEG"),
        picture(5004, kind="JPEG"),
    ]


def test_sat_draws_the_order_of_options_for_each_row(tmp_path: Path) -> None:
    """In the source the gold option stands first; of 300 rows it must be about a half or a third of the time."""
    sat.write(tmp_path / "source", 300)
    assert (
        run(
            "sat",
            "--source",
            tmp_path / "source",
            "--multi-image",
            "keep",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    places = Counter(
        (len(row.choices), row.choices.index(row.answer)) for row in examples(tmp_path / "out")
    )
    assert sum(places.values()) == 300
    assert all(80 < places[2, place] < 120 for place in (0, 1))
    assert all(18 < places[3, place] < 50 for place in (0, 1, 2))


def test_sat_takes_the_papers_first_15000_rows_unless_told(tmp_path: Path) -> None:
    recipe = script("sat").RECIPE
    assert recipe.limit == 15_000
    sat.write(tmp_path / "source", 9)
    for more, limit in (((), 15_000), (("--limit", "0"), None), (("--limit", "4"), 4)):
        out = tmp_path / f"out-{limit}"
        assert run("sat", "--source", tmp_path / "source", "--out", out, *more) == 0
        assert card(out)["limit"] == limit
        assert card(out)["splits"]["train"]["source_rows"] == (4 if limit == 4 else 9)


# GEOQA and CLEVR.

NUMBER = "  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."


@pytest.mark.parametrize(
    "name, known, task", [("geoqa", r1v.GEOQA, "geoqa"), ("clevr", r1v.CLEVR, "counting")]
)
def test_r1v_sets_ask_with_two_blanks_and_keep_what_stands_in_the_tag(
    name: str, known: Any, task: str, tmp_path: Path
) -> None:
    rows = made(name, tmp_path)
    for n, row in enumerate(rows):
        problem, _, answer = known[n % len(known)]
        assert (row.prompt, row.answer, row.task) == (problem + NUMBER, answer, task)
        assert stored(tmp_path / "out", row) == [picture(n)]


@pytest.mark.parametrize("solution", ["-3", "3.5", "three", "3 or 4", "1e3", "٣", "yes"])
def test_a_count_is_a_whole_number(solution: str, tmp_path: Path) -> None:
    row = {"solution": f"<answer>{solution}</answer>"}
    source = CASES["clevr"].write(tmp_path / "source", r0=row)  # type: ignore[misc]  # not every case has a source
    assert run("clevr", "--source", source, "--out", tmp_path / "out") == 2
    assert "is not a count" in broken(tmp_path / "out")[0]["reason"]


# geometry3k, MATH, GSM8K.


def test_geometry3k_keeps_its_splits_and_marks(tmp_path: Path) -> None:
    rows = made("geometry3k", tmp_path)
    assert rows[2].prompt == (
        "<image>Find x in figure 2. You FIRST think about the reasoning process as an internal monologue and then provide "
        "the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE "
        "put in \\boxed{}."
    )
    assert rows[2].answer == "2 \\sqrt { 3 }"
    for split, first, number in (("train", 0, 8), ("validation", 100, 3), ("test", 200, 2)):
        of_split = examples(tmp_path / "out", split)
        assert [stored(tmp_path / "out", row, split) for row in of_split] == [
            [picture(first + n)] for n in range(number)
        ]


GPG = (
    "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think about the "
    "reasoning process as an internal monologue and then provide the user with the answer. The reasoning process MUST BE "
    "enclosed within <think> and </think> tags."
)


def test_math_keeps_levels_3_to_5_and_the_last_box(tmp_path: Path) -> None:
    rows = made("math_levels", tmp_path)
    kept = (1, 2, 4, 6, 7, 9, 11)
    assert [row.id for row in rows] == [f"train-{n:06d}" for n in kept]
    assert [row.answer for row in rows] == [text.MATH[n % 5][4] for n in kept]
    assert rows[0].prompt == (
        Message(role="system", content=GPG),
        Message(role="user", content="Simplify $\\frac{2}{4}$."),
    )
    assert [(row.task, row.meta["level"]) for row in rows[:3]] == [
        ("Algebra", 3),
        ("Geometry", 5),
        ("Number Theory", 4),
    ]
    assert card(tmp_path / "out")["splits"]["train"]["left_out"] == {"level 1": 3, "level ?": 2}


def test_math_in_the_words_of_evaluations(tmp_path: Path) -> None:
    rows = made("math_levels", tmp_path, "--prompt", "lighteval", "--levels", "1-3")
    assert rows[0].prompt == (
        "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
        "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) where "
        "ANSWER is just the final number or expression that solves the problem. Think step by step before answering."
        "\n\nWhat is $1+1$?"
    )
    assert {row.meta["level"] for row in rows} == {1, 3}


@pytest.mark.parametrize("solution", ["It is 2.", "\\boxed{}", "\\boxed{2", ""])
def test_a_solution_without_a_box_is_broken(solution: str, tmp_path: Path) -> None:
    source = text.write_math(tmp_path / "source", r1={"solution": solution})
    assert run("math_levels", "--source", source, "--out", tmp_path / "out") == 2
    assert broken(tmp_path / "out")[0]["row"] == 1


def test_gsm8k_reads_the_number_behind_the_hashes_and_keeps_its_splits(tmp_path: Path) -> None:
    rows = made("gsm8k", tmp_path, "--prompt", "hashes")
    assert [row.answer for row in rows] == [text.GSM8K[n % 4][2] for n in range(12)]
    assert rows[0].prompt == (
        "Natalia sold 48 clips in April and half as many in May. How many altogether? Let's think step by step and output "
        'the final answer after "####".'
    )
    weights = card(tmp_path / "out")["settings"]["rewards"]["weights"]
    response = f"<think>so</think>48 / 2 = 24\n#### {rows[0].answer}"
    answered = Completion(token_ids=(), logprobs=(), text=response, finish_reason="stop")
    with RewardPool(weights, workers=1) as pool:
        (scored,) = pool.evaluate([Item(rows[0], (answered,))])
    assert scored == dict.fromkeys(weights, (1.0,)), "the answer that the prompt asks for"
    assert len(examples(tmp_path / "out", "test")) == 4
    assert not [row for row in rows if row.prompt == "Why?"], (
        "socratic/ holds the same questions again"
    )


def test_gsm8k_in_the_papers_words(tmp_path: Path) -> None:
    rows = made("gsm8k", tmp_path)
    assert rows[1].prompt == (
        Message(role="system", content=GPG),
        Message(role="user", content=text.GSM8K[1][0]),
    )


# ReasonSeg and RefCOCO.


def grounding(instruction: str) -> str:
    return (
        f"Output the bounding box in the image corresponding to the instruction: {instruction} Output the thinking process "
        'in <think> </think> and your grouding box. Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)'
        '</answer>)" format.'
    )


def test_reasonseg_asks_for_each_instruction_and_boxes_all_targets(tmp_path: Path) -> None:
    """Targets (20, 10)-(60, 50) and (50, 40)-(100 + n % 4, 90) of 200x100 pixels: 5 thousandths per pixel, 10 down."""
    rows = {row.id: row for row in made("reasonseg folder", tmp_path)}
    row = rows["train-000002-1"]
    assert row.prompt == grounding("what a thirsty person takes (2)")
    assert row.answer == "(100,100),(510,900)"
    assert row.meta == {
        "coordinates": "rel1000",
        "box_pixels": [20, 10, 102, 90],
        "image_size": [200, 100],
        "box": "union",
    }
    assert stored(tmp_path / "out", row) == [picture(2, (200, 100), "JPEG")]
    assert rows["train-000002-0"].images == row.images
    assert rows["train-000001-0"].prompt == grounding("the café’s cup"), "that file is in cp1252"
    assert "train-000001-1" not in rows


def test_reasonseg_in_the_papers_way_takes_the_first_polygon_whatever_it_is(tmp_path: Path) -> None:
    rows = made("reasonseg folder", tmp_path, "--box", "first")
    assert {row.answer for row in rows} == {"(0,0),(50,100)"}
    assert rows[0].meta["box"] == "first"


def test_reasonseg_knows_its_labels_in_any_case(tmp_path: Path) -> None:
    shapes = [
        reasonseg.shape("Target", 20, 10, 100, 90),
        reasonseg.shape("Ignore", 0, 0, 199, 99),
        reasonseg.shape("Flag", 0, 0, 199, 99),
    ]
    source = reasonseg.write_folder(tmp_path / "source", r0={"shapes": shapes})
    assert run("reasonseg", "--source", source, "--out", tmp_path / "out") == 0
    assert examples(tmp_path / "out")[0].answer == "(100,100),(500,900)"


def test_reasonseg_in_pixels_says_so(tmp_path: Path) -> None:
    row = made("reasonseg folder", tmp_path, "--coordinates", "abs_orig")[0]
    assert (row.answer, row.meta["coordinates"]) == ("(20,10),(100,90)", "abs_orig")


def test_boxes_in_pixels_of_the_picture_that_a_model_sees(tmp_path: Path) -> None:
    """200 x 100 are 7.1 x 3.6 image tokens of 28 pixels, so 7 x 4: (20, 10)-(100, 90) are 19.6, 11.2, 98 and 100.8."""
    row = made("reasonseg folder", tmp_path, "--coordinates", "abs_resized")[0]
    assert row.answer == "(19,11),(98,100)"
    assert (row.meta["coordinates"], row.meta["input_size"]) == ("abs_resized", [196, 112])
    assert row.meta["box_pixels"] == [20, 10, 100, 90]

    # tokens of 32 pixels: 6 x 3 of them
    out = tmp_path / "sixteen"
    more = ("--coordinates", "abs_resized", "--side", "32")
    assert run(*command("refcoco json", tmp_path / "other", out, *more)) == 0
    row = examples(out)[5]
    assert (row.answer, row.meta["input_size"]) == ("(19,9),(100,86)", [192, 96])


def test_a_size_that_no_model_sees_is_refused_in_words(tmp_path: Path) -> None:
    source, out = reasonseg.write_folder(tmp_path / "source"), tmp_path / "out"
    words = ("--coordinates", "abs_resized", "--max-pixels", "100")
    assert run("reasonseg", "--source", source, "--out", out, *words) == 2
    assert "abs_resized with max_pixels 100 and side 28" in broken(out)[0]["reason"]


def test_reasonseg_from_visual_rfts_list(tmp_path: Path) -> None:
    rows = made("reasonseg json", tmp_path)
    assert rows[6].prompt == grounding("the thing that holds water (3)")
    assert [row.answer for row in rows[::2]] == [f"(0,0),({(10 + n) * 5},100)" for n in range(8)]


@pytest.mark.parametrize(
    "box, answer", [("union", "(100,100),(500,900)"), ("first", "(100,100),(300,500)")]
)
def test_reasonseg_from_the_hubs_copy(box: str, answer: str, tmp_path: Path) -> None:
    rows = made("reasonseg parquet", tmp_path, "--box", box)
    assert {row.answer for row in rows} == {answer}
    assert rows[3].prompt == grounding("the thing that holds water (3)")


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {
                "shapes": [
                    reasonseg.shape("ignore", 0, 0, 9, 9),
                    reasonseg.shape("flag", 0, 0, 9, 9),
                ]
            },
            "None of the 2 polygons",
        ),
        (
            {"shapes": [reasonseg.shape("target", 300, 10, 400, 20)]},
            "has no area in the picture of 200x100",
        ),
        (
            {"shapes": [reasonseg.shape("target", 10, 10, 10.1, 20)]},
            "thinner than one unit of rel1000",
        ),
        ({"shapes": [{"label": "target", "points": []}]}, "has no points"),
        ({"shapes": [{"label": "target", "points": [[1, 2, 3]]}]}, "is not [x, y]"),
        ({"shapes": [{"label": "target", "points": [["a", 2]]}]}, "not a list of numbers"),
        ({"shapes": "none"}, "not a list of polygons"),
        ({"text": []}, "not a list of texts"),
    ],
)
def test_what_reasonseg_cannot_box(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    source = reasonseg.write_folder(tmp_path / "source", r3=changes)
    assert run("reasonseg", "--source", source, "--out", tmp_path / "out") == 2
    (problem,) = broken(tmp_path / "out")
    assert (problem["row"], problem["place"]) == (3, "train/003.json")
    assert reason in problem["reason"]


def test_a_polygon_is_cut_at_the_edge_of_the_picture(tmp_path: Path) -> None:
    source = reasonseg.write_folder(
        tmp_path / "source", r0={"shapes": [reasonseg.shape("target", -5.5, 50, 260, 300)]}
    )
    assert run("reasonseg", "--source", source, "--out", tmp_path / "out") == 0
    row = examples(tmp_path / "out")[0]
    assert (row.answer, row.meta["box_pixels"]) == ("(0,500),(1000,1000)", [0, 50, 200, 100])


def test_a_missing_picture_and_a_file_that_is_not_json_are_reported(tmp_path: Path) -> None:
    source = reasonseg.write_folder(tmp_path / "source")
    (source / "train" / "002.jpg").unlink()
    (source / "train" / "004.json").write_text("{")
    (source / "train" / "005.json").write_text("[]")
    assert run("reasonseg", "--source", source, "--out", tmp_path / "out") == 2
    reasons = {problem["place"]: problem["reason"] for problem in broken(tmp_path / "out")}
    assert list(reasons) == ["train/002.json", "train/004.json", "train/005.json"]
    for place, said in zip(
        reasons, ("does not exist", "is not JSON", "is not a JSON object"), strict=True
    ):
        assert said in reasons[place]


def test_refcoco_from_vlm_r1s_list_in_both_prompts(tmp_path: Path) -> None:
    row = made("refcoco json", tmp_path)[5]
    assert row.prompt == grounding("man 5")
    assert (row.answer, row.meta["coordinates"]) == ("(100,100),(525,900)", "rel1000")
    assert row.meta["box_pixels"] == [20, 10, 105, 90]
    out = tmp_path / "json"
    assert run(*command("refcoco json", tmp_path / "source", out, "--prompt", "vlm_r1")) == 0
    row = examples(out)[5]
    assert row.prompt == (
        "Please provide the bounding box coordinate of the region this sentence describes: man 5 First output the thinking "
        "process in <think> </think> tags and then output the final answer in <answer> </answer> tags. Output the final "
        "answer in JSON format."
    )
    assert json.loads(row.answer) == [{"bbox_2d": [20, 10, 105, 90]}]
    assert row.meta == {
        "coordinates": "abs_orig",
        "box_pixels": [20, 10, 105, 90],
        "image_size": [200, 100],
        "expression": "man 5",
    }


def test_refcoco_from_the_hubs_copy_asks_for_each_expression(tmp_path: Path) -> None:
    """(20.75, 10.375) and 80x60 pixels end at (100.75, 70.375): 103.75, 103.75, 503.75 and 703.75 thousandths, cut off."""
    rows = made("refcoco parquet", tmp_path)
    assert [row.id for row in rows[:4]] == [
        "val-000000-0",
        "val-000000-1",
        "val-000001-0",
        "val-000002-0",
    ]
    assert [row.prompt for row in rows[:2]] == [grounding("left man 0"), grounding("guy in 0")]
    assert {row.answer for row in rows} == {"(103,103),(503,703)"}
    assert rows[0].meta["box_pixels"] == [20.75, 10.375, 100.75, 70.375]


def test_refcocos_pickle_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x04.")
    assert (
        run("refcoco", "refcoco", "--source", tmp_path / "refs(unc).p", "--out", tmp_path / "out")
        == 2
    )
    told = capsys.readouterr().err
    assert "is a pickle" in told
    assert "one JSON object per line" in told
    assert not (tmp_path / "out").exists()


# ViRFT.


@pytest.mark.parametrize(
    "name, asked",
    [
        (
            "flowers",
            "This is an image containing a plant. Please identify the species of the plant based on the image.",
        ),
        (
            "pets",
            "This is an image containing a pet. Please identify the species of the pet based on the image.",
        ),
        (
            "aircraft",
            "This is an image containing an aircraft. Please identify the model of the aircraft based on the image.",
        ),
        (
            "cars",
            "This is an image containing a car. Please identify the model of the car based on the image.",
        ),
    ],
)
def test_virft_classification_asks_in_the_published_words_and_lists_all_classes(
    name: str, asked: str, tmp_path: Path
) -> None:
    source = virft.write_classification(tmp_path / "source", name)
    assert run("virft_classification", name, "--source", source, "--out", tmp_path / "out") == 0
    rows = examples(tmp_path / "out")
    assert [row.answer for row in rows] == [
        label for label in virft.CLASSES[name] for _ in range(4)
    ]
    for row in rows:
        assert row.meta["classes"] == sorted(virft.CLASSES[name])
        assert row.prompt == (
            f"{asked}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags.The output "
            "answer format should be as follows:\n<think> ... </think> <answer>species name</answer>\nPlease strictly follow "
            "the format."
        )


def test_virft_classes_from_a_list_must_hold_every_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = virft.write_classification(tmp_path / "source", "pets")
    (tmp_path / "pets.txt").write_text("Beagle\namerican bulldog\nabyssinian\n")
    arguments = [
        "virft_classification",
        "pets",
        "--source",
        source,
        "--classes",
        tmp_path / "pets.txt",
    ]
    assert run(*arguments, "--out", tmp_path / "out", "--prompt", "row") == 0
    row = examples(tmp_path / "out")[0]
    assert (row.prompt, row.answer) == ("A problem.", "american_bulldog")
    assert row.meta["classes"] == ["Beagle", "american bulldog", "abyssinian"]
    (tmp_path / "pets.txt").write_text("Beagle\nAbyssinian\n")
    assert run(*arguments, "--out", tmp_path / "other") == 2
    assert [problem["row"] for problem in broken(tmp_path / "other")] == [0, 1, 2, 3]
    (tmp_path / "pets.txt").write_text("Beagle\nbeagle\n")
    assert run(*arguments, "--out", tmp_path / "third") == 2
    assert "is no list of classes" in capsys.readouterr().err


def test_virft_from_folders_of_classes_draws_the_same_number_of_each(tmp_path: Path) -> None:
    names = ["beagle", "pug", "sphynx"]
    virft.write_class_folders(tmp_path / "source", names, 9)
    chosen = {}
    for seed in ("0", "0", "1"):
        out = tmp_path / f"out-{len(chosen)}-{seed}"
        arguments = ["--source", tmp_path / "source", "--shots", "4", "--seed", seed, "--out", out]
        assert run("virft_classification", "pets", *arguments) == 0
        rows = examples(out)
        assert Counter(row.answer for row in rows) == dict.fromkeys(names, 4)
        assert rows[0].meta["classes"] == names
        for row in rows:
            kinds = [picture(100 * names.index(row.answer) + n, kind="JPEG") for n in range(9)]
            assert stored(out, row)[0] in kinds
        chosen.setdefault(seed, set()).add(tuple(row.images for row in rows))
    assert len(chosen["0"]) == 1
    assert chosen["0"] != chosen["1"]


def test_more_shots_than_pictures_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    virft.write_class_folders(tmp_path / "source", ["beagle", "pug"], 3)
    assert (
        run(
            "virft_classification",
            "pets",
            "--source",
            tmp_path / "source",
            "--out",
            tmp_path / "out",
        )
        == 2
    )
    assert "holds 3 pictures and 4 were asked for" in capsys.readouterr().err


def test_virft_detection_keeps_the_problem_and_says_whose_numbers_they_are(tmp_path: Path) -> None:
    rows = made("virft_detection", tmp_path)
    answers = (
        "[{'Position': [10, 20, 300, 400], 'Confidence': 1.0}]",
        "[{'Position': [0, 0, 1000, 500], 'Confidence': 1.0}, {'Position': [5, 6, 7, 8], 'Confidence': 1.0}]",
        "No Objects",
    )
    for n, row in enumerate(rows):
        category, _, boxes, confidences = virft.OBJECTS[n % 3]
        assert row.prompt == virft.DETECTION.replace("{category}", category)
        assert (row.answer, row.task) == (answers[n % 3], category)
        assert row.meta == {
            "coordinates": "rel1000",
            "boxes": boxes,
            "confidences": confidences,
            "image_size": [200, 100],
        }


def test_virft_detection_in_pixels(tmp_path: Path) -> None:
    """(10, 20)-(300, 400) thousandths of 200 x 100 pixels; the second row has a box of less than a pixel."""
    source, out = tmp_path / "source", tmp_path / "out"
    words = ("--coordinates", "abs_orig")
    assert run(*command("virft_detection", source, out, *words)) == 2
    assert "thinner than one unit of abs_orig" in broken(out)[0]["reason"]
    row = examples(out)[0]
    assert row.answer == "[{'Position': [2, 2, 60, 40], 'Confidence': 1.0}]"
    assert row.meta["coordinates"] == "abs_orig"
    assert row.meta["boxes"] == [[10, 20, 300, 400]]


@pytest.mark.parametrize(
    "solution",
    [
        "[]",
        "[{}]",
        "[1]",
        "nothing",
        "[{'Position': [1, 2, 3], 'Confidence': 1}]",
        "[{'Position': [1, 2, 3, 4]}]",
        "[{'Position': [1, 2, 3, 1001], 'Confidence': 1}]",
        "[{'Position': [1, 2, 3, 4], 'Confidence': 1.5}]",
        "[{'Position': [1, 2, 3, true], 'Confidence': 1}]",
        "[" * 5000,
        "__import__('os').system('true')",
        "[" + "1, " * 50_000 + "1]",
    ],
)
def test_what_is_no_list_of_boxes(solution: str, tmp_path: Path) -> None:
    source = virft.write_detection(
        tmp_path / "source", r3={"solution": f"<answer>{solution}</answer>"}
    )
    assert run("virft_detection", "coco", "--source", source, "--out", tmp_path / "out") == 2
    assert [problem["row"] for problem in broken(tmp_path / "out")] == [3]


# Digits and scenes.


def test_the_digits_are_real_and_their_test_part_is_held_out(tmp_path: Path) -> None:
    """1,797 digits; per digit a fifth, rounded, is held out: the counts of each digit are scikit-learn's."""
    from sklearn.datasets import load_digits

    assert run("digits", "--out", tmp_path / "full", "--prompt", "plain") == 0
    assert run("digits", "--out", tmp_path / "four", "--shots", "4", "--prompt", "plain") == 0
    full, test = (examples(tmp_path / "full", split) for split in ("train", "test"))
    four = examples(tmp_path / "four")
    counts = Counter(map(str, load_digits().target.tolist()))
    held_out = {
        "0": 36,
        "1": 36,
        "2": 35,
        "3": 37,
        "4": 36,
        "5": 36,
        "6": 36,
        "7": 36,
        "8": 35,
        "9": 36,
    }
    assert Counter(row.answer for row in test) == held_out
    assert Counter(row.answer for row in full) == {
        digit: counts[digit] - held_out[digit] for digit in counts
    }
    assert Counter(row.answer for row in four) == dict.fromkeys("0123456789", 4)
    assert tree(tmp_path / "full" / "test") == tree(tmp_path / "four" / "test")
    pictures = [{stored(tmp_path / out, row, split)[0] for row in rows} for out, split, rows in (
        ("full", "train", full), ("full", "test", test), ("four", "train", four))]  # fmt: skip
    assert len(pictures[0] | pictures[1]) == 1797
    assert not pictures[0] & pictures[1]
    assert pictures[2] <= pictures[0]
    assert {row.prompt for row in full} == {"Which digit is this?"}


def test_a_digit_is_drawn_as_it_was_scanned(tmp_path: Path) -> None:
    import io

    from PIL import Image
    from sklearn.datasets import load_digits

    row = made("digits", tmp_path, "--scale", "3")[7]
    image = Image.open(io.BytesIO(stored(tmp_path / "out", row)[0]))
    scanned = load_digits()
    assert (image.mode, image.size) == ("L", (24, 24))
    assert row.answer == str(scanned.target[row.meta["index"]])
    for y in range(24):
        for x in range(24):
            grey = scanned.images[row.meta["index"]][y // 3][x // 3] * 255 / 16
            assert abs(image.getpixel((x, y)) - grey) <= 0.5


def test_another_seed_holds_other_digits_out(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert run("digits", "--out", tmp_path / seed, "--seed", seed) == 0
    held = [{row.meta["index"] for row in examples(tmp_path / seed, "test")} for seed in ("0", "1")]
    assert len(held[0] & held[1]) < 120, "of 359 by chance 72"


def test_digits_without_scikit_learn_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert run("digits", "--out", tmp_path / "out") == 2
    assert "pip install scikit-learn" in capsys.readouterr().err


def test_more_shots_than_digits_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("digits", "--out", tmp_path / "out", "--shots", "150") == 2
    assert "--shots 150 is more than the 142 pictures of the digit 0" in capsys.readouterr().err


def test_scenes_are_those_of_the_seed_and_the_held_out_ones_others(tmp_path: Path) -> None:
    rows = made("scenes", tmp_path, "--seed", "4")
    drawn = list(scenes.rows(9, 20))
    for row, scene in zip(rows, drawn, strict=True):
        assert (row.prompt, row.answer, row.choices) == (
            scene["prompt"],
            scene["answer"],
            tuple(scene["choices"]),
        )
        assert (row.task, row.meta) == (
            scene["task"],
            {"type": scene["type"], "source": scene["source"]},
        )
        assert stored(tmp_path / "out", row) == [scene["image"]["bytes"]]
    test = examples(tmp_path / "out", "test")
    assert [row.prompt for row in test] == [scene["prompt"] for scene in scenes.rows(8, 8)]
    assert not check_gold({"choice": 1.0}, [*rows, *test])
