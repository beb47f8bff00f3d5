"""Small copies of the benchmarks in the layouts their owners publish, with drawn pictures and answers known by hand.

`WRITERS[task](folder)` writes one and returns what `--data` is given.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

_MODULES = {
    "scenes": ("cvbench",),
    "r1v": ("geoqa", "superclevr"),
    "reasonseg": ("lisa",),
    "refcoco": ("refcoco", "refcoco+", "refcocog"),
    "virft": ("flowers102", "pets37", "fgvc", "cars196", "digits"),
    "places": ("places",),
    "text_math": ("math500", "aime24", "amc23", "minerva", "olympiadbench", "gsm8k"),
    "visual_math": ("mathvista", "mathverse", "geometry3k"),
    "multiple_choice": ("mmmu", "blink"),
    "short_answers": ("chartqa", "textvqa", "docvqa", "vqav2"),
}


def _write(module: str, task: str, folder: Path) -> Path:
    return importlib.import_module(f"benchmark_data.{module}").write(task, folder)


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    task: partial(_write, module, task) for module, tasks in _MODULES.items() for task in tasks
}
