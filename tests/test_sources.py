"""Runs on several data sets: a reward and a prompt of each, one order, curves by source, resumed bit for bit."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from runs import gpg_vl, kill_after, metrics, write_config
from test_train import equal, last_checkpoint, weights

from gpg_vl.config import load_config, parse_config
from gpg_vl.errors import UserError
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import SourceRewards
from gpg_vl.training.build import make_source
from gpg_vl.training.identity import Identity, make_identity, refuse_other_identity
from gpg_vl.training.plan_table import render_plan
from gpg_vl.training.prepare import Prepared, prepare
from gpg_vl.types import Completion, Example, Group

REWARDS = '''
def luck(completion, example):
    """Full marks for a gold answer; else a number that depends on the text alone. Not for words."""
    assert example.source in ("", "scenes"), example.source
    return value(completion, 5)


def few(completion, example):
    """The same with fewer values, for words alone."""
    assert example.source in ("", "words"), example.source
    return value(completion, 2)


def value(completion, kinds):
    text = completion.text
    return 1.0 if text.startswith("<think>") else sum(map(ord, text)) % kinds / max(kinds - 1, 1)
'''
SCENES, WORDS = 12, 5
SHARES = {"scenes": Fraction(3, 4), "words": Fraction(1, 4)}


def write_words(file: Path, rows: int = WORDS) -> Path:
    """Rows without pictures, with ids that the scenes have too."""
    lines = [
        {
            "id": str(number),
            "prompt": f"Which letter is number {number}?",
            "answer": "ABCDE"[number],
        }
        for number in range(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_sources(folder: Path, checkpoint: Path, **sections: dict[str, Any]) -> Path:
    """A config of three steps on scenes and words, three of four draws from the scenes."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARDS)
    file = write_config(
        folder,
        checkpoint,
        **{
            "train": {"prompts_per_step": 4, "steps": 3},
            "rollout": {"group_size": 2, "max_new_tokens": 2},
            "rewards": {"weights": {f"{rewards}:luck": 1.0}},
            "output": {"samples_every": 1},
            **sections,
        },
    )
    tree = yaml.safe_load(file.read_text())
    if "data" not in sections:
        scenes = {
            "name": "scenes",
            "path": tree["data"]["train"],
            "columns": tree["data"]["columns"],
            "weight": 3,
        }
        words = {
            "path": str(write_words(folder / "words.jsonl")),
            "weight": 1,
            "rewards": {f"{rewards}:few": 0.5},
            "prompt": {"template": "{prompt} Answer with a letter."},
        }
        tree["data"] = {"sources": [scenes, words]}
    file.write_text(yaml.safe_dump(tree))
    return file


def samples(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The groups of each step."""
    return {
        folder.name: [
            json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()
        ]
        for folder in sorted((run / "samples").glob("step-*"))
    }


def comparable(run: Path) -> list[dict[str, Any]]:
    """Metrics without what the path of a reward is in."""
    return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in metrics(run)]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("sources")
    result = gpg_vl("train", write_sources(folder, tiny_checkpoint), timeout=900)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


def test_rows_are_drawn_by_weight_and_scored_by_the_rewards_of_their_source(whole: Path) -> None:
    """The rewards of the run assert that they are asked for rows of their own source alone."""
    drawn = [group for groups in samples(whole / "run").values() for group in groups]
    counts = Counter(group["source"] for group in drawn)
    for name, share in SHARES.items():
        assert abs(counts[name] - share * len(drawn)) < 1, counts

    of_source = {"scenes": ("luck", 1.0), "words": ("few", 0.5)}
    for group in drawn:
        function, weight = of_source[group["source"]]
        assert group["prompt"].count("Answer with a letter.") == (group["source"] == "words")
        for completion in group["completions"]:
            (name,) = [key for key in completion if key.startswith("reward/")]
            assert name.endswith(f":{function}")
            assert completion["reward"] == pytest.approx(weight * completion[name])


def test_metrics_of_each_source_are_those_of_its_groups(whole: Path) -> None:
    steps = samples(whole / "run")
    rows = [row for row in metrics(whole / "run") if row["kind"] == "train"]
    assert len(rows) == len(steps) == 3
    for row, groups in zip(rows, steps.values(), strict=True):
        assert {name.split("/")[1] for name in row if name.startswith("source/")} == {
            group["source"] for group in groups
        }
        for source in {group["source"] for group in groups}:
            own = [group for group in groups if group["source"] == source]
            answers = [answer for group in own for answer in group["completions"]]
            full = [
                answer for answer in answers
                if any(v >= 1.0 for k, v in answer.items() if k.startswith("reward/"))
            ]  # fmt: skip
            unequal = [len({a["reward"] for a in group["completions"]}) > 1 for group in own]
            expected = {
                "reward": sum(answer["reward"] for answer in answers) / len(answers),
                "accuracy": len(full) / len(answers),
                "valid_share": sum(unequal) / len(own),
                "length": sum(answer["tokens"] for answer in answers) / len(answers),
            }
            found = {name: row[f"source/{source}/{name}"] for name in expected}
            assert found == pytest.approx(expected)

            # the mean of a function is over the answers that it was asked about
            (function,) = {k for answer in answers for k in answer if k.startswith("reward/")}
            values = [answer[function] for answer in answers]
            assert row[function] == pytest.approx(sum(values) / len(values))


def test_the_plan_has_a_table_of_sources(whole: Path) -> None:
    printed = " ".join((whole / "stdout.txt").read_text().split())
    assert "source rows share of draws epochs rewards path" in printed
    assert "scenes 12 75.0 % 0.75" in printed
    assert "words 5 25.0 % 0.60" in printed


def test_killed_and_resumed_is_never_stopped(
    whole: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_sources(tmp_path, tiny_checkpoint)
    kill_after(config, 1)
    result = gpg_vl("train", config, "--resume", timeout=900)
    assert result.returncode == 0, result.stderr
    assert comparable(tmp_path / "run") == comparable(whole / "run")
    assert equal(
        weights(last_checkpoint(tmp_path / "run")), weights(last_checkpoint(whole / "run"))
    )


def test_two_processes_draw_what_one_does_killed_and_resumed_too(
    whole: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_sources(tmp_path, tiny_checkpoint)
    kill_after(config, 1, processes=2)
    result = gpg_vl("train", config, "--resume", processes=2, timeout=900)
    assert result.returncode == 0, result.stderr

    # process 0 dumps its own groups, the first half of each round: what the order has at their positions
    source = make_source(prepare(load_config(config), processes=2, console=None))
    rows = comparable(tmp_path / "run")
    starts = [0, *(row["position"] for row in rows)]
    for start, groups in zip(starts, samples(tmp_path / "run").values(), strict=False):
        expected = [source.group_at(start + place).example for place in range(2)]
        assert [(g["source"], g["id"]) for g in groups[:2]] == [(e.source, e.id) for e in expected]

    # the weights of later steps differ by rounding, and answers with them
    one, two = comparable(whole / "run")[0], rows[0]
    assert (one["position"], one["rounds"]) == (two["position"], two["rounds"])
    for name in (name for name in one if name.startswith("source/")):
        assert two[name] == pytest.approx(one[name]), name


# ---- prepared in this process


def prepared(folder: Path, checkpoint: Path, *overrides: str, **sections: Any) -> Prepared:
    config = load_config(write_sources(folder, checkpoint, **sections), overrides)
    return prepare(config, processes=1, console=None)


def test_one_source_is_the_run_on_it_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same rows in the same order as the same prompts; only the name is new."""
    data = {"columns": {"id": "idx", "prompt": "prompt", "images": "image"}}
    path = str(tmp_path / "train.parquet")
    alone = prepared(tmp_path, tiny_checkpoint, data={**data, "train": path})
    listed = prepared(
        tmp_path,
        tiny_checkpoint,
        f"data.sources=[{{path: {path}, name: scenes, columns: {{id: idx, prompt: prompt, images: image}}}}]",
        "data.train=null",
        "data.columns={}",
        data={**data, "train": path},
    )
    assert alone.rows == listed.rows
    assert alone.plan.steps == listed.plan.steps
    for draw in (0, 5, 11, 12, 25):
        one, other = make_source(alone).group_at(draw), make_source(listed).group_at(draw)
        assert replace(other.example, source="") == one.example
        assert other.example.source == "scenes"
        assert other.prompt.input_ids_T.equal(one.prompt.input_ids_T)
        assert (other.prompt.text, other.draw) == (one.prompt.text, one.draw)


def test_without_weights_rows_are_drawn_equally_often(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tree = yaml.safe_load(write_sources(tmp_path, tiny_checkpoint).read_text())
    for source in tree["data"]["sources"]:
        del source["weight"]
    ready = prepare(parse_config(tree, "run.yaml"), processes=1, console=None)
    source = make_source(ready)
    drawn = Counter((g.example.source, g.example.id) for g in map(source.group_at, range(34)))
    assert len(drawn) == 17
    assert set(drawn.values()) == {2}
    assert [share.share for share in ready.plan.shares] == [12 / 17, 5 / 17]


def test_rows_of_several_sources_are_drawn_in_the_order_of_a_file(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    order = tmp_path / "order.txt"
    listed = [("words", "3"), ("scenes", "11"), ("words", "0"), ("words", "1")]
    order.write_text("".join(f"{source}/{name}\n" for source, name in listed))
    file = write_sources(tmp_path, tiny_checkpoint)
    tree = yaml.safe_load(file.read_text())
    tree["data"] |= {"order": str(order)}
    for source in tree["data"]["sources"]:
        del source["weight"]
    ready = prepare(parse_config(tree, "run.yaml"), processes=1, console=None)
    drawn = [make_source(ready).group_at(draw).example for draw in range(6)]
    assert [(one.source, one.id) for one in drawn] == listed + listed[:2]
    assert [share.share for share in ready.plan.shares] == [0.25, 0.75]
    assert ready.plan.left_out == SCENES + WORDS - 4


def test_an_order_of_one_set(tiny_checkpoint: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text("[7, 2, 9]")
    data = {
        "train": str(tmp_path / "train.parquet"),
        "columns": {"id": "idx", "prompt": "prompt", "images": "image"},
        "order": str(order),
    }
    ready = prepared(tmp_path, tiny_checkpoint, data=data)
    source = make_source(ready)
    expected = [ready.examples[number].id for number in (7, 2, 9, 7, 2)]
    assert [source.group_at(draw).example.id for draw in range(5)] == expected
    assert (ready.plan.left_out, ready.plan.epochs) == (9, 3 * 4 / 3)

    printed = StringIO()
    render_plan(ready.plan, ready.config, Console(width=400, file=printed))
    text = " ".join(printed.getvalue().split())
    assert (
        f"4.00 epochs of 3 examples, in the order of {order}, each epoch alike; 9 rows are" in text
    )

    # the file is a part of what the run is
    before = make_identity(ready.config, ready.algorithm, ready.rows, 3).to_json()
    refuse_other_identity(before, _identify(ready), tmp_path / "step-1")
    order.write_text("[7, 9, 2]")
    with pytest.raises(UserError, match=r"order\.json lists different rows now"):
        refuse_other_identity(before, _identify(ready), tmp_path / "step-1")


def _identify(ready: Prepared) -> Identity:
    return make_identity(ready.config, ready.algorithm, ready.rows, 3)


def test_a_run_of_an_earlier_version_has_no_order(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = {
        "train": str(tmp_path / "train.parquet"),
        "columns": {"id": "idx", "prompt": "prompt", "images": "image"},
    }
    ready = prepared(tmp_path, tiny_checkpoint, data=data)
    before = json.loads(json.dumps(_identify(ready).to_json()))
    del before["order"], before["settings"]["data"]["order"], before["settings"]["data"]["sources"]
    refuse_other_identity(before, _identify(ready), tmp_path / "step-1")


def test_what_is_wrong_with_any_source_is_said_with_its_name(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A reward is proved on the rows of its own source: `choice` cannot mark words, which have no options."""
    overrides = ["data.sources.1.rewards={choice: 1}"]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, tiny_checkpoint, *overrides)
    assert str(caught.value).startswith("words: ")
    assert "scenes" not in str(caught.value)

    (tmp_path / "words.jsonl").write_text('{"id": "0", "prompt": "What?", "answer": "A"}\n')
    both = ["data.sources.0.path=nowhere.parquet", *overrides]
    config = load_config(tmp_path / "config.yaml", both)
    with pytest.raises(UserError) as caught:
        prepare(config, processes=1, console=None)
    assert "\nwords: " in str(caught.value), "both are said at once"
    assert str(caught.value).startswith("scenes: ")


# ---- rewards by source


def test_a_reward_is_called_for_rows_of_its_source_alone(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    luck, few = f"{file}:luck", f"{file}:few"

    def group(source: str, text: str) -> Group:
        example = Example(id="0", prompt="q", answer="a", source=source)
        completions = (Completion(text=text), Completion(text=text + "!"))
        return Group(example=example, prompt=None, completions=completions)  # type: ignore[arg-type]

    groups = [group(("scenes", "words")[n % 2], "x" * n) for n in range(9)]
    sources = {
        "scenes": SourceRewards(weights={luck: 2.0}),
        "words": SourceRewards(weights={few: 0.5}),
    }
    with RewardPool({luck: 2.0, few: 0.5}, workers=2, sources=sources) as pool:
        scored = pool.score(groups)
    assert scored.failures == []
    assert [one.example for one in scored.groups] == [one.example for one in groups]
    for number, one in enumerate(scored.groups):
        name, kinds, weight = (few, 2, 0.5) if number % 2 else (luck, 5, 2.0)
        sums = [ord("x") * number, ord("x") * number + ord("!")]
        assert one.reward_parts == {name: tuple(s % kinds / (kinds - 1) for s in sums)}
        assert one.rewards == tuple(weight * value for value in one.reward_parts[name])


def test_a_reward_that_breaks_names_the_source(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    few = f"{file}:few"
    example = Example(id="0", prompt="q", answer="a", source="scenes")
    group = Group(example=example, prompt=None, completions=(Completion(text="x"),))  # type: ignore[arg-type]
    with RewardPool(
        {few: 1.0}, workers=1, sources={"scenes": SourceRewards(weights={few: 1.0})}
    ) as pool:
        (failure,) = pool.score([group]).failures
    assert "of example '0' of scenes" in str(failure)
