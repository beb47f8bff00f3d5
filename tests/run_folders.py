"""Run folders written by hand, as a run leaves them: for the tests of what reads them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

CONFIG = """
model: {path: my/base}
data: {train: my/train.parquet}
rewards: {weights: {choice: 1.0}}
train: {seed: 7, learning_rate: 0.0003}
"""


def step(number: int, **values: Any) -> dict[str, Any]:
    """A row of metrics.jsonl for a training step."""
    row = {"reward": number / 7, "reward/choice": 0.25, "valid_share": 0.5, "alpha": 2.0}
    row |= {"logp_gap_mean": 1e-7, "grad_norm": None, "seconds": {"step": 1.5, "train": 0.5}}
    return {"step": number, "kind": "train", **row, **values}


def evaluation(number: int, value: float, **values: Any) -> dict[str, Any]:
    """A row of metrics.jsonl for an evaluation, blank pictures included."""
    beside = {"ci95": {"official": [value - 0.1, value + 0.1]}, "chance": {"official": 0.4375}}
    row = {"official": value, "blank_official": 0.42, "answered": 1.0, "rows": 4, **beside}
    return {"step": number, "kind": "eval", **row, "seconds": {"eval": 2.0}, **values}


def completion(text: str, reward: float, **values: Any) -> dict[str, Any]:
    row = {"text": text, "finish_reason": "stop", "tokens": 3, "reward": reward}
    return {**row, "reward/choice": reward, **values}


def group(**values: Any) -> dict[str, Any]:
    """A row of samples.jsonl: four answers, one of them right."""
    row = {
        "id": "17",
        "task": "Count",
        "prompt": "<image>How many balls?",
        "images": ["0-0.png"],
        "answer": "(B)",
        "choices": ["three", "four"],
        "completions": [
            completion("(B)", 1.0),
            completion("(A)", 0.0),
            completion("none of this", 0.0, finish_reason="length"),
            completion("<answer>three</answer>", 0.0),
        ],
    }
    return {**row, **values}


def held_out(doc_id: int, right: bool, **values: Any) -> dict[str, Any]:
    """A row of evaluations/step-N.jsonl."""
    row = {"doc_id": doc_id, "task": "Count", "question": f"Question {doc_id}?", "gold": "(B)"}
    row |= {"images": [], "response": "(B)" if right else "(A)", "parsed": "B" if right else "A"}
    return {**row, "note": "", "score": float(right), "right": right, **values}


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def write_run(
    folder: Path,
    *,
    metrics: Iterable[Mapping[str, Any]] | None = None,
    samples: Mapping[int, Iterable[Mapping[str, Any]]] | None = None,
    evaluations: Mapping[int, Iterable[Mapping[str, Any]]] | None = None,
) -> Path:
    """A complete small run, but for what is given otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    launch = {"command": ["gpg-vl", "train", "my.yaml"], "versions": {"torch": "2.13.0"}}
    launch |= {"host": "workstation", "started": "2026-01-02T03:04:05+00:00", "ended": None}
    (folder / "run.json").write_text(json.dumps({"launches": [launch]}))
    if metrics is None:
        steps = [step(number) for number in range(1, 5)]
        metrics = [evaluation(0, 0.45), *steps, evaluation(4, 0.75)]
    write_lines(folder / "metrics.jsonl", metrics)

    for number, rows in ({1: [group()], 4: [group()]} if samples is None else samples).items():
        place = folder / "samples" / f"step-{number:06d}"
        write_lines(place / "samples.jsonl", rows)
        Image.new("RGB", (40, 30), (200, 20, 20)).save(place / "0-0.png")

    if evaluations is None:
        before, after = (False, True, False, True), (True, False, False, True)
        evaluations = {
            0: [held_out(doc, right) for doc, right in enumerate(before)],
            4: [held_out(doc, right, blank_right=False) for doc, right in enumerate(after)],
        }
    for number, rows in evaluations.items():
        write_lines(folder / "evaluations" / f"step-{number:06d}.jsonl", rows)
    return folder
