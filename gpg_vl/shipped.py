"""Where the configs and data recipes are: next to the package in a checkout, inside the package once installed."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """The path of the folder `configs` or `data_recipes`, independent of the current folder."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
