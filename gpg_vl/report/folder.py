"""Reads a run folder into one record: everything that can be read, and messages about what cannot."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpg_vl.errors import UserError
from gpg_vl.report.curves import Metrics, read_metrics
from gpg_vl.report.evaluations import Changed, compare, evaluation_files
from gpg_vl.report.groups import Samples, read_samples

MOST_BYTES = 4 << 20
"""Size limit of config.yaml and run.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The contents of a run folder.

    Example: `read_run(Path("runs/quickstart/run")).metrics.train.rows == 300`
    """

    folder: Path
    config: Mapping[str, Mapping[str, Any]]
    """config.yaml by section and key; {} if there is none."""
    launches: tuple[Mapping[str, Any], ...]
    """run.json: one for the start, and one for each time that the run was resumed."""
    metrics: Metrics
    samples: Samples
    evaluations: Mapping[int, Path]
    """The file of each evaluation by step."""
    changed: Changed | None
    """The first evaluation next to the last; None without two of them."""
    missing: tuple[str, ...] = field(default_factory=tuple)
    """Messages about what is missing in the folder or cannot be read."""


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError if there is no such folder, or if it has no files of a run."""
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Give the run folder, which output.folder of the run's config names."
        )
    try:
        return _read_run(folder)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be read: {error}. Check its permissions and its disk."
        ) from None


def _read_run(folder: Path) -> Run:
    missing: list[str] = []
    config = _read_config(folder / "config.yaml", missing)
    launches = _read_launches(folder / "run.json", missing)
    metrics = read_metrics(folder / "metrics.jsonl")
    samples = read_samples(folder / "samples")
    evaluations = _of_this_run(evaluation_files(folder / "evaluations"), metrics)
    if not config and not launches and not metrics.train.rows and not samples.groups:
        raise UserError(
            f"The folder {folder} holds no run: neither config.yaml nor metrics.jsonl nor samples/. Give the folder that "
            f"output.folder of the run's config names; of a quickstart it is the folder `run` inside."
        )

    ends = sorted(evaluations)
    changed = None
    if len(ends) > 1:
        changed = compare((ends[0], evaluations[ends[0]]), (ends[-1], evaluations[ends[-1]]))
    missing += _list_missing(metrics, samples, evaluations)
    return Run(
        folder=folder,
        config=config,
        launches=launches,
        metrics=metrics,
        samples=samples,
        evaluations=evaluations,
        changed=changed,
        missing=tuple(missing),
    )


def _of_this_run(files: Mapping[int, Path], metrics: Metrics) -> dict[int, Path]:
    """Without evaluations of later steps than the run has: it was resumed before them, and will make them again."""
    last = max((*metrics.train.steps[-1:], *metrics.eval.steps[-1:]), default=None)
    return {step: file for step, file in files.items() if last is None or step <= last}


def _list_missing(metrics: Metrics, samples: Samples, evaluations: Mapping[int, Path]) -> list[str]:
    messages = []
    if not metrics.train.rows:
        messages.append("There is no training step in metrics.jsonl yet, so there are no curves.")
    if metrics.unread:
        messages.append(f"{metrics.unread} line(s) of metrics.jsonl hold no row of a run.")
    if not samples.steps:
        messages.append("There are no samples: output.samples_every is 0, or no step is done yet.")
    if samples.unread:
        messages.append(f"{samples.unread} line(s) of samples/ hold no group.")
    if not metrics.eval.rows:
        messages.append(
            "There is no evaluation in metrics.jsonl: eval.task is not set, or none is due yet."
        )
    elif len(evaluations) < 2:
        messages.append(
            "The answers of two evaluations are needed to show before and after; set eval.at_start to have one "
            "before the first step. Runs of older versions kept none."
        )
    return messages


def _read_config(file: Path, missing: list[str]) -> dict[str, dict[str, Any]]:
    text = _read_text(file)
    if text is None:
        missing.append("There is no config.yaml that can be read: what was trained is not known.")
        return {}
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        tree = None
    if not isinstance(tree, dict):
        missing.append("config.yaml is no YAML: what was trained is not known.")
        return {}
    return {
        str(section): {str(key): value for key, value in keys.items()}
        for section, keys in tree.items()
        if isinstance(keys, dict)
    }


def _read_launches(file: Path, missing: list[str]) -> tuple[dict[str, Any], ...]:
    text = _read_text(file)
    if text is None:
        missing.append(
            "There is no run.json that can be read: command, versions, host and times are not known."
        )
        return ()
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    launches = tree.get("launches") if isinstance(tree, dict) else None
    if not isinstance(launches, list):
        missing.append("run.json holds no list of launches: command and times are not known.")
        return ()
    return tuple(one for one in launches if isinstance(one, dict))


def _read_text(file: Path) -> str | None:
    """The text of a small file, None if it is not there, too long, or no UTF-8."""
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
