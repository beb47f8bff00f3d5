"""A set is checked once: what is found again, what makes it a new one, and what is never kept."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import write_config, write_scenes
from test_resume import read_rows, repaint, write_rows, write_run

from gpg_vl.config import load_config
from gpg_vl.data.check import DataReport
from gpg_vl.data.look_ahead import look_ahead
from gpg_vl.data.rows import Row, RowProblem
from gpg_vl.errors import UserError
from gpg_vl.models import encode
from gpg_vl.models.encode import Encoder
from gpg_vl.training import check_store, data_check
from gpg_vl.training.check_store import KEPT, Checked, CheckStore
from gpg_vl.training.data_check import check_data, check_once, load_data
from gpg_vl.training.prepare import make_encoder, prepare
from gpg_vl.training.row_digests import RowDigests, digest_rows
from gpg_vl.types import Example, Message

ROWS = 6
CHOICE = {"weights": {"choice": 1.0}}


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    config = write_config(tmp_path_factory.mktemp("config"), tiny_checkpoint)
    return make_encoder(load_config(config))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many pictures were decoded, and how often gold answers were proved."""
    counted: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted[name] += 1
            return real(*given, **named)

        monkeypatch.setattr(module, name, counting)

    count(encode, "examine_image")
    count(encode, "load_image")
    count(data_check, "check_gold")
    return counted


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with its pictures in files, and its config."""
    write_run(tmp_path / "set", tiny_checkpoint, rewards=CHOICE)
    monkeypatch.chdir(tmp_path / "set")
    return tmp_path / "set"


def checked(encoder: Encoder, *overrides: str, again: bool = False) -> Checked:
    config = load_config("config.yaml", overrides)
    return check_once(config, replace(encoder, root=Path()), None, again=again)


# ---- found again


def test_a_start_on_a_checked_set_decodes_no_picture(folder: Path, calls: Counter[str]) -> None:
    config = load_config("config.yaml")
    first = prepare(config, processes=1, console=None)
    assert calls == {"examine_image": ROWS, "check_gold": 1}

    calls.clear()
    second = prepare(config, processes=1, console=None)
    assert calls == {}
    assert second.sets[0].report == first.sets[0].report
    assert second.rows == first.rows == digest_rows(load_data(config), folder)
    assert replace(second.plan, disk=first.plan.disk) == first.plan, "all but what is free"

    prepare(config, processes=1, console=None, recheck=True)
    assert calls == {"examine_image": ROWS, "check_gold": 1}


def test_it_is_said_that_nothing_was_looked_at(folder: Path, encoder: Encoder) -> None:
    checked(encoder)
    console = Console(width=200, record=True, quiet=False)
    with console.capture() as said:
        check_once(load_config("config.yaml"), replace(encoder, root=Path()), console, again=False)
    assert "rows.jsonl was checked before and has not changed; --recheck" in said.get()


def test_what_the_command_has_checked_is_not_checked_by_the_run(
    folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    """The proof of the gold answers is the run's own."""
    check_data(load_config("config.yaml"), replace(encoder, root=Path()), None)
    assert calls == {"examine_image": ROWS}
    checked(encoder)
    assert calls == {"examine_image": ROWS, "check_gold": 1}
    checked(encoder)
    assert calls == {"examine_image": ROWS, "check_gold": 1}

    check_data(load_config("config.yaml"), replace(encoder, root=Path()), None)
    assert calls["examine_image"] == 2 * ROWS, "who asks for the check gets it"


def test_a_reward_of_ones_own_is_proved_at_every_start(
    folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    for times in (1, 2):
        checked(encoder, "rewards.weights={luck.py:luck: 1.0}")
        assert calls == {"examine_image": ROWS, "check_gold": times}


def test_pictures_in_parquet_are_looked_at_once(
    tiny_checkpoint: Path, encoder: Encoder, tmp_path: Path, calls: Counter[str]
) -> None:
    write_scenes(tmp_path / "train.parquet", 12)
    config = load_config(write_config(tmp_path, tiny_checkpoint, rewards=CHOICE))
    first = check_once(config, encoder, None, again=False)
    assert check_once(config, encoder, None, again=False) == first
    assert calls["examine_image"] == 12


# ---- another set


def change_a_row(folder: Path) -> None:
    rows = read_rows(folder)
    rows[3]["prompt"] += " Please."
    write_rows(folder, rows)


def change_a_row_and_put_the_time_back(folder: Path) -> None:
    """With the same number of bytes."""
    file = folder / "rows.jsonl"
    before = file.stat()
    file.write_text(file.read_text().replace("drawn", "drawm"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def repaint_a_picture_and_put_the_time_back(folder: Path) -> None:
    file = folder / "img" / "4.png"
    before = file.stat()
    repaint(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_a_picture(folder: Path) -> None:
    (folder / "img" / "1.png").replace(folder / "img" / "0.png")
    (folder / "img" / "1.png").write_bytes((folder / "img" / "0.png").read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        change_a_row,
        change_a_row_and_put_the_time_back,
        repaint_a_picture_and_put_the_time_back,
        replace_a_picture,
    ],
)
def test_data_that_has_changed_is_checked_again(
    change: Callable[[Path], None], folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    before = checked(encoder)
    time.sleep(0.02)  # the clock of a file system may move in steps
    change(folder)
    now = checked(encoder)
    assert calls["examine_image"] == 2 * ROWS
    assert now.rows == digest_rows(load_data(load_config("config.yaml")), folder) != before.rows


@pytest.mark.parametrize(
    "override",
    [
        "data.max_prompt_tokens=900",
        "data.limit=6",
        "data.max_pixels=500000",
        'prompt.template="{prompt} Say it."',
        "rollout.max_new_tokens=5",
        "rewards.weights={choice: 1.0, format: 0.2}",
        "algorithm.name=sft",
    ],
)
def test_other_settings_are_another_check(
    override: str, folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    checked(encoder)
    checked(encoder, override)
    assert calls["examine_image"] == 2 * ROWS
    checked(encoder)
    assert calls["examine_image"] == 2 * ROWS, "the first one is still there"


def test_settings_that_the_check_does_not_read_change_nothing(
    folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    checked(encoder)
    checked(encoder, "train.steps=9", "output.folder=elsewhere", "train.learning_rate=1e-4")
    assert calls["examine_image"] == ROWS


def test_other_code_or_libraries_are_another_check(
    folder: Path, encoder: Encoder, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(encoder)
    monkeypatch.setattr(check_store, "_digest_package", lambda: "other")
    checked(encoder)
    assert calls["examine_image"] == 2 * ROWS
    monkeypatch.setattr(check_store, "_versions", lambda: {"pillow": "0"})
    checked(encoder)
    assert calls["examine_image"] == 3 * ROWS


def test_an_evaluation_whose_files_change_is_another_one(
    folder: Path, tiny_checkpoint: Path
) -> None:
    """What is kept of training rows in the same folder is no file of it."""
    config = load_config("config.yaml", ["eval.task=cvbench", "eval.data=."])

    def store() -> CheckStore | None:
        files = [folder / "rows.jsonl"]
        return check_store.open_check_store(
            config, files, (), answers=True, folder=folder, root=folder
        )

    before = store()
    assert before is not None
    before.keep(made())
    assert store() == before
    (folder / "test.jsonl").write_text("{}")
    assert store() != before


# ---- not kept


def test_a_set_with_problems_is_checked_at_every_start(
    folder: Path, encoder: Encoder, calls: Counter[str]
) -> None:
    (folder / "img" / "2.png").write_bytes(b"no picture")
    for times in (1, 2):
        with pytest.raises(UserError, match=r"rows\.jsonl has 1 problem"):
            checked(encoder)
        assert calls == {"examine_image": times * ROWS}


@pytest.mark.parametrize("name", ["rows.jsonl", "img/0.png"])
def test_a_file_that_is_written_during_the_check_leaves_no_result(
    name: str,
    folder: Path,
    encoder: Encoder,
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = data_check.check

    def writing(*given: Any, **named: Any) -> DataReport:
        report = check(*given, **named)
        file = folder / name
        file.write_bytes(file.read_bytes())
        return report

    monkeypatch.setattr(data_check, "check", writing)
    checked(encoder)
    monkeypatch.setattr(data_check, "check", check)
    checked(encoder)
    assert calls["examine_image"] == 2 * ROWS


def test_a_torn_result_is_none(folder: Path, encoder: Encoder, calls: Counter[str]) -> None:
    expected = checked(encoder)
    (file,) = (folder / ".gpg_vl").glob("check-*.npz")
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        calls.clear()
        assert checked(encoder) == expected
        assert calls["examine_image"] == ROWS


def test_only_the_newest_results_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        store = CheckStore(file=tmp_path / f"check-{number}.npz", root=None)
        store.keep(made())
        os.utime(store.file, (number, number))
    kept = {file.name for file in tmp_path.iterdir()}
    assert kept == {f"check-{number}.npz" for number in range(3, KEPT + 3)}


def made() -> Checked:
    golds = (
        Example(id="a", prompt="ü?", answer="1", choices=("1", "2"), meta={"x": [1.5, None]}),
        Example(id="b", prompt=(Message(role="user", content="<image>?"),), answer="", place="p"),
    )
    report = DataReport(
        source="a.jsonl",
        rows=2,
        tokens=(42, 30),
        image_tokens=(12, 0),
        image_sizes={(112, 84): 2, (28, 28): 1},
        tasks={"": 2},
        problems=(),
        max_prompt_tokens=None,
        notes=("One.", "Two."),
        golds=golds,
    )
    rows = RowDigests(texts=bytes(range(32)), pictures=bytes(range(32, 64)))
    return Checked(report=report, rows=rows, statuses=check_store.digest_pairs([]))


def test_what_is_kept_is_what_is_found(tmp_path: Path) -> None:
    store = CheckStore(file=tmp_path / "check-a.npz", root=None)
    assert store.find() is None
    store.keep(made())
    assert store.find() == made()


# ---- looking ahead


def test_rows_keep_their_order_whatever_each_takes() -> None:
    def look(example: Example) -> str:
        time.sleep(0.002 * (7 * int(example.id) % 5))
        return f"seen {example.id}"

    rows: list[Row] = [Example(id=str(n), prompt="?", answer="") for n in range(60)]
    rows[7] = RowProblem(row=7, source="", kind="json", message="?")
    found = [(row, looked.result() if looked else None) for row, looked in look_ahead(rows, look)]
    assert [row for row, _ in found] == rows
    assert [said for _, said in found] == [None if n == 7 else f"seen {n}" for n in range(60)]


def test_a_source_that_breaks_off_gives_what_it_had() -> None:
    def rows() -> Iterator[Row]:
        yield from (Example(id=str(n), prompt="?", answer="") for n in range(3))
        raise UserError("It breaks off.")

    ahead = look_ahead(rows(), lambda example: example.id)
    assert [looked.result() for _, looked in (next(ahead), next(ahead), next(ahead)) if looked] == [
        "0",
        "1",
        "2",
    ]
    with pytest.raises(UserError, match="breaks off"):
        next(ahead)
