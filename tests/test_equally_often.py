"""Every process asks its engine equally often, whatever it has to ask: processes may share one, and would wait for ever."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from gpg_vl.eval.generate import BATCHES, engine_responder
from gpg_vl.eval.predictions import Failed
from gpg_vl.eval.settings import settings_for
from gpg_vl.eval.tasks import tasks
from gpg_vl.models.load import load_processing
from gpg_vl.rewards.scoring import Scored
from gpg_vl.rollout.engine import Passes
from gpg_vl.rollout.vllm.tensor_parallel import EngineGroup
from gpg_vl.training import evaluation
from gpg_vl.training.collect import Collector, Quota
from gpg_vl.training.display import Display
from gpg_vl.training.state import RunState
from gpg_vl.types import Completion, Example, Group, Prompt


def examples(number: int) -> list[Example]:
    return [Example(id=str(n), prompt="", answer="") for n in range(number)]


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("number", [0, 1, 3, 8, 9, 16, 17])
def test_processes_of_an_evaluation_ask_in_as_many_batches(
    monkeypatch: pytest.MonkeyPatch, processes: int, number: int
) -> None:
    batch, calls, hands = 4, [0] * processes, [[] for _ in range(processes)]

    def run(index: int) -> list[Any]:
        def responder(given: Sequence[Example]) -> Iterator[Any]:
            calls[index] += 1
            assert len(given) <= batch
            return (example.id for example in given)

        accelerator = SimpleNamespace(num_processes=processes, process_index=index)
        respond = evaluation.share_over_processes(
            responder, accelerator, batch_size=batch, stop_wanted=lambda: False
        )
        return list(respond(examples(number)))

    # first everybody hands in what is its own, then everybody is given what all have handed in
    def keep(accelerator: Any, report: Any) -> list[Any]:
        assert not report.lost
        hands[accelerator.process_index].append(report)
        return [report._replace(answers=["?"] * batch)] * processes

    monkeypatch.setattr(evaluation, "gather", keep)
    for index in range(processes):
        run(index)
    assert len(set(calls)) == 1, calls
    assert sum(len(report.answers) for reports in hands for report in reports) == number

    for index in range(processes):
        rounds = iter(zip(*hands, strict=True))
        monkeypatch.setattr(evaluation, "gather", lambda *_, rounds=rounds: list(next(rounds)))
        assert run(index) == [str(n) for n in range(number)]


@pytest.mark.parametrize("asked_of", [0, 1])
@pytest.mark.parametrize("number,answered", [(8, 8), (9, 8), (20, 8)])
def test_a_wish_to_stop_ends_an_evaluation_after_its_batch_on_all_processes(
    monkeypatch: pytest.MonkeyPatch, asked_of: int, number: int, answered: int
) -> None:
    """Reports of two processes, four examples each at a time. What was the last batch anyway is a whole evaluation."""
    reports = [evaluation._Report(["?"] * 4, None, stop=index == asked_of) for index in (0, 1)]
    monkeypatch.setattr(evaluation, "gather", lambda *_: reports)
    for index in (0, 1):
        accelerator: Any = SimpleNamespace(num_processes=2, process_index=index)
        respond = evaluation.share_over_processes(
            iter, accelerator, batch_size=4, stop_wanted=lambda: True
        )
        found = respond(examples(number))
        assert [next(found) for _ in range(answered)] == ["?"] * answered
        with pytest.raises(StopIteration if number == answered else evaluation._StopError):
            next(found)


class CountingEngine:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, requests: Sequence[Any], sampling: Any) -> list[Any]:
        self.asked.append(len(requests))
        return []


def test_a_batch_with_nothing_to_ask_is_asked(tiny_checkpoint: Path) -> None:
    engine: Any = CountingEngine()
    processing = load_processing(str(tiny_checkpoint))
    respond = engine_responder(
        engine, processing, settings_for(tasks.get("cvbench")(), batch_size=2)
    )
    assert list(respond([])) == []
    assert engine.asked == [0]

    # one more than the engine is asked for at once
    number = 2 * BATCHES + 1
    broken = [replace(example, images=(b"no picture",)) for example in examples(number)]
    assert all(isinstance(answer, Failed) for answer in respond(broken))
    assert engine.asked == [0, 0, 0]


def make_group(draw: int) -> Group:
    prompt = Prompt(
        example_id=str(draw),
        text="",
        input_ids_T=torch.tensor([1]),
        positions_3_T=torch.zeros(3, 1, dtype=torch.long),
        next_position=1,
        image_mask_T=torch.tensor([False]),
    )
    completion = Completion(token_ids=(1,), logprobs=(0.0,), finish_reason="stop", text="")
    return Group(
        example=examples(1)[0],
        prompt=prompt,
        completions=(completion, completion),
        rewards=(0.0, 1.0),
        reward_parts={},
        draw=draw,
    )


def test_a_process_without_room_asks_for_nothing_but_asks() -> None:
    """Its surplus of the last step fills this one."""
    asked = []

    class Asked:
        group_size = 2

        def answer(self, groups: Sequence[Group], progress: Any) -> list[Any]:
            asked.append(len(groups))
            return list(groups)

    source: Any = SimpleNamespace(group_at=make_group, row_at=lambda draw: draw)
    rewarder: Any = SimpleNamespace(score=lambda groups: Scored(groups=list(groups), failures=[]))
    collector = Collector(
        source,
        Asked(),
        rewarder,
        Quota(prompts_per_step=2, beta_th=1.0, max_resample_attempts=3),
        Accelerator(cpu=True),
        drop_broken=False,
        progress=Display(Console(), steps=1, done=0, enabled=False),
    )
    carry = (make_group(0), make_group(1))
    collection = collector.collect(RunState(carry=carry, position=7))
    assert asked == [0]
    assert collection.used == carry
    assert collection.position == 7, "and takes no example from the order"

    collector.collect(RunState(position=7))
    assert asked == [0, 2]


def test_alone_everything_is_ones_own() -> None:
    together = EngineGroup(1)
    assert together.gather([3, 4]) == ([3, 4], slice(0, 2))
    assert together.arguments() == {}


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_a_process_that_breaks_off_still_iterates_the_weights_as_often(
    number: int, stop: int
) -> None:
    """Where a server is lost, or has no room, in the middle of a sync: whole tensors are collectives."""
    seen: list[int] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for place in range(4):
            seen.append(place)
            yield str(place), torch.zeros(1)

    passes = Passes(weights, number)
    if number:
        for place, _ in enumerate(passes()):
            if place == stop:
                break
    passes.finish()
    assert seen == [0, 1, 2, 3] * number
    with pytest.raises(AssertionError, match="not iterate the weights as often"):
        passes()
