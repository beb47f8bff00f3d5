"""What the plan says of the machine: time, disk, what would make a run fit. Sums that can be checked by hand."""

import re
import statistics
from pathlib import Path

import pytest
from runs import gpg_vl, seconds_of_steps, write_config
from test_memory_fit import GB, estimate, make_config

from gpg_vl.config import OutputConfig, load_config
from gpg_vl.models.families import families
from gpg_vl.training.disk import Disk, count_at_once, describe_little_disk, plan_disk
from gpg_vl.training.memory_fit import advise, describe_little_memory, fit_choices
from gpg_vl.training.plan import count_parameters
from gpg_vl.training.plan_table import _duration
from gpg_vl.training.prepare import describe_small_rate
from gpg_vl.training.speed import (
    Pass,
    Speed,
    StepSeconds,
    Work,
    count_decoding,
    estimate_seconds,
)

WORK = Work(
    prefill=4e12,
    train=9e13,
    samples=True,
    answers=6,
    rows=3,
    longest=257,
    context=40,
    together=2,
    micro_batch=Pass(groups=2, members=3, prompt=20, image=4, completion=40),
    trained=10**6,
)


# ---- time


def test_a_step_takes_its_operations_over_those_of_a_second() -> None:
    """4e12 / 2e12 + 2 x 0.05 + (512 - 2) x 0.01 = 7.2; 9e13 / 3e13 + 1e6 / 1e7 = 3.1."""
    speed = Speed(forward=2e12, train=3e13, start=0.05, decode=0.01, update=1e7)
    seconds = estimate_seconds(WORK, speed)
    assert seconds == StepSeconds(answers=pytest.approx(7.2), train=pytest.approx(3.1))
    assert seconds.total == pytest.approx(10.3)


@pytest.mark.parametrize(
    ("answers", "longest", "rows", "expected"),
    [
        (
            64,
            101,
            64,
            (1, 99),
        ),  # all at once; the prompt gives the first token, the start the second
        (256, 101, 128, (2, 198)),  # two rounds
        (200, 101, 128, (2, 155)),  # 20,000 tokens in slots that never wait: 157 calls
        (64, 1, 64, (1, 0)),  # the prompt gives all there is
        (0, 101, 1, (0, 0)),  # nothing is sampled
    ],
)
def test_rows_decide_how_often_a_token_is_decoded(
    answers: int, longest: int, rows: int, expected: tuple[int, int]
) -> None:
    assert count_decoding(answers, longest, rows) == expected


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.034, "0.034 s"), (12.3, "12 s"), (150, "2.5 minutes"), (9000, "2.5 hours")],
)
def test_seconds_are_shown_as_a_person_reads_them(seconds: float, shown: str) -> None:
    assert _duration(seconds) == shown


def _in_seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"s": 1, "minutes": 60, "hours": 3600, "days": 86400}[unit]


def test_the_plan_of_a_run_and_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of the time it is the unit that is tested here, on whatever machine: tests/test_probe.py counts. The disk is exact."""
    file = write_config(tmp_path, tiny_checkpoint)
    done = gpg_vl("train", file)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.replace("│", " ").split())
    [(said, whole)] = re.findall(r"about (\S+ \w+) per step \(.*?\), (\S+ \w+) for 4 steps", words)
    taken = statistics.median(seconds_of_steps(tmp_path / "run"))
    ratio = taken / _in_seconds(said)
    assert 1 / 100 < ratio < 100, f"a step took {taken:.3f} s, {ratio:.1f} times what was estimated"
    assert _in_seconds(whole) == pytest.approx(4 * _in_seconds(said), rel=0.15)

    config, family = load_config(file), families.get("qwen2_vl")
    disk = plan_disk(config, family, count_parameters(config, family), steps=4)
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("step-000004")
    written = [checkpoint / "model" / "model.safetensors", checkpoint / "optimizer.pt"]
    assert disk.checkpoint == pytest.approx(sum(f.stat().st_size for f in written), rel=0.03)
    assert "3 at a time" in words
    assert "times the work without sharing" in words


# ---- disk


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"checkpoint_every": 10}, 3),  # two are kept, and a third is written before one goes
        ({}, 1),  # at the end
        ({"checkpoint_every": 60}, 2),  # after 60 steps and 100
        ({"checkpoint_every": 10, "keep_checkpoints": 5}, 6),
        ({"checkpoint_every": 10, "keep_best": "official"}, 4),
    ],
)
def test_how_many_checkpoints_are_there_at_a_time(keys: dict[str, object], expected: int) -> None:
    assert count_at_once(100, OutputConfig(folder="o", **keys)) == expected


def test_a_disk_that_is_too_small_is_a_warning() -> None:
    """Three of 8 GiB need 24."""
    disk = Disk(folder=Path("runs/a"), checkpoint=8 * GB, at_once=3, free=24 * GB)
    assert describe_little_disk(disk) == ""
    small = Disk(folder=Path("runs/a"), checkpoint=8 * GB, at_once=3, free=23 * GB)
    said = describe_little_disk(small)
    assert (
        "3 of them at a time take 24.0 GiB (8.0 GiB each), and 23.0 GiB are free in runs/a" in said
    )


# ---- memory


def test_switches_that_make_a_run_fit_are_named_the_smallest_change_first() -> None:
    """39.80 GB on 32.5 of 36.1: checkpointing alone makes 30.39 of it, adapters alone 17.67, bfloat16 alone leaves 34.80. Of
    the changes of one key the one that takes least comes first."""
    said = advise(fit_choices(make_config(), estimate, 36.1 * GB), 36.1 * GB)
    assert "takes 39.8 GB of the 32.5 that can be used: too much" in said
    assert said.splitlines()[1:3] == [
        "  model.lora_rank=16   (17.7 GB)",
        "  model.gradient_checkpointing=true   (30.4 GB)",
    ]


def test_a_run_that_fits_is_said_to() -> None:
    said = advise(fit_choices(make_config(), estimate, 80 * GB), 80 * GB)
    assert said == "This config takes 39.8 GB of the 72.0 that can be used: it fits."
    assert "as does every choice above" in advise(fit_choices(make_config(), estimate, GB), GB)


def test_a_machine_without_a_gpu_has_memory_too() -> None:
    assert describe_little_memory(8 * GB, 8 * GB) == ""
    assert "needs about 9.0 GiB of memory, and 8.0 are available" in describe_little_memory(
        9 * GB, 8 * GB
    )


# ---- learning rate


@pytest.mark.parametrize(
    ("rank", "rates", "is_small"),
    [
        (16, {"learning_rate": 1e-6}, True),
        (16, {}, True),  # the default is that of whole weights
        (0, {"learning_rate": 1e-6}, False),
        (16, {"learning_rate": 1e-5}, False),
        (16, {"learning_rate": 1e-6, "learning_rates": {"language": 2e-5}}, False),
    ],
)
def test_a_rate_of_whole_weights_on_adapters_is_a_warning(
    rank: int, rates: dict[str, object], is_small: bool
) -> None:
    said = describe_small_rate(make_config(model={"lora_rank": rank}, train=rates))
    assert bool(said) is is_small
    if is_small:
        assert "train.learning_rate is 1e-06 and model.lora_rank 16" in said
