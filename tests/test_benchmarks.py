"""The programs of benchmarks/ run, count what they compute, and say the truth about it. Small models, one step."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import environment

from benchmarks import exactness, gpu, growth
from benchmarks.exactness import Finding
from benchmarks.gpu import PEAK, grid, utilisation
from benchmarks.step import Case, Timing, as_row


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=Path(__file__).parent.parent,
        timeout=300,
        check=False,
    )


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
    findings = [finding(), finding(error=9e-6, images=2), finding(error=2e-5, what="v")]
    assert [f.passed for f in findings] == [True, True, False]
    assert [f.error for f in exactness.worst(findings)] == [9e-6, 2e-5]
    lines = exactness.markdown(findings).splitlines()
    assert lines[2].endswith("| ok |")
    assert lines[3].endswith("| MISSED |")
    assert finding(error=0.0, gate=0.0).passed
    assert not finding(error=1e-9, gate=0.0).passed


def test_one_case_of_exactness_passes_its_gates(tmp_path: Path) -> None:
    folder = exactness.checkpoint(tmp_path / "tiny", "qwen2_vl")
    found = exactness.gradients(folder, "qwen2_vl", torch.float64, 2, 1)
    assert len(found) == 2 * len(exactness.WAYS)
    assert all(f.passed for f in found), [f for f in found if not f.passed]
    assert max(f.error for f in found) > 0, (
        "errors of exactly zero would mean that something was compared with itself"
    )
