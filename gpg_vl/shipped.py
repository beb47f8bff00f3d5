"""Where the configs and data recipes are: next to the package in a checkout, inside it once installed."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """The folder `configs` or `data_recipes`, whatever folder the program was started in."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
