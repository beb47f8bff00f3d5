"""The study of algorithms and the time to accuracy: what is run, what is counted, and what is said about it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import comparison, comparison_results, time_to_accuracy
from benchmarks.comparison import answers_until, budget_reached, missing, read_outcome, write_config
from benchmarks.comparison_results import (
    Interval,
    Outcome,
    best_rates,
    claims,
    difference,
    interval,
    judge,
    read_outcomes,
    render,
    write_outcomes,
)
from benchmarks.comparison_settings import (
    ABLATION,
    ALGORITHMS,
    DEFAULT_RATE,
    DIGITS,
    RATES,
    SCENES,
    Run,
    Setting,
    plan,
)
from benchmarks.cpu_seconds import run_metered
from gpg_vl.config import load_config

GPG = ALGORITHMS[0]


def outcome(right: str, curve: tuple[tuple[int, float, float], ...] = ((0, 0.0, 50.0),)) -> Outcome:
    return Outcome(
        right=right,
        curve=curve,
        steps=10,
        answers=1000,
        cpu_seconds=20,
        peak_mb=500,
        minutes=2.0,
    )


# ---- what is run


@pytest.mark.parametrize("setting", [*ALGORITHMS, *ABLATION], ids=lambda s: s.name)
def test_every_setting_is_a_config_of_equally_many_answers(
    setting: Setting, tmp_path: Path
) -> None:
    run = Run(stage="x", task=SCENES, setting=setting, rate=3e-4, seed=3)
    data = {"base": tmp_path / "base", SCENES.name: tmp_path / "scenes"}
    config = load_config(write_config(run, data, tmp_path / "run", 25_600))
    assert config.train.prompts_per_step * config.rollout.group_size == 256
    assert config.train.steps == 100
    assert (config.train.seed, config.train.learning_rate) == (3, 3e-4)
    assert config.train.schedule == "constant"


def test_no_run_is_made_twice_and_what_is_kept_is_not_made_again() -> None:
    runs = list(missing({}))
    assert len({run.key for run in runs}) == len(runs)
    first = runs[0]
    left = list(missing({first.key: outcome("1")}))
    assert first.key not in {run.key for run in left}
    assert len(left) == len(runs) - 1


def test_more_seeds_are_made_at_the_rate_that_was_best() -> None:
    at_eight = {
        run.rate
        for run in plan({"rloo": 1e-3})
        if run.setting.name == "rloo" and run.seed == 7 and run.task is DIGITS
    }
    assert at_eight == {1e-3}


def test_what_is_sampled_again_and_greedy_answers_count() -> None:
    """By hand: 2 groups of 8, then an evaluation, then 5 groups; ReMax adds an answer to each of the 7."""
    rows = [
        {"kind": "train", "groups_seen": 2},
        {"kind": "eval"},
        {"kind": "train", "groups_seen": 5},
    ]
    assert answers_until(rows, GPG) == [16, 16, 56]
    remax = next(s for s in ALGORITHMS if s.name == "remax")
    assert answers_until(rows, remax) == [18, 18, 63]
    lines = [json.dumps(row) for row in rows]
    assert budget_reached(GPG, 56)(lines)
    assert not budget_reached(GPG, 57)(lines)
    sft = next(s for s in ALGORITHMS if s.name == "sft")
    assert not budget_reached(sft, 1)(lines), "it samples nothing"


def test_seconds_are_those_of_steps_and_accuracies_those_of_their_answers(tmp_path: Path) -> None:
    """By hand: steps end at 10, 12 and 19 seconds, of which 12 to 16 are an evaluation; the first begins before the clock."""
    rows = [
        {"kind": "train", "groups_seen": 2},
        {"kind": "train", "groups_seen": 2},
        {"kind": "eval", "micro": 0.25},
        {"kind": "train", "groups_seen": 2},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"scores": {"strict": {"score": score}}} for score in (1, 0.5, 0)]
    (tmp_path / "samples_x.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    metered = comparison.Metered(
        marks=(10.0, 12.0, 16.0, 19.0), seconds=60.0, peak_bytes=5_000_000, largest_bytes=1
    )
    run = Run(stage="x", task=SCENES, setting=GPG, rate=3e-4, seed=0)
    found = read_outcome(run, metrics, metered, tmp_path)
    assert found.cpu_seconds == 5.0
    assert found.curve == ((32, 2.0, 25.0),)
    assert (found.right, found.answers, found.steps) == ("100", 48, 3)
    assert (found.peak_mb, found.minutes) == (5, 1.0)


# ---- what is counted


def test_cpu_seconds_stand_still_while_a_program_sleeps(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    program = (
        "import time, sys\n"
        f"stream = open({str(file)!r}, 'w')\n"
        "def line(): stream.write('x\\n'); stream.flush()\n"
        "line(); time.sleep(1.0); line()\n"
        "while time.process_time() < 1.0: pass\n"
        "line()\n"
    )
    found = run_metered([sys.executable, "-c", program], file)
    first, second, third = found.marks
    assert second - first < 0.2
    assert third - second > 0.5
    assert found.seconds >= third
    assert found.largest_bytes == found.peak_bytes > 5_000_000


def test_a_program_that_did_enough_is_told_to_stop(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"stream = open({str(file)!r}, 'w')\n"
        "while True: stream.write('x\\n'); stream.flush(); time.sleep(0.1)\n"
    )
    found = run_metered([sys.executable, "-c", program], file, enough=lambda lines: len(lines) >= 3)
    assert len(found.marks) >= 3


def test_a_program_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(comparison.subprocess.CalledProcessError):
        run_metered([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "none")


# ---- intervals


def test_an_interval_is_that_of_an_explicit_bootstrap() -> None:
    """An independent one, with loops: seeds and rows are drawn anew, each with replacement."""
    rng = np.random.default_rng(7)
    rights = (rng.random((4, 60)) < 0.6).astype(float)
    means = []
    for _ in range(4000):
        seeds, rows = rng.integers(0, 4, 4), rng.integers(0, 60, 60)
        means.append(100 * rights[seeds][:, rows].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    found = interval(rights)
    assert found.value == pytest.approx(100 * rights.mean())
    assert found.low == pytest.approx(low, abs=1.0)
    assert found.high == pytest.approx(high, abs=1.0)


def test_a_difference_is_of_the_seeds_that_both_have() -> None:
    mine = {0: outcome("1111"), 5: outcome("0000")}
    other = {0: outcome("0011"), 1: outcome("1111")}
    found = difference(mine, other)
    assert found is not None
    assert found.value == 50.0
    assert difference(mine, {9: outcome("1111")}) is None


def test_a_claim_is_judged_by_its_interval() -> None:
    assert judge(Interval(value=3, low=1, high=5)) == "reproduced"
    assert judge(Interval(value=3, low=-1, high=7)) == "cannot be told apart here"
    assert judge(Interval(value=-3, low=-5, high=-1)).startswith("not reproduced")


def test_area_and_price_by_hand() -> None:
    """20 % to 60 % in a straight line, then level for as long: a mean of (40 + 60) / 2."""
    curve = ((0, 0.0, 20.0), (100, 7.0, 60.0), (200, 14.0, 60.0))
    one = outcome("1", curve)
    assert one.area() == pytest.approx(50.0, abs=0.1)
    assert one.until(60) == (100, 7.0)
    assert one.until(61) is None


# ---- what is said


def filled() -> dict[comparison_results.Key, Outcome]:
    """All algorithms at all rates with three seeds: 1e-3 is the best of grpo, and gpg is better than grpo in every row."""
    kept = {}
    for setting in ALGORITHMS:
        for rate in RATES:
            for seed in range(3):
                right = "1" * 30 if setting.name == "gpg" else "1" * 15 + "0" * 15
                if (setting.name, rate) == ("grpo", 1e-3):
                    right = "1" * 20 + "0" * 10
                run = Run(stage="x", task=SCENES, setting=setting, rate=rate, seed=seed)
                kept[run.key] = outcome(right, ((0, 0.0, 50.0), (1000, 9.0, 65.0)))
    return kept


def test_the_best_rate_is_known_when_all_were_tried() -> None:
    kept = filled()
    assert best_rates(kept)["grpo"] == 1e-3
    del kept[("scenes", "grpo", "0.0001", "2")]
    assert "grpo" not in best_rates(kept)


def test_the_document_has_a_row_for_each_setting_and_a_sentence_for_each_claim() -> None:
    kept = filled()
    text = render(kept)
    assert "| grpo | 0.0003 | 3 | 50.0 [" in text
    assert "| grpo | 0.001 | 3 | 66.7 [" in text
    assert "1,000 / 9 s" in text
    assert "0 of 3 seeds" in text, "70 % was not reached"
    said = claims(kept)
    assert any("better than GRPO" in line and "reproduced (50.0 [" in line for line in said)
    assert not any("beta_th" in line for line in said), "its runs are not there"


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = filled()
    write_outcomes(kept, tmp_path)
    assert read_outcomes(tmp_path) == kept
    assert (tmp_path / "comparison.md").read_text() == render(kept)
    assert read_outcomes(tmp_path / "none") == {}


def test_settings_are_compared_at_one_rate() -> None:
    kept = filled()
    worse = {key: replace(o, right="0" * 30) for key, o in kept.items() if key[2] != "0.0003"}
    assert claims({**kept, **worse}) == claims(kept)
    assert f"{DEFAULT_RATE:g}" == "0.0003"


# ---- time to accuracy


def points(*pairs: tuple[float, float]) -> list[Mapping[str, float]]:
    return [
        {"step": 10 * (n + 1), "cpu_seconds": seconds, "accuracy": accuracy}
        for n, (seconds, accuracy) in enumerate(pairs)
    ]


def test_the_time_to_an_accuracy_by_hand() -> None:
    """60 % is reached after 20 and 120 seconds: six times; the steps take 1 and 10 seconds each."""
    found: time_to_accuracy.Found = {
        "gpg_vl": {"0": points((10, 50), (20, 61))},
        "gpg_vl, TRL's loss": {"0": points((10, 50), (20, 60)), "1": points((10, 52), (20, 60))},
        "TRL": {"0": points((20, 51), (120, 60)), "1": points((20, 51), (120, 60))},
    }
    lines = time_to_accuracy.table(found)
    assert "| gpg_vl | 10 [10, 10] |" not in lines[2]
    assert lines[2].startswith(
        "| gpg_vl | 20 [20, 20] | 20 [20, 20] | never | never | 61.0 % | 1.00 |"
    )
    assert lines[4].endswith("| 10.00 | 2 |")
    assert (
        "gpg_vl: 6.0 [6.0, 6.0] to 55 %; 6.0 [6.0, 6.0] to 60 %"
        in time_to_accuracy.ratios(found)[0]
    )
    said = " ".join(time_to_accuracy.per_step(found))
    assert "+0.5, -0.5 points; neither side" in said

    found["TRL"]["1"] = points((20, 53), (120, 60))
    assert "+0.5, +0.5 points; one side is ahead" in " ".join(time_to_accuracy.per_step(found))
