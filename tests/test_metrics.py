"""The numbers of a step that are made of its groups: hand-computed for a few of them."""

import types

import pytest

from gpg_vl.training.collect import Collection
from gpg_vl.training.metrics import MOST_TASKS, collection_metrics, count_collection
from gpg_vl.types import Completion, Example, Group


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
