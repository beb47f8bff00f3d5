"""Rows by their number: the same as one after the other, whatever the file, and without the others in memory."""

import gzip
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_read import json_row, saved

from gpg_vl.data import json_index, json_rows
from gpg_vl.data.json_index import index_elements, index_lines
from gpg_vl.data.read import Examples, load_examples
from gpg_vl.data.row_groups import RowGroups
from gpg_vl.data.tables import open_file
from gpg_vl.errors import UserError
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example

NUMBER = 70
"""More than two batches of rows."""


def made(count: int = NUMBER) -> list[dict[str, Any]]:
    """Rows of different lengths, with letters of two and four bytes."""
    return [
        {"prompt": f"Wie groß ist {n}? \U0001f600" * (n % 5 + 1), "answer": f"é{n}", "task": "?"}
        for n in range(count)
    ]


def as_lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    """A blank line behind every third row, and no end behind the last."""
    lines = []
    for number, row in enumerate(rows):
        lines += [json.dumps(row, ensure_ascii=False)] + ["  "] * (number % 3 == 2)
    return end.join(lines)


def write_lines(folder: Path) -> Path:
    (folder / "a.jsonl").write_bytes(as_lines(made()).encode())
    return folder / "a.jsonl"


def write_marked_lines(folder: Path) -> Path:
    """As programs for Windows write text."""
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + as_lines(made(), "\r\n").encode())
    return folder / "a.jsonl"


def write_packed_lines(folder: Path) -> Path:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(as_lines(made()).encode()))
    return folder / "a.jsonl.gz"


def write_list(folder: Path) -> Path:
    text = json.dumps(made(), ensure_ascii=False, indent=1).replace("\n", "\r\n")
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf\r\n" + text.encode())
    return folder / "a.json"


def write_packed_list(folder: Path) -> Path:
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(made()).encode()))
    return folder / "a.json.gz"


def write_object(folder: Path) -> Path:
    (folder / "a.json").write_text(json.dumps(made(1)[0], indent=1) + "\n")
    return folder / "a.json"


def write_lines_called_json(folder: Path) -> Path:
    (folder / "a.json").write_text(as_lines(made()))
    return folder / "a.json"


def write_groups(folder: Path) -> Path:
    """Row groups of 40 and 30 rows."""
    pq.write_table(pa.Table.from_pylist(made()), folder / "a.parquet", row_group_size=40)
    return folder / "a.parquet"


def write_saved(folder: Path) -> Path:
    return saved(folder / "saved", {"": made()})


def write_folder(folder: Path) -> Path:
    for name, write in {"1": write_packed_lines, "2": write_groups, "3": write_lines}.items():
        (folder / name).mkdir()
        file = write(folder / name)
        file.rename(folder / f"{name}{''.join(file.suffixes)}")
        (folder / name).rmdir()
    return folder


WRITERS = [
    write_lines,
    write_marked_lines,
    write_packed_lines,
    write_list,
    write_packed_list,
    write_object,
    write_lines_called_json,
    write_groups,
    write_saved,
    write_folder,
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_row_by_its_number_is_the_row_in_its_place(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = write(tmp_path)
    expected = load_examples(source)
    examples = Examples(source)
    assert (
        len(examples)
        == len(expected)
        == {"write_object": 1, "write_folder": 210}.get(write.__name__, NUMBER)
    )
    assert list(examples) == expected
    assert [one.place for one in examples] == [one.place for one in expected]

    order = random.Random(0).sample(range(len(expected)), len(expected))
    drawn = [examples[number] for number in order]
    assert drawn == [expected[number] for number in order]
    assert [one.place for one in drawn] == [expected[number].place for number in order]
    assert examples[-1] == expected[-1]
    assert examples[1:4] == expected[1:4]
    with pytest.raises(IndexError):
        examples[len(expected)]


json_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
rows_of_json = st.lists(st.dictionaries(json_texts, json_texts, max_size=3), max_size=6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=rows_of_json,
    indent=st.none() | st.integers(0, 2),
    is_ascii=st.booleans(),
    piece=st.integers(1, 9),
)
def test_the_places_of_elements_are_those_of_their_bytes(
    rows: list[dict[str, str]],
    indent: int | None,
    is_ascii: bool,
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever the pieces in which the file comes."""
    file = tmp_path_factory.mktemp("list") / "a.json"
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=is_ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK", piece)
        index = index_elements(file)
    assert [index.read(file, number) for number in range(len(index))] == rows


def test_a_line_beyond_the_bound_is_the_same_problem_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (json_rows, json_index):
        monkeypatch.setattr(module, "MAX_LINE", 60)
    rows = [{"prompt": "?", "answer": "x" * n} for n in (1, 200, 2, 61, 3)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = open_file(file)
    expected = [(place, str(cells)) for place, cells in table.rows()]
    assert [text[:11] for _, text in expected] == ["{'prompt': ", "The line is"] * 2 + [
        "{'prompt': "
    ]
    read = [table.row(number) for number in (4, 3, 2, 1, 0)]
    assert [(place, str(cells)) for place, cells in reversed(read)] == expected
    assert list(index_lines(file).lines or ()) == [1, 2, 3, 4, 5]


def test_a_limit_hides_the_other_rows(tmp_path: Path) -> None:
    examples = Examples(write_groups(tmp_path), limit=50)
    assert (len(examples), len(list(examples))) == (50, 50)
    with pytest.raises(IndexError):
        examples[50]


def test_a_broken_row_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "?", "answer": "x"}\n\n{"prompt": "?"}\nno json\n')
    examples = Examples(file)
    assert examples[0].answer == "x"
    with pytest.raises(
        UserError, match=r"cannot be used: row 1, id '1', .*a\.jsonl:3: The row has"
    ):
        examples[1]
    with pytest.raises(UserError, match=r"row 2, .*a\.jsonl:4: The line is not JSON"):
        examples[2]
    assert Examples(file, answers=False)[1].answer == ""
    with pytest.raises(UserError, match="row 1"):
        list(examples)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"holds no rows\. At least one is needed"):
        Examples(tmp_path / "a.jsonl")


def test_rows_are_found_after_a_change_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path)
    monkeypatch.chdir(tmp_path)
    examples = Examples("a.jsonl")
    monkeypatch.chdir("/")
    assert examples[1].answer == "é1"
    assert examples[1].place == "a.jsonl:2"


def test_a_file_that_has_become_shorter_is_a_user_error(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    examples = Examples(file)
    assert examples[60].answer == "é60"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"a\.json cannot be read: .* as it was when the program"):
        examples[60]


# ---- gzipped files


def test_a_gzipped_file_is_unpacked_once_beside_it(tmp_path: Path) -> None:
    file = write_packed_lines(tmp_path)
    assert Examples(file)[3].answer == "é3"
    (copy,) = (tmp_path / ".gpg_vl").glob("*.unpacked")
    assert copy.read_bytes() == as_lines(made()).encode()
    written = copy.stat().st_mtime_ns
    assert Examples(file)[4].answer == "é4"
    assert copy.stat().st_mtime_ns == written

    # another content under the same name is not taken for it, and the old copy goes
    file.write_bytes(gzip.compress(as_lines(made(5)[::-1]).encode()))
    assert Examples(file)[0].answer == "é4"
    (newer,) = (tmp_path / ".gpg_vl").iterdir()
    assert newer != copy
    assert len(load_examples(tmp_path)) == 5, "what is kept beside the data is no data"


def test_a_folder_that_cannot_be_written_has_its_store_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    file = write_packed_lines(tmp_path / "data")
    (tmp_path / "data" / ".gpg_vl").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Examples(file)[3].answer == "é3"
    assert len(list((tmp_path / "cache" / "gpg_vl").glob("*/a.jsonl.gz-*"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data" / ".gpg_vl"))
    with pytest.raises(UserError, match=r"can be written.*set XDG_CACHE_HOME"):
        len(Examples(file))


# ---- large files


@pytest.mark.parametrize("write", [write_marked_lines, write_list, write_packed_lines])
def test_the_places_of_rows_in_a_large_file_are_kept(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_index, "_KEPT_BYTES", 1)
    source = write(tmp_path)
    expected = list(Examples(source))
    read = [Examples(source)[number] for number in range(NUMBER)]
    assert read == expected
    assert [one.place for one in read] == [one.place for one in expected]
    (entry,) = (tmp_path / ".gpg_vl").glob("*.index.npy")

    # found, not made: with the places of two rows there are two
    whole = entry.read_bytes()
    np.save(entry, np.load(entry)[:, :2])
    assert len(Examples(source)) == 2
    for torn in (b"", whole[:50], whole[:-1]):
        entry.write_bytes(torn)
        assert Examples(source)[-1] == expected[-1]

    # another file under the same name has another index
    time.sleep(0.02)  # the clock of a file system may move in steps
    source.write_bytes(source.read_bytes())
    assert Examples(source)[-1] == expected[-1]
    (newer,) = (tmp_path / ".gpg_vl").glob("*.index.npy")
    assert newer != entry


# ---- memory

MEASURE = """
import random, re, sys
from pathlib import Path
from gpg_vl.data.read import Examples
examples = Examples(sys.argv[1], {"prompt": "prompt"})
for example in examples:
    assert len(example.images[0]) == 100_000
for number in random.Random(0).sample(range(len(examples)), min(300, len(examples))):
    assert examples[number].images[0][:8] == b"%08d" % number
status = Path("/proc/self/status").read_text()
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]))
"""


def pictures(count: int) -> list[dict[str, Any]]:
    filler = random.Random(0).randbytes(99_992)
    return [
        {"prompt": f"{n}?", "answer": "x", "images": [b"%08d" % n + filler]} for n in range(count)
    ]


def write_big_lines(file: Path, count: int) -> Path:
    with file.with_suffix(".jsonl").open("w") as stream:
        for row in pictures(count):
            example = Example(id="", **{**row, "images": tuple(row["images"])})
            stream.write(json.dumps(json_row(example)) + "\n")
    return file.with_suffix(".jsonl")


def write_big_parquet(file: Path, count: int) -> Path:
    rows = pa.Table.from_pylist(pictures(count))
    pq.write_table(rows, file.with_suffix(".parquet"), row_group_size=200, compression="none")
    return file.with_suffix(".parquet")


def write_big_saved(file: Path, count: int) -> Path:
    return saved(file, {"": pictures(count)})


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of one process is read from /proc")
@pytest.mark.parametrize("write", [write_big_lines, write_big_parquet, write_big_saved])
def test_memory_does_not_grow_with_the_data(
    write: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """200 MB of pictures against 10: all of them read one after the other, and some drawn."""
    peaks = []
    for count in (100, 2000):
        source = write(tmp_path / str(count), count)
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 100e6, peaks


def test_scenes_are_drawn_as_they_were_written(tmp_path: Path) -> None:
    """Pictures in Parquet, through the reader of examples."""
    rows = list(scenes.rows(3, 6))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    examples = Examples(tmp_path, {"prompt": "prompt"})
    for number in (5, 0, 3):
        assert examples[number].images == (rows[number]["image"]["bytes"],)


# ---- row groups that are kept


def test_a_row_group_is_unpacked_once_for_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as most programs write it, one row group, drawn in random order. Before, each row unpacked what came before it."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(made()), file)
    read, numbers = pq.ParquetFile.read_row_group, list(range(NUMBER))
    calls = []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, *a, **k: calls.append(a) or read(self, *a, **k),
    )
    random.Random(0).shuffle(numbers)
    table = open_file(file)
    assert [table.row(n)[1]["answer"] for n in numbers] == [f"é{n}" for n in numbers]
    assert calls == [(0,)]
    with pytest.raises(IndexError):
        table.row(NUMBER)


def test_row_groups_are_kept_up_to_a_number_of_bytes() -> None:
    """Tables of 800 bytes, room for two: the one that was asked for longest ago is read again."""
    groups, calls = RowGroups(limit=2000), []

    def find(key: str, size: int = 800) -> pa.Table | None:
        def read() -> pa.Table:
            calls.append(key)
            return pa.table({"a": pa.array(range(100), pa.int64())})

        return groups.find(key, size, read)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert find(key) is not None
    assert calls == ["a", "b", "c", "b"]
    assert find("d", size=2001) is None
    assert calls == ["a", "b", "c", "b"]
