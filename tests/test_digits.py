"""Real handwritten digits with the quickstart's model: the commands of configs/digits.yaml, with few steps."""

import json
from pathlib import Path

import pytest
from runs import gpg_vl, metrics, run_python

ROOT = Path(__file__).parent.parent


def python(*arguments: object) -> str:
    """What `python ARGUMENTS` prints, started in the project's folder."""
    result = run_python(*arguments, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_digits_are_made_trained_on_and_evaluated_by_the_documented_commands(
    tmp_path: Path,
) -> None:
    """From four per digit to a score: groups of the base model carry a signal, and the weights are others afterwards."""
    base = tmp_path / "quickstart" / "base"
    prepared = gpg_vl(
        "quickstart", "--prepare-only", "--folder", base.parent, "--train-rows", "4", "--test-rows", "4"
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    data, run = tmp_path / "data", tmp_path / "run"
    python(
        ROOT / "data_recipes" / "digits.py",
        "--prompt",
        "plain",
        "--scale",
        21,
        "--shots",
        4,
        "--out",
        data,
    )
    trained = gpg_vl(
        "train", ROOT / "configs" / "digits.yaml", f"model.path={base}", f"data.train={data / 'train'}",
        f"output.folder={run}", "train.steps=2", "train.prompts_per_step=8",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "40 rows" in trained.stdout
    steps = [row for row in metrics(run) if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["valid_share"] > 0 for row in steps), (
        "no group of the base model carries a signal"
    )
    model = run / "checkpoints" / "step-000002" / "model"
    assert (model / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    python(
        "-m", "gpg_vl.eval", "digits", "--model", model, "--data", data, "--max-new-tokens", 2, "--limit", 40,
        "--output", tmp_path / "eval",
    )  # fmt: skip
    scored = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]["digits"]
    low, high = scored["acc_micro_ci95,strict"]
    assert scored["n"] == 40
    assert 0 <= low <= scored["acc_micro,strict"] <= high <= 1
    assert scored["chance_micro"] == pytest.approx(0.1)
