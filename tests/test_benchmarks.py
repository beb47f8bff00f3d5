"""The programs of benchmarks/ run, count what they compute, and say the truth about it. Small models, one step."""

import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from runs import run_python

from benchmarks import exactness, few_rows, findings, gpu, growth, losses, memory
from benchmarks.findings import Finding
from benchmarks.gpu import PEAK, grid, utilisation
from benchmarks.step import Case, Timing, as_row
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.config import load_config


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_python("-m", *arguments, cwd=Path(__file__).parent.parent)


def test_the_gpu_benchmark_runs_anywhere_with_the_tiny_model(tmp_path: Path) -> None:
    result = run("benchmarks.gpu", "--model", "tiny", "--quick", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "TRL is not installed here, its rows are left out" in result.stdout
    kept = json.loads((tmp_path / "gpu_tiny.json").read_text())
    assert len(kept["rows"]) == len(grid(quick=True))
    by_way = {
        (r["case"]["vision"], r["case"]["checkpointing"], r["case"]["shared"]): r["timing"]
        for r in kept["rows"]
    }
    for vision in ("frozen", "trained"):
        shared, naive = (by_way[vision, False, s] for s in (True, False))
        assert naive["rollout_patches"] == 4 * shared["rollout_patches"] == 4 * 2 * 64
        assert naive["trained_patches"] == 4 * shared["trained_patches"]
        assert naive["prefilled_tokens"] == 4 * shared["prefilled_tokens"]
        assert naive["decoded_tokens"] == shared["decoded_tokens"] == 2 * 4 * 8
        assert naive["trained_tokens"] - shared["trained_tokens"] == 3 * shared["prefilled_tokens"]
        assert naive["train_operations"] > shared["train_operations"]
        assert 0 < shared["gradient_error"] < 1e-5
        assert naive["gradient_error"] is None
        assert by_way[vision, True, True]["train_operations"] == shared["train_operations"], (
            "recomputing is not work"
        )
    again = run("benchmarks.gpu", "--model", "tiny", "--quick", "--out", tmp_path)
    assert again.returncode == 0
    assert "Case(" not in again.stdout, "rows that are there are not measured again"
    assert json.loads((tmp_path / "gpu_tiny.json").read_text()) == kept


def test_the_benchmark_of_shared_keys_runs_and_counts_their_bytes(tmp_path: Path) -> None:
    """By hand: 6 layers x 2 x 2 heads x 64 numbers of 4 bytes are 6 KiB per token; two answers of 64 tokens to a prompt of 8."""
    result = run("benchmarks.shared_keys", "--quick", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "shared_keys_cpu.json").read_text())["rows"]
    assert row["copied_bytes"] == 6144 * 2 * (8 + 64)
    assert row["shared_bytes"] == 6144 * (8 + 2 * 64)
    assert not row["is_shared"], "too little to save"
    assert row["ratio"] > 0


def test_the_benchmark_of_few_rows_runs_and_takes_turns(tmp_path: Path) -> None:
    result = run("benchmarks.few_rows", "--quick", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "few_rows_cpu.json").read_text())
    assert [one["row"] for one in found["rollouts"]] == ["a", "c"]
    assert all(one["ratio"] > 0 for one in found["rollouts"])
    assert (tmp_path / "few_rows_cpu.md").read_text().count("float32") == len(few_rows.SHAPES)

    order: list[str] = []
    seconds = few_rows.take_turns([lambda: order.append("a"), lambda: order.append("b")], turns=2)
    assert order == ["a", "b"] * 3
    assert [len(way) for way in seconds] == [2, 2]
    assert few_rows.ratio([[4.0, 9.0, 1.0], [2.0, 3.0, 1.0]]) == 2.0


def test_trl_is_measured_at_each_micro_batch_of_each_case() -> None:
    ours, all_of_them = grid(quick=False), grid(quick=False, with_trl=True)
    assert [case for case in all_of_them if not case.micro_batch] == ours
    peers = [case for case in all_of_them if case.micro_batch]
    assert len(peers) == 3 * len([case for case in ours if not case.shared])
    assert all(case.groups * case.group_size % case.micro_batch == 0 for case in peers)


def test_a_row_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> Timing:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fits, other = grid(quick=True)[:2]
    monkeypatch.setattr(gpu, "_timing", full)
    failed = gpu._measured("tiny", other, 1, torch.device("cpu"))
    assert failed == {
        "case": as_row(other, blank())["case"],
        "timing": None,
        "failed": "out of memory",
    }
    console = Console(width=gpu.WIDTH, record=True)
    timing = replace(blank(), train_operations=1e12, train_seconds=1.0, decode_seconds=1.0)
    console.print(gpu.show([failed, as_row(fits, timing)], PEAK))
    assert "out of memory" in console.export_text()


def test_without_a_gpu_the_real_shape_is_refused(tmp_path: Path) -> None:
    result = run("benchmarks.gpu", "--out", tmp_path)
    assert result.returncode == 2
    assert "there is no CUDA device here. Use --model tiny" in result.stderr


def test_growth_measures_both_ways_and_draws_a_picture(tmp_path: Path) -> None:
    one = Case(group_size=2, image_tokens=16, text_tokens=20, completion=4)
    timing = {
        "prefill_seconds": 1.0,
        "decode_seconds": 1.0,
        "train_seconds": 2.0,
        "seconds": 4.0,
        "peak_bytes": 2**20,
    }
    rows = [
        {
            "case": as_row(case, blank())["case"],
            "timing": timing | {"total_operations": 1e9 * case.group_size},
        }
        for case in growth.cases((2, 4), (64, 144))
    ]
    (tmp_path / "growth.json").write_text(json.dumps(rows))
    drawn = run(
        "benchmarks.growth", "--draw", "--out", tmp_path, "--picture", tmp_path / "growth.png"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    measured = {
        s: growth.measure(Case(**(as_row(one, blank())["case"] | {"shared": s})), steps=1, warmup=0)
        for s in (True, False)
    }
    ours, naive = (measured[s]["timing"] for s in (True, False))
    assert naive["trained_patches"] == 2 * ours["trained_patches"] == 2 * 2 * 64
    assert ours["seconds"] > 0


def blank() -> Timing:
    return Timing(**dict.fromkeys(Timing.__dataclass_fields__, 0))


def test_growth_writes_the_ratio_at_each_point_and_plain_numbers_at_the_axes() -> None:
    rows = [
        {
            "case": {"group_size": n, "shared": shared},
            "timing": {"seconds": 3.0 if shared else 1.5 * n},
        }
        for n in (2, 1024)
        for shared in (True, False)
    ]
    panel = Figure().subplots()
    growth._draw_panel(panel, rows, "group_size", growth.QUANTITIES[0])
    assert [text.get_text() for text in panel.texts] == ["1.0x", "512.0x"]
    assert panel.get_title() == "1,024 answers per prompt: 512.0 times less time"
    assert [panel.xaxis.get_major_formatter()(x) for x in panel.get_xticks()] == ["2", "1,024"]
    assert all(line.get_marker() == "o" for line in panel.lines), "nothing but what was measured"


def test_growth_varies_one_thing_at_a_time() -> None:
    points = [
        (c.group_size, c.image_tokens, c.shared)
        for c in growth.cases((2, 4, 8, 16, 32), (64, 256, 1024))
    ]
    assert len(points) == len(set(points)) == 2 * (5 + 3 - 1)
    assert all(g == 8 or i == 256 for g, i, _ in points)


def test_utilisation_counts_shared_operations_only() -> None:
    """Twice the time for the same answers is half the utilisation, whatever was computed meanwhile."""
    shared = {"timing": {"train_operations": 395e12, "train_seconds": 1.0}}
    naive = {"timing": {"train_operations": 2000e12, "train_seconds": 2.0}}
    assert utilisation(shared, shared, PEAK) == pytest.approx(395 / 989)
    assert utilisation(naive, shared, PEAK) == pytest.approx(395 / 989 / 2)


def test_the_cost_of_a_page_is_that_of_a_report_of_its_run() -> None:
    result = run(
        "benchmarks.report_cost", "--steps", "4", "--samples-every", "2", "--held-out", "6"
    )
    assert result.returncode == 0, result.stderr
    held = "4 steps, 2 dumps of 4 groups, 2 evaluations of 6 rows"
    cost = r"[\d.]+ s of CPU, \d+ MB of memory at most, a page of [\d.]+ MB"
    assert re.fullmatch(f"{held}: {cost}", result.stdout.strip()), result.stdout


def test_the_memory_of_a_recipe_is_measured(tmp_path: Path) -> None:
    result = run("benchmarks.recipe_memory", "--rows", "30")
    assert result.returncode == 0, result.stderr
    assert "train: 30 rows with 30 images" in result.stdout
    rows, peak = re.search(
        r"^(\d+) rows, .* (\d+) MB of memory at most", result.stdout, re.MULTILINE
    ).groups()
    assert int(rows) == 30
    assert int(peak) > 20, "a Python that reads Parquet holds more"


def finding(**changed: Any) -> Finding:
    given = {
        "what": "w",
        "family": "f",
        "precision": "float32",
        "group_size": 2,
        "images": 1,
        "error": 1e-6,
        "gate": 1e-5,
    }
    return Finding(**{**given, **changed})


def test_the_table_of_exactness_shows_the_worst_case_and_what_missed_its_gate() -> None:
    found = [finding(), finding(error=9e-6, images=2), finding(error=2e-5, what="v")]
    assert [f.passed for f in found] == [True, True, False]
    assert [f.error for f in findings.worst(found)] == [9e-6, 2e-5]
    lines = findings.markdown(found).splitlines()
    assert lines[2].endswith("| ok |")
    assert lines[3].endswith("| MISSED |")
    assert finding(error=0.0, gate=0.0).passed
    assert not finding(error=1e-9, gate=0.0).passed


def test_the_worst_case_is_the_one_nearest_to_its_gate() -> None:
    """In bfloat16 every case has a gate of its own: 0.9 of a small gate is worse than 0.5 of a large one."""
    near, far = finding(error=9e-4, gate=1e-3), finding(error=5e-3, gate=1e-2)
    assert findings.worst([near, far]) == findings.worst([far, near]) == [near]
    moved, unmoved = finding(error=1e-9, gate=0.0), finding(error=0.0, gate=0.0)
    assert findings.worst([unmoved, moved]) == [moved]


@pytest.fixture(scope="module")
def exact_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exactness.checkpoint(tmp_path_factory.mktemp("exact") / "tiny", "qwen2_vl")


def test_one_case_of_exactness_passes_its_gates(exact_checkpoint: Path) -> None:
    found = exactness.gradients(exact_checkpoint, "qwen2_vl", torch.float64, 2, 1)
    assert len(found) == 2 * len(exactness.WAYS)
    assert all(f.passed for f in found), [f for f in found if not f.passed]
    assert max(f.error for f in found) > 0, (
        "errors of exactly zero would mean that something was compared with itself"
    )


def test_one_case_of_the_losses_passes_its_gates(exact_checkpoint: Path) -> None:
    found = exactness.losses(exact_checkpoint, "qwen2_vl", torch.float64, 2, 1)
    assert len(found) == len(losses.ALGORITHMS) * len(exactness.LOSS_WAYS)
    assert all(0 < f.error <= f.gate for f in found), found


def test_another_loss_misses_its_gate(
    exact_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth less divergence, and clips that are another's, are seen far above the gate."""
    for changed in ({"kl_beta": 0.95 * losses.KL_BETA}, {"clip_low": 0.5}, {"clip_high": 0.7}):
        given = {
            "clip_low": losses.CLIP_LOW,
            "clip_high": losses.CLIP_HIGH,
            "kl_beta": losses.KL_BETA,
        }
        monkeypatch.setattr(exactness, "ALGORITHMS", {"grpo": grpo(**{**given, **changed})})
        found = exactness.losses(exact_checkpoint, "qwen2_vl", torch.float64, 2, 1)
        assert all(f.error > 1000 * f.gate for f in found), (changed, found)


def test_the_head_alone_has_the_gradient_of_each_loss() -> None:
    found = exactness.head_alone()
    assert len(found) == len(losses.LOSSES) * len(exactness.HEAD_TILES)
    assert all(0 < f.error <= f.gate == 1e-12 for f in found), found


def test_the_losses_by_hand() -> None:
    """Two answers, one token and two, rewards 0.25 and 0.875: deviation 0.4419, advantages -+ 0.7069.

    GRPO: the ratio of the first answer, exp(-0.5), is cut at 0.8: gain -0.8 * 0.7069. The second has exp(-0.1), not cut,
    and exp(0.1). k3 of the reference gaps 0.3, -0.3, 0.1 by exp(d) - d - 1.
    """
    logps = [torch.tensor([-1.0]), torch.tensor([-2.0, -0.5])]
    old = [torch.tensor([-0.5]), torch.tensor([-1.9, -0.6])]
    reference = [torch.tensor([-0.7]), torch.tensor([-2.3, -0.4])]
    given = losses.GivenGroup(
        rewards_G=(0.25, 0.875),
        old_G_T=[x.double() for x in old],
        reference_G_T=[x.double() for x in reference],
    )
    advantage = 0.3125 / (0.625 / math.sqrt(2) + 1e-4)
    k3 = {d: math.exp(d) - d - 1 for d in (0.3, -0.3, 0.1)}
    first = 0.8 * -advantage - 0.2 * k3[0.3]
    second = advantage * (math.exp(-0.1) + math.exp(0.1)) / 2 - 0.2 * (k3[-0.3] + k3[0.1]) / 2
    assert float(losses.grpo_loss(logps, given)) == pytest.approx(-(first + second) / 2, rel=1e-6)
    assert float(losses.sft_loss(logps, given)) == pytest.approx(3.5 / 3, rel=1e-6)

    # one ratio for each answer: exp(-0.5), cut, and exp of the mean of -0.1 and 0.1
    expected = -(0.8 * -advantage + 1.0 * advantage) / 2
    assert float(losses.gspo_loss(logps, given)) == pytest.approx(expected, rel=1e-6)


def test_a_group_that_misses_a_branch_is_no_comparison() -> None:
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -0.5])]
    near = [x.double() - 0.1 for x in logps]
    given = losses.GivenGroup(rewards_G=(0.0, 1.0), old_G_T=near, reference_G_T=near)
    with pytest.raises(AssertionError, match="no token with"):
        given.require_every_branch(logps)


# ---- memory


def test_a_row_is_the_process_that_held_most() -> None:
    """By hand: 300 and 60 are predicted of 400 bytes, a tenth too few."""
    found = [
        {"peak": 300.0, "plan": {"weights": 240.0, "activations": 60.0}},
        {"peak": 400.0, "plan": {"weights": 300.0, "activations": 60.0}},
    ]
    row = memory.as_row(memory.Choice(name="two", processes=2), found)
    assert (row["measured"], row["predicted"]) == (400, 360)
    assert row["error"] == pytest.approx(-0.1)
    assert "| two | 2 | 0 | 0 | -10 % |" in memory.as_table([row], "a CPU")


def test_every_measured_choice_is_a_config_that_parses(tmp_path: Path) -> None:
    config = memory.write_config(tmp_path, tiny=True)
    for choice in memory.CHOICES:
        sharding = load_config(config, choice.settings).train.sharding
        assert (sharding == "none") or choice.processes > 1


@pytest.mark.slow
def test_processes_are_measured_beside_the_plan(tmp_path: Path) -> None:
    result = run("benchmarks.memory", "--quick", "--only", "none", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    [row] = json.loads((tmp_path / "memory_cpu.json").read_text())
    assert row["measured"] > row["parts"]["weights"] > 0
    assert "| none | 1 | " in (tmp_path / "memory_cpu.md").read_text()
