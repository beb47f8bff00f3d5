"""`data.sources` in a config: a list of small sections, and what is refused of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gpg_vl.config import (
    Config,
    documented_keys,
    dump_config,
    load_config,
    make_config,
    parse_config,
)
from gpg_vl.errors import UserError
from gpg_vl.training.training_sets import all_rewards, training_sets

TWO: list[dict[str, Any]] = [{"path": "data/sat/train"}, {"path": "data/geo/train.parquet"}]


def parsed(sources: list[dict[str, Any]] = TWO, rewards: Any = None, **data: Any) -> Config:
    tree = {
        "model": {"path": "m"},
        "data": {"sources": sources, **data},
        "rewards": {"weights": {"choice": 1.0}} if rewards is None else rewards,
        "prompt": {"system": "Be brief.", "prefill": "<think>"},
        "output": {"folder": "o"},
    }
    return parse_config(tree, "run.yaml")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/sat/train", "sat"),
        ("data/sat/train.parquet", "sat"),
        ("data/sat/train-*", "sat"),
        ("data/sat/rows.jsonl.gz", "rows"),
        ("train.jsonl", "train"),
        ("/abs/train", "abs"),
        ("../x y/", "x-y"),
        ("datasets:lab/sat-8k:train", "sat-8k"),
        ("datasets:lab/train", "lab"),
        ("..", "data"),
    ],
)
def test_a_source_is_called_by_its_path(path: str, name: str) -> None:
    assert parsed([{"path": path}]).data.sources[0].called == name


def test_a_config_with_sources_is_written_and_read_back(tmp_path: Path) -> None:
    config = parsed([{**TWO[0], "weight": 2, "prompt": {"system": ""}}, {**TWO[1], "weight": 1}])
    file = tmp_path / "written.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config


def test_each_set_has_the_config_of_a_run_on_it_alone() -> None:
    own = {
        "rewards": {"math": 1.0, "my.py:f": 0.5},
        "prompt": {"system": "", "template": "{prompt} Count."},
        "columns": {"prompt": "q"},
        "root": "images",
        "limit": 5,
    }
    first, second = training_sets(parsed([TWO[0], {**TWO[1], **own}], order="order.txt"))
    assert (first.name, second.name) == ("sat", "geo")

    data = second.config.data
    assert (data.train, data.root, data.columns, data.limit) == (
        "data/geo/train.parquet", "images", {"prompt": "q"}, 5,
    )  # fmt: skip
    assert (data.sources, data.order) == ((), None)
    prompt = second.config.prompt
    assert (prompt.template, prompt.system, prompt.prefill) == ("{prompt} Count.", None, "<think>")
    assert second.config.rewards.weights == {"math": 1.0, "my.py:f": 0.5}

    assert (first.config.prompt.system, first.config.prompt.template) == ("Be brief.", "{prompt}")
    assert first.config.rewards.weights == {"choice": 1.0}
    assert parse_config(first.config.model_dump(mode="json"), "set") == first.config


def test_a_run_on_one_set_is_its_own_config() -> None:
    config = parsed([], train="d.jsonl")
    assert training_sets(config)[0].config is config
    assert training_sets(config)[0].name == ""


def test_the_rewards_of_a_run_are_those_of_all_sets() -> None:
    config = parsed([{**TWO[0], "rewards": {"math": 0.5}}, TWO[1]])
    assert all_rewards(config) == {"math": 0.5, "choice": 1.0}


def test_no_common_reward_is_needed_where_each_source_has_its_own() -> None:
    sources = [{**one, "rewards": {"choice": 1.0}} for one in TWO]
    assert all_rewards(parsed(sources, rewards={})) == {"choice": 1.0}
    with pytest.raises(UserError, match=r"rewards\.weights names no reward with a weight"):
        parsed([sources[0], TWO[1]], rewards={})


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        (TWO, {"train": "d.jsonl"}, "train is 'd.jsonl', and sources has 2 more: only one of the two"),
        ([], {}, "neither train nor sources is given"),
        (TWO, {"limit": 3, "columns": {"id": "x"}}, "columns and limit can only be used with train"),
        ([TWO[0], {"path": "other/sat/train"}], {}, "several items named 'sat': data/sat/train"),
        ([{**TWO[0], "weight": 2}, TWO[1]], {}, "sources has weights, but none for geo"),
        ([{**TWO[0], "weight": 2}], {"order": "o.txt"}, "has weights, but order is 'o.txt'"),
        ([{**TWO[0], "wieght": 2}], {}, "data.sources.0.wieght: there is no such key. Did you mean 'weight'?"),
        ([{"weight": 2}], {}, "data.sources.0.path: is required and missing. The data, as for `data.train`"),
        ([{**TWO[0], "weight": 0}], {}, "data.sources.0.weight: 0 was given"),
        ([{**TWO[0], "name": "a/b"}], {}, "data.sources.0.name: 'a/b' was given"),
        ([{**TWO[0], "rewards": {"math": 0}}], {}, "data.sources.0: rewards names no reward"),
        ([{**TWO[0], "prompt": {"template": "x"}}], {}, "template is 'x', without {prompt}"),
        ([{**TWO[0], "prompt": {"sistem": "x"}}], {}, "prompt.sistem: there is no such key. Did you mean 'system'?"),
        (["data/sat"], {}, "data.sources.0: 'data/sat' was given"),
    ],
)  # fmt: skip
def test_sources_that_make_no_run_are_refused(sources: Any, more: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(sources, **more)
    assert message in str(caught.value)


# ---- overrides


def written(folder: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(dump_config(parsed([{**one, "weight": 1} for one in TWO])))
    return file


def test_an_override_reaches_into_an_item(tmp_path: Path) -> None:
    overrides = [
        "data.sources.0.weight=2.5",
        "data.sources.1.rewards.my_rewards.py:f=1",
        "data.sources.1.prompt.system=Look.",
        "data.sources.1.columns={id: idx}",
    ]
    first, second = load_config(written(tmp_path), overrides).data.sources
    assert (first.weight, second.weight) == (2.5, 1.0)
    assert second.rewards == {"my_rewards.py:f": 1.0}
    assert second.prompt.system == "Look."
    assert second.columns == {"id": "idx"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.2.weight=1", "a list of 2. Select an item by its number, from 0 to 1"),
        ("data.sources.sat.weight=1", "as in data.sources.0.weight"),
        ("data.sources.0=1", "followed by the key"),
        ("data.sources.0.weigth=1", "Did you mean 'weight'?"),
    ],
)
def test_an_override_that_names_no_key_of_an_item_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path), [override])
    assert message in str(caught.value)


def test_overrides_leave_the_given_sections_as_they_are(tmp_path: Path) -> None:
    given = yaml.safe_load(written(tmp_path).read_text())
    before = yaml.safe_load(written(tmp_path).read_text())
    changed = make_config(given, {"data.sources.0.weight": 4})
    assert changed.data.sources[0].weight == 4
    assert given == before


def test_the_keys_of_an_item_are_documented() -> None:
    keys = {key: text for key, _, text in documented_keys()}
    assert keys["data.sources.N.weight"].startswith("Its share of the draws")
    assert all(keys[f"data.sources.N.prompt.{key}"] for key in ("template", "system", "prefill"))
