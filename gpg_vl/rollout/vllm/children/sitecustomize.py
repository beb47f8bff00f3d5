"""Run by every Python process that is started with this folder on PYTHONPATH, before anything else.

vLLM inspects model classes in a process of its own and starts its engine and workers as processes; each imports
torchvision. Where torchvision's operators do not fit this torch, they must be declared there first, as
`gpg_vl.models.torchvision_shim` does it here. Where torchvision is healthy this does nothing.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _BeforeTorchvision(MetaPathFinder):
    """Declares torchvision's operators when torchvision is about to be imported; finds nothing itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            from gpg_vl.models.torchvision_shim import ensure_torchvision

            ensure_torchvision()
        return None


def _run_the_one_behind() -> None:
    """A sitecustomize of the user's own, which this one hides: Python runs only the first it finds."""
    here = Path(__file__).parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").absolute() != here]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _BeforeTorchvision())
_run_the_one_behind()
