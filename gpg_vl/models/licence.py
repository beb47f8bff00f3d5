"""The licence of a checkpoint, from its model card."""

import re
from pathlib import Path
from typing import Any

import yaml

UNKNOWN = "unknown"
_FRONT_MATTER = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_MOST_CHARACTERS = 1 << 16


def read_licence(folder: Path) -> str:
    """The licence that README.md of a checkpoint folder names at its top; `unknown` where it names none."""
    file = folder / "README.md"
    if not file.is_file():
        return UNKNOWN
    with file.open(encoding="utf-8", errors="replace") as opened:
        found = _FRONT_MATTER.match(opened.read(_MOST_CHARACTERS))
    return licence_in(found[1]) if found else UNKNOWN


def licence_in(front_matter: str) -> str:
    """The licence in the YAML at the top of a card: `license`, or `license_name` for one that the hub does not list."""
    try:
        fields: Any = yaml.safe_load(front_matter)
    except yaml.YAMLError:
        return UNKNOWN
    if not isinstance(fields, dict):
        return UNKNOWN
    licence, name = fields.get("license"), fields.get("license_name")
    chosen = name if licence == "other" and name else licence
    return chosen if isinstance(chosen, str) and chosen.strip() else UNKNOWN
