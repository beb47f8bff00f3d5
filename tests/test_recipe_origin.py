"""Where recipes get their rows: files and folders of every layout, lists of JSON, the hub as a stream; never a pickle."""

import io
import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import IMAGE, picture, struct, write_json, write_jsonl, write_parquet

from gpg_vl.data.json_rows import elements as json_elements
from gpg_vl.data.json_rows import json_rows
from gpg_vl.data.recipe.origin import open_source
from gpg_vl.data.recipe.row import Source
from gpg_vl.data.rows import CellError
from gpg_vl.data.sources import split_files
from gpg_vl.errors import UserError

TYPES = {"n": pa.int64(), "text": pa.string(), "huge": pa.string()}


def made(rows: int) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"row {n}", "huge": "x" * 100} for n in range(rows)]


def opened(name: str | Path, splits: Sequence[str] = ("train",), **changes: Any) -> list[Source]:
    arguments: dict[str, Any] = {
        "columns": ("n", "text"),
        "optional": ("rare",),
        "patterns": {},
        "revision": None,
        "images": None,
    }
    return open_source(str(name), splits, **{**arguments, **changes})


# Files.


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 11, 12, 20])
def test_rows_are_read_from_any_row_on(tmp_path: Path, kind: str, start: int) -> None:
    """12 rows, in Parquet in row groups of five."""
    file = tmp_path / f"some.{kind}"
    if kind == "parquet":
        write_parquet(file, made(12), TYPES, row_group_size=5)
    else:
        (write_jsonl if kind == "jsonl" else write_json)(file, made(12))
    (source,) = opened(file)
    rows = list(source.read(start))
    assert [cells["n"] for _, cells in rows] == list(range(start, 12))
    place = {"parquet": "some.parquet[{}]", "jsonl": "some.jsonl:{}", "json": "some.json[{}]"}[kind]
    assert [at for at, _ in rows] == [place.format(n + (kind == "jsonl")) for n in range(start, 12)]
    assert source.total == (12 if kind == "parquet" else None)
    assert source.root == tmp_path


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    (source,) = opened(write_parquet(tmp_path / "a.parquet", made(2), TYPES))
    assert [set(cells) for _, cells in source.read(0)] == [{"n", "text"}] * 2


def test_reading_a_file_does_not_keep_what_was_read(tmp_path: Path) -> None:
    """24 MB in row groups of 1 MB: Arrow must never hold a quarter of them."""
    random.seed(0)
    rows = [{"n": n, "text": random.randbytes(20_000).hex(), "huge": ""} for n in range(600)]
    (source,) = opened(
        write_parquet(tmp_path / "a.parquet", rows, TYPES, row_group_size=25, compression="none")
    )
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in source.read(0)]
    assert len(held) == 600
    assert max(held) < 6_000_000


@pytest.mark.parametrize("start", [0, 2, 3, 5, 8])
def test_the_files_of_a_split_follow_each_other(tmp_path: Path, start: int) -> None:
    for part in range(3):
        write_parquet(
            tmp_path / "data" / f"train-{part:05d}-of-00003.parquet",
            made(9)[3 * part : 3 * part + 3],
            TYPES,
        )
    (source,) = opened(tmp_path)
    assert [cells["n"] for _, cells in source.read(start)] == list(range(start, 9))
    assert source.total == 9
    assert list(source.facts["files"]) == [
        f"data/train-{part:05d}-of-00003.parquet" for part in range(3)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "train.parquet",
        "train.jsonl",
        "train.json",
        "train/0.parquet",
        "train/a.jsonl",
        "SAT_train.parquet",
    ],
)
def test_the_layouts_of_a_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write = {
        ".parquet": lambda: write_parquet(file, made(3), TYPES),
        ".jsonl": lambda: write_jsonl(file, made(3)),
    }
    write.get(file.suffix, lambda: write_json(file, made(3)))()
    (source,) = opened(tmp_path, patterns={"train": "SAT_train.parquet"})
    assert [cells["n"] for _, cells in source.read(0)] == [0, 1, 2]


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", made(3), TYPES)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", made(5)[3:], TYPES)
    train, test = opened(tmp_path, ("train", "test"))
    assert [cells["n"] for _, cells in train.read(0)] == [0, 1, 2]
    assert [cells["n"] for _, cells in test.read(0)] == [3, 4]


def test_two_layouts_of_one_split_in_a_folder_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", made(3), TYPES)
    write_jsonl(tmp_path / "train.jsonl", made(3))
    with pytest.raises(
        UserError, match=r"holds the split 'train' more than once: train\.parquet, train\.jsonl"
    ):
        opened(tmp_path)


def test_a_missing_split_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", made(3), TYPES)
    with pytest.raises(
        UserError,
        match=r"holds no file of the split 'test'; looked for mine, test-\*\.parquet.*Give --split",
    ):
        split_files(tmp_path, "test", "mine")


def test_a_changed_file_has_other_facts(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", made(3))
    (before,) = opened(file)
    assert before.facts == opened(file)[0].facts
    write_jsonl(file, made(4))
    assert before.facts != opened(file)[0].facts


@pytest.mark.parametrize(
    "name, said, remedy",
    [
        ("nowhere.parquet", "does not exist", "Correct --source"),
        ("a/b/c", "does not exist", "owner/name"),
        ("data.csv", "ends in '.csv'. .parquet, .jsonl and .json files", "Convert it"),
        ("broken.parquet", "cannot be read", "It must be a complete Parquet file"),
        (
            "other.parquet",
            "has no column 'text'; it has n, txet. Did you mean 'txet'?",
            "--help lists their columns",
        ),
    ],
)
def test_a_source_that_cannot_be_used(tmp_path: Path, name: str, said: str, remedy: str) -> None:
    (tmp_path / "data.csv").write_text("n\n1")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and half of it")
    write_parquet(
        tmp_path / "other.parquet", [{"n": 1, "txet": "a"}], {"n": pa.int64(), "txet": pa.string()}
    )
    with pytest.raises(UserError) as caught:
        opened(tmp_path / name)
    assert said in str(caught.value)
    assert remedy in str(caught.value)


def test_a_revision_is_for_the_hub_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a local path, which has no revisions"):
        opened(write_jsonl(tmp_path / "train.jsonl", made(1)), revision="main")


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize(
    "name", ["refs(unc).p", "flowers.pth", "a.pkl", "a.pickle", "a.pt", "a.npy"]
)
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError) as caught:
            opened(path)
        assert "runs code when it is opened, so it is never opened here" in str(caught.value)
        assert "one JSON object per line" in str(caught.value)


# Lists of JSON.

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    elements=st.lists(
        st.dictionaries(st.text(max_size=3), values, max_size=3) | values, max_size=6
    ),
    chunk=st.integers(1, 7),
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
)
def test_a_list_is_read_the_same_whatever_the_pieces_it_comes_in(
    elements: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    stream = io.StringIO(json.dumps(elements, indent=indent, ensure_ascii=ascii_only))
    read = [cells for _, _, cells in json_elements(lambda _: stream.read(chunk))]
    assert [element if isinstance(element, dict) else None for element in read] == [
        element if isinstance(element, dict) else None for element in elements
    ]
    assert all(isinstance(element, dict | CellError) for element in read)


def test_an_element_that_is_no_object_is_a_problem_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0}, 7, {"n": 2}]')
    rows = list(json_rows(tmp_path / "a.json", name="a.json"))
    assert [at for at, _ in rows] == ["a.json[0]", "a.json[1]", "a.json[2]"]
    assert isinstance(rows[1][1], CellError)
    assert "The element is 7" in str(rows[1][1])


def test_a_single_object_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff {"n": 0}', encoding="utf-8")
    assert list(json_rows(tmp_path / "a.json", name="a")) == [("a[0]", {"n": 0})]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[{}",
        '[{"a": 1}, {"b',
        "[{}}",
        "not json",
        "[" * 100_000,
        '[{"a": 1} {"a": 2}]',
        "[{}][{}]",
        "[{},]",
        "[,]",
    ],
)
def test_a_file_that_is_not_json_or_breaks_off_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not JSON.*A list of objects"):
        list(json_rows(tmp_path / "a.json", name="a"))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('[{"a": "é"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="in UTF-8"):
        list(json_rows(tmp_path / "a.json", name="a"))


# The hub.

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_TYPES = {"images": pa.list_(IMAGE), "image": IMAGE, "text": pa.string(), "huge": pa.string()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The hub with one data set, owner/set, whose files lie in a folder; what was asked of it is noted."""
    rows = [
        {
            "images": [struct(picture(n)), struct(picture(n + 100))],
            "image": struct(picture(n), "a.png"),
            "text": f"row {n}",
            "huge": "x",
        }
        for n in range(7)
    ]
    folder = tmp_path / "hub"
    write_parquet(
        folder / "data" / "train-00000-of-00001.parquet",
        rows,
        HUB_TYPES,
        images=["images", "image"],
    )
    write_parquet(folder / "SAT_val.parquet", rows[:2], HUB_TYPES, images=["images", "image"])
    asked: list[dict[str, Any]] = []
    load = datasets.load_dataset

    def load_dataset(name: str, **arguments: Any) -> Any:
        asked.append({"name": name, **arguments})
        if name != "owner/set":
            raise datasets.exceptions.DatasetNotFoundError(
                f"Dataset '{name}' doesn't exist on the Hub"
            )
        del arguments["revision"]
        return load(str(folder), **arguments, cache_dir=str(tmp_path / "cache"))

    def dataset_info(self: Any, name: str, *, revision: str | None) -> Any:
        asked.append({"info": name, "revision": revision})
        return huggingface_hub.hf_api.DatasetInfo(
            id=name, sha=COMMIT, tags=[], private=False, disabled=False, downloads=0
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return asked


def test_the_hub_is_read_as_a_stream_at_one_commit_with_its_pictures_encoded(
    hub: list[dict[str, Any]],
) -> None:
    (source,) = opened("owner/set", columns=("images", "image", "text"))
    assert source.facts == {"hub": "owner/set", "revision": COMMIT}
    rows = list(source.read(5))
    assert [at for at, _ in rows] == ["owner/set@01234567/train[5]", "owner/set@01234567/train[6]"]
    assert rows[0][1] == {
        "images": [struct(picture(5)), struct(picture(105))],
        "image": struct(picture(5), "a.png"),
        "text": "row 5",
    }
    assert hub == [
        {"info": "owner/set", "revision": None},
        {
            "name": "owner/set",
            "data_files": None,
            "split": "train",
            "streaming": True,
            "revision": COMMIT,
        },
    ]


def test_a_commit_is_taken_as_it_is_and_files_by_their_pattern(hub: list[dict[str, Any]]) -> None:
    (source,) = opened(
        "owner/set",
        ("val",),
        columns=("text",),
        revision=COMMIT,
        patterns={"val": "SAT_val.parquet"},
    )
    assert [cells for _, cells in source.read(0)] == [{"text": "row 0"}, {"text": "row 1"}]
    (asked,) = hub
    assert (asked["data_files"], asked["revision"]) == ({"val": "SAT_val.parquet"}, COMMIT)


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        (
            "owner/gone",
            {},
            "The hub's data set 'owner/gone' cannot be read: Dataset 'owner/gone' doesn't exist",
        ),
        ("owner/set", {"splits": ("tset",)}, "cannot be read"),
        (
            "owner/set",
            {"columns": ("txet",)},
            "has no column 'txet'; it has images, image, text, huge. Did you mean 'text'?",
        ),
    ],
)
def test_what_the_hub_does_not_have(
    hub: list[dict[str, Any]], name: str, arguments: dict[str, Any], said: str
) -> None:
    (source,) = opened(name, **{"columns": ("text",), **arguments})
    with pytest.raises(UserError) as caught:
        next(source.read(0))
    assert said in str(caught.value)


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"'owner/set' cannot be read.*fetch the files and give their folder as --source",
    ):
        opened("owner/set")


def test_a_connection_that_breaks_is_no_traceback(
    hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP library's own error is not an OSError."""
    (kind,) = (
        kind
        for kind in huggingface_hub.errors.HfHubHTTPError.__mro__
        if kind.__name__ == "HTTPError"
    )

    def broken(self: Any, name: str, *, revision: str | None) -> Any:
        raise kind("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", broken)
    with pytest.raises(UserError, match="cannot be read: Name or service not known"):
        opened("owner/set")
