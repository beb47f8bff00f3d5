"""Writes the five files of a new task, which docs/new_task.md explains: a working example to change."""

import re
from pathlib import Path

from gpg_vl.errors import UserError

_TEMPLATES = Path(__file__).parent / "task"
_FILES = {
    "recipe.py": "{name}_recipe.py",
    "reward.py": "{name}_reward.py",
    "completions.jsonl": "completions.jsonl",
    "config.yaml": "{name}.yaml",
    "task.py": "{name}_task.py",
}
"""Template to output file, in the order of the page."""


def write_task(name: str, folder: Path) -> list[Path]:
    """Write the files into `folder`, which is created. Returns them.

    Raises UserError for a name that is not allowed in Python, and for files that exist already:
    nothing is overwritten.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"The task is called {name!r}. Functions and files get this name, so small letters, digits "
            f"and _ are allowed, a letter first, such as traffic_signs. Choose another."
        )
    texts = {folder / file.format(name=name): _fill(part, name) for part, file in _FILES.items()}
    if there := [file for file in texts if file.exists()]:
        raise UserError(
            f"{there[0]} exists already and is not overwritten. Choose another name, or another folder with --folder."
        )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The files of {name} cannot be written: {error}. Choose another folder with --folder."
        ) from None
    return list(texts)


def _fill(part: str, name: str) -> str:
    template = (_TEMPLATES / f"{part}.txt").read_text(encoding="utf-8")
    return re.sub(r"TASK(?=_|\b)", name, template)
