"""Makes it possible to import torchvision where only its pure-Python part can load.

The published torchvision wheels are compiled against CUDA builds of torch. With a CPU build of torch their operator library
does not load, and `import torchvision` fails with "operator torchvision::nms does not exist". Qwen2-VL's processor needs
only the resizing transforms, which are Python: declaring the two missing operators is enough to make the import work.
Every process that imports transformers calls `ensure_torchvision` first; where torchvision is healthy it does nothing.
"""

import importlib.util
from pathlib import Path

import torch

_kept_alive: list[torch.library.Library] = []
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # without torchvision there is nothing to fix here; `gpg-vl doctor` names the remedy
    for library in Path(next(iter(spec.submodule_search_locations))).glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


def ensure_torchvision() -> bool:
    """Declare torchvision's two operators if its own library cannot. Returns True if they had to be declared."""
    if _kept_alive:
        return True
    if hasattr(torch.ops.torchvision, "nms") or _operators_load():
        return False

    # an import hook may have called this function again during the lookup of torchvision
    if _kept_alive:
        return True
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    _kept_alive.append(library)
    return True
