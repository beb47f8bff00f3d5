"""The card of a data set: card.json for programs, README.md for people. The same data give the same bytes."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from gpg_vl.data.check import DataReport
from gpg_vl.data.recipe.recipe import Recipe
from gpg_vl.data.recipe.shards import Shard

_WRITERS = ("gpg_vl", "pillow", "pyarrow")


def card_files(
    recipe: Recipe,
    plan: Mapping[str, Any],
    shards: Sequence[Shard],
    reports: Mapping[str, DataReport],
) -> dict[str, str]:
    """card.json and README.md by name."""
    card = {
        "name": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "hub": recipe.hub,
        **plan,
        "splits": {
            split: _split(recipe, split, shards, reports[split]) for split in plan["sources"]
        },
        "notes": list(recipe.notes),
        "settings": dict(recipe.settings(**plan["options"])) if recipe.settings else {},
        "written_with": {name: version(name) for name in _WRITERS},
    }
    return {
        "card.json": json.dumps(card, indent=2, ensure_ascii=False) + "\n",
        "README.md": _readme(card),
    }


def _split(
    recipe: Recipe, split: str, shards: Sequence[Shard], report: DataReport
) -> dict[str, Any]:
    mine = [shard for shard in shards if shard.split == split]
    left_out: Counter[str] = sum((Counter(shard.left_out) for shard in mine), Counter())
    widths, heights = ([size[i] for size in report.image_sizes] for i in (0, 1))
    return {
        "documented_rows": recipe.documented.get(split),
        "source_rows": sum(shard.source_rows for shard in mine),
        "rows": sum(shard.rows for shard in mine),
        "left_out": dict(sorted(left_out.items())),
        "broken": sum(shard.broken for shard in mine),
        "tasks": dict(report.tasks),
        "images": report.images,
        "image_sizes": {"width": [min(widths), max(widths)], "height": [min(heights), max(heights)]}
        if widths
        else None,
        "check": {"ok": report.ok, "problems": len(report.problems)},
        "parts": {Path(shard.part).name: shard.sha256 for shard in mine if shard.sha256},
    }


def _readme(card: Mapping[str, Any]) -> str:
    options = "".join(f", {name} {value}" for name, value in card["options"].items())
    limit = f", the first {card['limit']} source rows of each split" if card["limit"] else ""
    sources = "\n".join(f"- {split}: {_source(facts)}" for split, facts in card["sources"].items())
    rows = "\n".join(
        f"| {split} | {s['source_rows']} | {'-' if s['documented_rows'] is None else s['documented_rows']} | {s['rows']} "
        f"| {s['images']} | {_counts(s['left_out'])} | {s['broken']} |"
        for split, s in card["splits"].items()
    )
    notes = "".join(f"- {note}\n" for note in card["notes"])
    first = next(iter(card["splits"]))
    settings = yaml.safe_dump(
        {"data": {"train": f"FOLDER/{first}"}, **card["settings"]},
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )
    indented = "".join(f"    {line}\n" for line in settings.splitlines())
    return f"""\
# {card["title"]}

Made by gpg_vl's recipe `{card["name"]}` with seed {card["seed"]}{options}{limit}.
Licence of the source: {card["licence"]}

{notes}
## Source

{sources}

## Rows

| split | source rows | published | rows | images | left out | broken |
|---|---|---|---|---|---|---|
{rows}

Broken source rows are listed in `broken.jsonl` with their row number and the reason. The rows of a split are its
`part-*.jsonl` in the order of their names; pictures lie in its `images/`, each named by its SHA-256. `card.json` holds the
checksums of the parts and of the source.

## Train

With FOLDER for the folder of this file, and the sections that every config needs besides:

{indented}
`gpg-vl data check` counts the tokens of every prompt with the model that the config names.
"""


def _source(facts: Mapping[str, Any]) -> str:
    if "hub" in facts:
        return f"{facts['hub']} on the hub, revision {facts['revision']}"
    if "files" in facts:
        return ", ".join(f"`{name}` (SHA-256 {digest})" for name, digest in facts["files"].items())
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _counts(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{number} {reason}" for reason, number in left_out.items()) or "0"
