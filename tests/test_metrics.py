"""The numbers of a step that are made of its groups: hand-computed for a few of them."""

import types
from dataclasses import replace

import pytest

from gpg_vl.training.collect import Collection
from gpg_vl.training.metrics import MOST_TASKS, collection_metrics, count_collection
from gpg_vl.types import Completion, Example, GreedyAnswer, Group


def a_group(task: str, *rewards: float) -> Group:
    completion = Completion(token_ids=(1,), logprobs=(), text="x", finish_reason="stop")
    return Group(
        example=Example(id="1", prompt="?", answer="x", task=task),
        prompt=types.SimpleNamespace(),  # type: ignore[arg-type]  # no metric looks at it
        completions=(completion,) * len(rewards),
        rewards=rewards,
        reward_parts={"choice": rewards},
    )


def metrics_of(*groups: Group) -> dict[str, object]:
    collection = Collection(
        used=groups,
        carry=(),
        seen=groups,
        position=0,
        rounds=1,
        cap_hit=False,
        failures=(),
        seconds={},
    )
    return collection_metrics(count_collection(collection, version=0), collection, rounds=1)


def test_each_task_has_the_mean_reward_of_its_answers() -> None:
    found = metrics_of(
        a_group("Count", 1.0, 0.0), a_group("a/b", 0.5, 0.5), a_group("Count", 0.0, 0.0)
    )
    assert found["reward_by_task"] == {"Count": pytest.approx(0.25), "a/b": pytest.approx(0.5)}
    assert found["reward"] == pytest.approx(2 / 6)


def test_rows_without_a_task_or_with_one_each_have_none() -> None:
    assert "reward_by_task" not in metrics_of(a_group("", 1.0, 0.0))
    many = [a_group(str(number), 1.0, 0.0) for number in range(MOST_TASKS + 1)]
    assert "reward_by_task" not in metrics_of(*many)
    assert len(metrics_of(*many[1:])["reward_by_task"]) == MOST_TASKS  # type: ignore[arg-type]


def test_greedy_answers_have_numbers_of_their_own() -> None:
    """By hand, 1.2 and right, 0.2 and wrong; nothing else of the step counts them."""
    groups = (a_group("", 1.0, 0.0), a_group("", 0.5, 0.5))
    plain = metrics_of(*groups)
    assert "greedy_reward" not in plain
    completion = groups[0].completions[0]
    answers = (
        GreedyAnswer(completion=completion, reward=1.2, reward_parts={"choice": 1.0, "f": 1.0}),
        GreedyAnswer(completion=completion, reward=0.2, reward_parts={"choice": 0.0, "f": 1.0}),
    )
    both = [replace(group, greedy=one) for group, one in zip(groups, answers, strict=True)]
    found = metrics_of(*both)
    assert found.pop("greedy_reward") == pytest.approx(0.7)
    assert found.pop("greedy_accuracy") == 0.5
    # 0.5 and 0.5 are not what the greedy answer got, so that group has a signal too
    assert (found.pop("valid_share"), plain.pop("valid_share")) == (1.0, 0.5)
    assert (found.pop("all_wrong_share"), plain.pop("all_wrong_share")) == (0.0, 0.5)
    assert found == plain


def of_source(source: str, reward: str, tokens: int, *rewards: float) -> Group:
    group = a_group("", *rewards)
    answers = [replace(one, token_ids=(1,) * tokens) for one in group.completions]
    return replace(
        group,
        example=replace(group.example, source=source),
        completions=tuple(answers),
        reward_parts={reward: tuple(2 * value for value in rewards)},
    )


def test_each_source_has_the_metrics_of_its_own_groups() -> None:
    """Two groups of one source and one of another, of other rewards, lengths and sizes."""
    found = metrics_of(
        of_source("a", "choice", 3, 0.5, 0.0),
        of_source("b", "math", 4, 0.5, 0.5, 0.25),
        of_source("a", "choice", 1, 0.5, 0.5),
    )
    of_sources = {name: value for name, value in found.items() if name.startswith("source/")}
    assert of_sources == {
        "source/a/reward": pytest.approx(1.5 / 4),
        "source/a/accuracy": pytest.approx(3 / 4),
        "source/a/valid_share": pytest.approx(1 / 2),
        "source/a/length": pytest.approx(2.0),
        "source/b/reward": pytest.approx(1.25 / 3),
        "source/b/accuracy": pytest.approx(2 / 3),
        "source/b/valid_share": pytest.approx(1.0),
        "source/b/length": pytest.approx(4.0),
    }
    assert found["reward/choice"] == pytest.approx(3.0 / 4), "of the answers that it has scored"
    assert found["reward/math"] == pytest.approx(2.5 / 3)


def test_a_run_on_one_set_has_no_metrics_of_sources() -> None:
    assert not [name for name in metrics_of(a_group("", 1.0, 0.0)) if name.startswith("source/")]
