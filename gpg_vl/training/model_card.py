"""The model card of a checkpoint: README.md in its `model/`, with its base model, data, settings and scores.

Data and settings are those of the checkpoint's manifest. Scores are those of the last evaluation, with their protocol.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpg_vl.models.licence import UNKNOWN

FILE = "README.md"


def make_card(
    *,
    step: int,
    settings: Mapping[str, Any],
    data_digest: str,
    licence: str,
    evaluation: Mapping[str, Any] | None,
    command: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """The card in Markdown, with a YAML header that the hub reads.

    settings: the config as JSON. licence: the licence of the base model. evaluation: a row of metrics.jsonl; None if there
        was none.
    """
    base, algorithm = settings["model"]["path"], settings["algorithm"]["name"]
    header = {"library_name": "transformers", "tags": ["gpg_vl", algorithm]}
    if licence != UNKNOWN:
        header["license"] = licence

    lines = [
        f"# {Path(base).name}, trained with gpg_vl",
        "",
        f"{step} steps of {algorithm} by gpg_vl {versions.get('gpg_vl', UNKNOWN)}.",
        "",
        *_table("What it was made from", _origin(settings, data_digest, licence)),
        *_evaluation(settings, evaluation),
        *_table("Versions", versions),
        "## Again",
        "",
        f"    {' '.join(command)}",
        "",
        "Every setting, defaults included:",
        "",
        "```yaml",
        yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]
    top = yaml.safe_dump(header, sort_keys=False)
    return f"---\n{top}---\n\n" + "\n".join(lines) + "\n"


def last_evaluation(metrics: Path) -> dict[str, Any] | None:
    """The last row of an evaluation in metrics.jsonl; None if there is none. Raises OSError."""
    if not metrics.exists():
        return None
    found: dict[str, Any] | None = None
    with metrics.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["kind"] == "eval":
                found = row
    return found


def _origin(settings: Mapping[str, Any], data_digest: str, licence: str) -> dict[str, str]:
    model, data = settings["model"], settings["data"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    return {
        "base model": f"{model['path']}{revision}",
        "licence of the base model": licence,
        "data": _name_data(data),
        "SHA-256 of its rows and pictures": data_digest,
        "rewards": _list_weights(settings["rewards"]["weights"]),
        **_rewards_of_sources(data["sources"]),
        "seed": str(settings["train"]["seed"]),
    }


def _name_data(data: Mapping[str, Any]) -> str:
    """The path of the data, or those of all sources, and the order file if there is one."""
    paths = [source["path"] for source in data["sources"]] or [data["train"]]
    order = f", in the order of {data['order']}" if data["order"] else ""
    return ", ".join(map(str, paths)) + order


def _rewards_of_sources(sources: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"rewards of {one['path']}": _list_weights(one["rewards"])
        for one in sources
        if one["rewards"]
    }


def _list_weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} x {w:g}" for name, w in weights.items())


def _evaluation(settings: Mapping[str, Any], row: Mapping[str, Any] | None) -> Iterator[str]:
    """The scores with their protocol; a sentence if there was no evaluation."""
    section = settings["eval"]
    if row is None:
        yield from ("## Evaluation", "", "None was made in this run.", "")
        return

    longest = section["max_new_tokens"] or settings["rollout"]["max_new_tokens"]
    limit = f", drawn by eval.limit {section['limit']}" if section["limit"] else ""
    protocol = (
        f"After step {row['step']}: {section['task']} on {section['data']}, {row['rows']} rows{limit}; greedy answers of at most "
        f"{longest} tokens, prompt {section['prompt'] or 'of the run'}, scorer strict. Intervals are 95 % bootstrap intervals."
    )
    yield from (
        "## Evaluation",
        "",
        protocol,
        "",
        "| metric | value | 95 % interval | chance |",
        "|---|---|---|---|",
    )
    intervals, chance = row.get("ci95", {}), row.get("chance", {})
    for name, (low, high) in intervals.items():
        blind = f"{100 * chance[name]:.1f} %" if name in chance else ""
        yield f"| {name} | {100 * row[name]:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | {blind} |"
    yield ""


def _table(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    yield from (f"## {title}", "", "| | |", "|---|---|")
    for name, value in rows.items():
        yield f"| {name} | {_cell(value)} |"
    yield ""


def _cell(text: str) -> str:
    """Escape a text for a table cell."""
    return " ".join(text.split()).replace("|", "\\|")
