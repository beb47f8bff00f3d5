"""The engine of the recipes: nothing is lost, doubled or silently skipped, whatever stops it and whatever a row holds."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_runs import broken, card, examples, tree
from rich.console import Console
from sources import picture
from test_images import bare_png

from gpg_vl.config import parse_config
from gpg_vl.data.check import check
from gpg_vl.data.recipe import (
    BrokenRowError,
    LeftOut,
    Option,
    RawRow,
    Recipe,
    Request,
    Source,
    main,
    make,
    untagged,
)
from gpg_vl.data.recipe import convert as engine
from gpg_vl.data.recipe import shards as shards_module
from gpg_vl.errors import RunError, UserError
from gpg_vl.types import Example, Message

ROWS = 23
LEFT_OUT = (4, 9, 14, 19)
BROKEN = (2, 11)


def cells(number: int) -> dict[str, Any]:
    """Row 2 has no answer, row 11 half a picture; every fifth row is left out; every third becomes two examples."""
    data = picture(number)
    return {
        "image": data[: len(data) // 2] if number == 11 else data,
        "text": f"What is {number}?",
        "gold": None if number == 2 else str(number),
    }


def source(
    rows: int = ROWS, split: str = "train", read: Callable[[int], dict[str, Any]] = cells
) -> Source:
    return Source(
        split=split,
        read=lambda start: ((f"made[{n}]", read(n)) for n in range(start, rows)),
        total=rows,
        root=None,
        facts={"rows": rows},
    )


def convert(row: RawRow, *, prompt: str = "plain") -> Example | list[Example] | LeftOut:
    if row.number % 5 == 4:
        return LeftOut(reason="a fifth")
    one = Example(
        id=row.id,
        images=row.images("image"),
        prompt=f"{prompt}: {row.text('text')}",
        answer=row.text("gold"),
        task="toy",
        meta={"drawn": row.random().randrange(10**6)},
    )
    return (
        [one, Example(id=f"{row.id}-b", prompt=row.text("text"), answer="b")]
        if row.number % 3 == 0
        else one
    )


def recipe(**changes: Any) -> Recipe:
    facts: dict[str, Any] = {
        "name": "toy",
        "title": "A toy",
        "help": "Toys.",
        "licence": "MIT",
        "convert": convert,
        "has_source": False,
        "open": lambda request: [source()],
        "options": {"prompt": Option(default="plain", help="words")},
        "documented": {"train": 25},
    }
    return Recipe(**{**facts, **changes})


def request(out: Path, **changes: Any) -> Request:
    return Request(
        **{"source": None, "out": out, "options": {"prompt": "plain"}, "shard_rows": 4, **changes}
    )


def good_rows() -> list[int]:
    return [n for n in range(ROWS) if n not in (*LEFT_OUT, *BROKEN)]


def expected_ids() -> list[str]:
    return [
        name
        for n in good_rows()
        for name in (f"train-{n:06d}", *([f"train-{n:06d}-b"] if n % 3 == 0 else []))
    ]


# What is written.


def test_every_source_row_is_converted_left_out_or_broken(tmp_path: Path) -> None:
    made = make(recipe(), request(tmp_path / "out"))
    rows = examples(tmp_path / "out")
    assert [row.id for row in rows] == expected_ids()
    assert (made.source_rows, made.broken) == (ROWS, 2)
    first = rows[0]
    assert (first.prompt, first.answer, first.task) == ("plain: What is 0?", "0", "toy")
    problems = broken(tmp_path / "out")
    assert [(p["row"], p["place"], p["split"]) for p in problems] == [
        (2, "made[2]", "train"),
        (11, "made[11]", "train"),
    ]
    assert "is null in column 'gold'" in problems[0]["reason"]
    assert "damaged or incomplete" in problems[1]["reason"]
    split = card(tmp_path / "out")["splits"]["train"]
    assert split["left_out"] == {"a fifth": 4}
    assert split["source_rows"] == ROWS == len(good_rows()) + 4 + 2
    assert (split["rows"], split["broken"], split["documented_rows"]) == (
        len(expected_ids()),
        2,
        25,
    )


def test_pictures_are_files_named_by_their_own_checksum_and_stored_once(tmp_path: Path) -> None:
    same = recipe(open=lambda _: [source(6, read=lambda n: cells(1 if n else 0))])
    make(same, request(tmp_path / "out"))
    names = [image for row in examples(tmp_path / "out") for image in row.images]
    digests = [hashlib.sha256(picture(n)).hexdigest() for n in (0, 1)]
    assert set(names) == {f"images/{d[:2]}/{d}.png" for d in digests}
    files = sorted((tmp_path / "out" / "train" / "images").rglob("*.*"))
    assert [file.read_bytes() for file in files] == [
        picture(n) for _, n in sorted(zip(digests, (0, 1), strict=True))
    ]


def test_the_card_holds_the_checksums_of_the_parts_and_what_the_set_was_made_with(
    tmp_path: Path,
) -> None:
    make(recipe(), request(tmp_path / "out", seed=3))
    facts = card(tmp_path / "out")
    parts = facts["splits"]["train"]["parts"]
    assert list(parts) == [f"part-{n:05d}.jsonl" for n in range(6)]
    for name, digest in parts.items():
        assert (
            hashlib.sha256((tmp_path / "out" / "train" / name).read_bytes()).hexdigest() == digest
        )
    assert (facts["seed"], facts["licence"], facts["options"]) == (3, "MIT", {"prompt": "plain"})
    assert facts["splits"]["train"]["check"] == {"ok": True, "problems": 0}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 23 | 25 | 24 | 17 | 4 a fifth | 2 |" in text
    assert "seed 3, prompt plain" in text


def test_the_config_sections_in_the_card_are_a_config(tmp_path: Path) -> None:
    settings = {
        "prompt": {"chat": "plain", "prefill": "<think>"},
        "rewards": {"weights": {"choice": 1.0}},
    }
    make(recipe(settings=lambda prompt: settings), request(tmp_path / "out"))
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    shown = yaml.safe_load("\n".join(line for line in lines if line.startswith("    ")))
    config = parse_config({**shown, "model": {"path": "x"}, "output": {"folder": "y"}}, "README.md")
    assert (config.data.train, config.prompt.prefill) == ("FOLDER/train", "<think>")
    assert card(tmp_path / "out")["settings"] == settings


def test_the_last_word_is_the_data_check_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watched(rows: Any, **arguments: Any) -> Any:
        rows = list(rows)
        seen.extend(row.id for row in rows)
        return check(iter(rows), **arguments)

    monkeypatch.setattr(engine, "check", watched)
    report = make(recipe(), request(tmp_path / "out")).reports["train"]
    assert seen == expected_ids()
    assert report.ok
    assert report.image_sizes == {(40, 30): len(good_rows())}


def test_an_id_that_occurs_twice_is_found_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = recipe(convert=lambda row, prompt: Example(id="same", prompt="Why?", answer="b"))
    assert main(twice, ["--out", str(tmp_path / "out"), "--limit", "2"]) == 2
    assert "The id 'same' already belongs to row 0" in capsys.readouterr().err
    assert card(tmp_path / "out")["splits"]["train"]["check"] == {"ok": False, "problems": 1}


def test_a_split_of_no_rows_is_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(recipe(open=lambda _: [source(0)]), ["--out", str(tmp_path / "out")]) == 2
    assert "1 problem(s)" in capsys.readouterr().err


def test_several_splits_are_folders_of_their_own(tmp_path: Path) -> None:
    both = recipe(open=lambda _: [source(9), source(6, "test")])
    make(both, request(tmp_path / "out"))
    assert [row.id for row in examples(tmp_path / "out", "test")] == [
        "test-000000",
        "test-000000-b",
        "test-000001",
        "test-000003",
        "test-000003-b",
        "test-000005",
    ]
    assert {row.id.split("-")[0] for row in examples(tmp_path / "out")} == {"train"}


# The same command, the same bytes.


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(recipe(), request(tmp_path / name, seed=seed))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert (
        tree(tmp_path / "a")["train/part-00000.jsonl"]
        != tree(tmp_path / "c")["train/part-00000.jsonl"]
    )


def test_what_is_drawn_for_a_row_depends_on_no_other_row(tmp_path: Path) -> None:
    make(recipe(), request(tmp_path / "all"))
    make(recipe(), request(tmp_path / "some", limit=7, shard_rows=3))
    some = examples(tmp_path / "some")
    whole = examples(tmp_path / "all")[: len(some)]
    assert [row.meta for row in some] == [row.meta for row in whole]
    assert len({row.meta["drawn"] for row in whole if row.meta}) > 3


# Stops.


class Stop(BaseException):
    """Ends a run where it stands, as a signal would."""


def stop_at(monkeypatch: pytest.MonkeyPatch, place: int, *, before: bool) -> list[int]:
    """Stop at the place-th time that a file is renamed or forced to disk, before or after it happens."""
    calls = [0]

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == place and before:
                raise Stop
            done = function(*arguments)
            if calls[0] == place:
                raise Stop
            return done

        return counted

    monkeypatch.setattr(Path, "replace", stopping(Path.replace))
    monkeypatch.setattr(os, "fsync", stopping(os.fsync))
    return calls


def quick_request(out: Path) -> Request:
    return request(out, shard_rows=3, limit=8)


def test_a_stop_at_any_moment_leaves_a_folder_that_ends_up_the_same(tmp_path: Path) -> None:
    """Every moment at which a file gets its name or reaches the disk, and a second stop soon after going on."""
    make(recipe(), quick_request(tmp_path / "whole"))
    expected = tree(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(patch, 10**9, before=True)
        make(recipe(), quick_request(tmp_path / "counted"))
    assert calls[0] > 20
    for place in range(1, calls[0] + 1):
        for before in (True, False):
            out = tmp_path / f"stopped-{place}-{before}"
            with pytest.MonkeyPatch.context() as patch:
                stop_at(patch, place, before=before)
                with pytest.raises(Stop):
                    make(recipe(), quick_request(out))
            assert tree(out) != expected or (place == calls[0] and not before)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
                stop_at(patch, place % 5 + 1, before=before)
                make(recipe(), quick_request(out))
            make(recipe(), quick_request(out))
            assert tree(out) == expected, (place, before)
            shutil.rmtree(out)


def test_half_a_line_in_the_journal_does_not_count(tmp_path: Path) -> None:
    make(recipe(), request(tmp_path / "whole"))
    expected = tree(tmp_path / "whole")
    journal = expected["journal.jsonl"]
    lines = journal.splitlines(keepends=True)
    left = [
        journal[:length]
        for length in (len(lines[0]) + len(lines[1]) // 2, len(journal) - 1, len(lines[0]))
    ]
    left.append(b"".join(lines[:3]) + b"\0" * 100_000)  # what a power cut may leave
    for place, content in enumerate(left):
        out = tmp_path / f"cut-{place}"
        shutil.copytree(tmp_path / "whole", out)
        (out / "journal.jsonl").write_bytes(content)
        make(recipe(), request(out))
        assert tree(out) == expected


def test_what_is_finished_is_not_converted_again(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 20, before=True)
        with pytest.raises(Stop):
            make(recipe(), request(tmp_path / "out"))
    done = len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) - 1
    assert 0 < done < 6
    converted: list[int] = []

    def watched(row: RawRow, **options: Any) -> Any:
        converted.append(row.number)
        return convert(row, **options)

    make(recipe(convert=watched), request(tmp_path / "out"))
    assert converted == list(range(done * 4, ROWS))
    converted.clear()
    make(recipe(convert=watched), request(tmp_path / "out"))
    assert converted == []


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(row: RawRow, **options: Any) -> Any:
        raise KeyboardInterrupt

    assert main(recipe(convert=interrupted), ["--out", str(tmp_path / "out")]) == 130
    assert "Run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        (
            {"options": {"prompt": "other"}},
            'options: {"prompt": "plain"} then, {"prompt": "other"} now',
        ),
        ({"limit": 5}, "limit: null then, 5 now"),
        ({"shard_rows": 5}, "shard_rows: 4 then, 5 now"),
    ],
)
def test_a_folder_that_was_begun_differently_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    make(recipe(), request(tmp_path / "out"))
    before = tree(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        make(recipe(), request(tmp_path / "out", **changes))
    assert told in str(caught.value)
    assert "choose another --out" in str(caught.value)
    assert tree(tmp_path / "out") == before


def test_another_source_is_another_plan(tmp_path: Path) -> None:
    make(recipe(), request(tmp_path / "out"))
    with pytest.raises(UserError, match=r'sources: .*"rows": 23.* then, .*"rows": 24.* now'):
        make(recipe(open=lambda _: [source(24)]), request(tmp_path / "out"))


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        UserError, match=r"holds thesis\.tex and is no data set that was begun here"
    ):
        make(recipe(), request(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_part_that_was_changed_is_refused(tmp_path: Path) -> None:
    make(recipe(), request(tmp_path / "out"))
    part = tmp_path / "out" / "train" / "part-00001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"What", b"That", 1))
    with pytest.raises(UserError, match=r"part-00001\.jsonl is not as it was written"):
        make(recipe(), request(tmp_path / "out"))
    part.unlink()
    with pytest.raises(UserError, match="it is missing or was changed"):
        make(recipe(), request(tmp_path / "out"))


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    plan = {"a": 1}
    with (
        shards_module.open_output(tmp_path / "out", plan),
        pytest.raises(UserError, match="Another process is writing"),
        shards_module.open_output(tmp_path / "out", plan),
    ):
        pytest.fail("both got in")
    with shards_module.open_output(tmp_path / "out", plan):
        pass


def test_a_full_disk_ends_in_one_message_and_the_run_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(recipe(), ["--out", str(tmp_path / "out"), "--shard-rows", "4"]) == 1
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    make(recipe(), request(tmp_path / "out"))
    assert [row.id for row in examples(tmp_path / "out")] == expected_ids()


def test_a_folder_that_cannot_be_made_is_an_error_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        make(recipe(), request(tmp_path / "file" / "out"))


def test_progress_is_shown_with_the_broken_rows_so_far(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    make(recipe(), request(tmp_path / "out"), console)
    shown = console.file.getvalue()
    assert "train (2 broken)" in shown
    assert "23/23" in shown


# Memory.


class Cells(dict[str, Any]):
    """Cells that can be counted while they live."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # dict says None: unhashable


def test_at_most_one_shard_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 rows, never more than two rows of cells live at a time, and never more than one shard's lines."""
    alive: weakref.WeakSet[Cells] = weakref.WeakSet()
    most = [0]

    def read(start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(start, 600):
            row = Cells(text=f"What is {number}?", gold="b", image=b"x" * 1000)
            alive.add(row)
            most[0] = max(most[0], len(alive))
            yield "", row
            del row

    sizes: list[int] = []
    commit = shards_module.Output.commit

    def watched(self: Any, shard: Any, rows: Any, problems: Any) -> Any:
        sizes.append(len(rows))
        return commit(self, shard, rows, problems)

    monkeypatch.setattr(shards_module.Output, "commit", watched)
    flow = Source(split="train", read=read, total=600, root=None, facts={})
    plain = recipe(
        open=lambda _: [flow],
        convert=lambda row, prompt: Example(id=row.id, prompt=row.text("text"), answer="b"),
    )
    make(plain, request(tmp_path / "out", shard_rows=7))
    assert most[0] <= 2
    assert max(sizes) == 7
    assert sum(sizes) == 600


# Broken rows.


def bad(**changes: Any) -> Callable[..., Example]:
    def converted(row: RawRow, **_: Any) -> Example:
        fields = {"id": row.id, "prompt": "Why?", "answer": "b", "images": ()}
        return Example(**(fields | changes if row.number == 3 else fields))

    return converted


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"answer": " "}, "The answer is empty"),
        ({"answer": "c", "choices": ("a", "b")}, "is none of the 2 choices"),
        ({"prompt": "<image>Why?"}, "has 1 <image> mark(s) and the row has 0 image(s)"),
        ({"prompt": ""}, "The prompt is empty and there is no image"),
        (
            {"prompt": (Message(role="user", content="a"), Message(role="assistant", content="b"))},
            "ends with a turn",
        ),
        ({"prompt": "half \ud800 pair"}, "half a surrogate pair"),
        ({"answer": "\udfff"}, "half a surrogate pair"),
        ({"images": (b"",)}, "is empty (0 bytes)"),
        ({"images": (b"<html>",)}, "is a web page or XML"),
        ({"images": (bare_png(60000, 60000),)}, "declares too many pixels"),
        ({"images": (bare_png(2000, 1000),)}, "At most 1000000"),
        ({"images": ("a.png",)}, "no image root was given"),
    ],
)
def test_what_could_not_be_trained_on_is_reported_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    broken_one = recipe(convert=bad(**changes), open=lambda _: [source(6)])
    assert main(broken_one, ["--out", str(tmp_path / "out"), "--max-image-pixels", "1000000"]) == 2
    (problem,) = broken(tmp_path / "out")
    assert (problem["row"], problem["place"]) == (3, "made[3]")
    assert reason in problem["reason"]
    said = capsys.readouterr().err
    assert "1 of 6 source rows are broken and were left behind; 0 are allowed" in said
    assert str(tmp_path / "out" / "broken.jsonl") in said
    assert "--allow-broken 1" in said
    assert len(examples(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    "path, reason",
    [
        ("../secret.png", "climbs out of a folder"),
        ("/etc/passwd", "outside the image root"),
        ("link.png", "outside the image root"),
        ("gone.png", "does not exist"),
        ("https://x.org/a.png", "nothing is fetched from the network"),
    ],
)
def test_a_path_stays_below_the_source_root(tmp_path: Path, path: str, reason: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(1))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "good.png").write_bytes(picture(2))
    names = ["good.png", path]
    flow = Source(
        split="train",
        read=lambda start: ((f"made[{n}]", {"image": names[n]}) for n in range(start, 2)),
        total=2,
        root=root,
        facts={},
    )
    one = recipe(
        open=lambda _: [flow],
        convert=lambda row, prompt: Example(
            id=row.id, images=row.images("image"), prompt="Why?", answer="b"
        ),
    )
    make(one, request(tmp_path / "out"))
    (problem,) = broken(tmp_path / "out")
    assert reason in problem["reason"]
    (row,) = examples(tmp_path / "out")
    assert (tmp_path / "out" / "train" / str(row.images[0])).read_bytes() == picture(2)
    assert b"secret" not in b"".join(name.encode() for name in tree(tmp_path / "out"))


@pytest.mark.parametrize(
    "allowed, code",
    [
        ("0", 2),
        ("1", 2),
        ("2", 0),
        ("3", 0),
        ("0.05", 2),
        ("0.1", 0),
        ("9%", 0),
        ("8%", 2),
        ("1.0", 0),
    ],
)
def test_broken_rows_may_be_allowed_by_number_or_by_share(
    tmp_path: Path, allowed: str, code: int
) -> None:
    """2 of 23 rows are broken: 8.7 %."""
    assert main(recipe(), ["--out", str(tmp_path / "out"), "--allow-broken", allowed]) == code
    assert [row.id for row in examples(tmp_path / "out")] == expected_ids()


def test_a_finished_set_can_be_accepted_afterwards_without_being_made_again(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path / "out")]
    assert main(recipe(), command) == 2
    before = tree(tmp_path / "out")
    assert main(recipe(), [*command, "--allow-broken", "2"]) == 0
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["-1", "1.5", "101%", "many", "", ".", "%", "1e9"])
def test_an_allowance_that_is_none_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(recipe(), ["--out", str(tmp_path / "out"), f"--allow-broken={text}"])
    assert caught.value.code == 2
    assert "neither a number of rows" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["../x", "a/b", "", "a,,b", "a,a", ".hidden", "a b"])
def test_a_split_is_a_safe_name_of_a_folder(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(
            recipe(has_source=True),
            ["--source", "x", "--out", str(tmp_path / "out"), "--split", text],
        )
    assert caught.value.code == 2
    assert "is no list of different names" in capsys.readouterr().err


def test_a_bug_of_a_recipe_is_no_broken_row(tmp_path: Path) -> None:
    def buggy(row: RawRow, **_: Any) -> Example:
        raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError) as caught:
        make(recipe(convert=buggy), request(tmp_path / "out"))
    assert caught.value.__notes__ == ["The recipe toy failed on made[0] (row 0 of train)."]


def test_a_recipe_that_makes_nothing_of_a_row_has_to_say_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="it must return LeftOut with its reason"):
        make(recipe(convert=lambda row, prompt: []), request(tmp_path / "out"))


@pytest.mark.parametrize("name", ["question", "solution", "image", "idx", "options", "id"])
def test_meta_may_not_look_like_a_field(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"puts '{name}' into meta"):
        make(recipe(convert=bad(meta={name: 1})), request(tmp_path / "out"))


def test_the_readers_of_a_row_say_what_is_wrong_with_a_cell() -> None:
    row = RawRow(
        split="train",
        number=0,
        place="",
        cells={
            "a": "",
            "b": [1, "x"],
            "c": ["x", " "],
            "d": [1, float("nan")],
            "e": True,
            "f": None,
            "g": [],
            "h": {},
        },
        seed=0,
        root=None,
        max_pixels=10**6,
    )
    assert row.texts("b") == ["1", "x"]
    for read, column, said in (
        (row.text, "a", "'a' is blank"),
        (row.text, "z", "has no column 'z'. Its columns: a, b"),
        (row.text, "f", "is null in column 'f'"),
        (row.text, "h", r"The h is {}"),
        (row.texts, "a", "not a list of texts"),
        (row.texts, "c", "blank entry"),
        (row.texts, "g", "not a list of texts"),
        (row.numbers, "d", "not a list of numbers"),
        (row.numbers, "e", "not a list of numbers"),
        (row.numbers, "b", "not a list of numbers"),
        (row.images, "g", "holds no picture"),
        (row.picture, "g", "holds no picture"),
    ):
        with pytest.raises(UserError, match=said):
            read(column)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<answer> 145° </answer>", "145°"),
        ("3", "3"),
        (" x \n", "x"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("a < b", "a < b"),
    ],
)
def test_a_solution_is_taken_out_of_its_tag(text: str, answer: str) -> None:
    assert untagged(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<answer></answer>",
        "<answer> \n</answer>",
        "<answer>1",
        "1</answer>",
        "<answer>1</answer><answer>2</answer>",
        " ",
    ],
)
def test_a_solution_without_one_answer_is_broken(text: str) -> None:
    with pytest.raises(BrokenRowError, match="One answer is needed"):
        untagged(text)


def test_json_lines_are_ascii_so_that_no_reader_splits_them() -> None:
    line = shards_module.json_line({"a": "\u2028\x85é"})
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"a": "\u2028\x85é"}
