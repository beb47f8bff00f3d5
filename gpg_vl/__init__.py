"""gpg_vl: teach vision-language models to reason, by reinforcement fine-tuning with Group Policy Gradient.

The public names are loaded when they are first used, so that `import gpg_vl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpg_vl.model import Model as Model
    from gpg_vl.types import Completion as Completion
    from gpg_vl.types import Example as Example

_PUBLIC = {
    "Completion": "gpg_vl.types",
    "Example": "gpg_vl.types",
    "Model": "gpg_vl.model",
}
__all__ = ["Completion", "Example", "Model"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(
            f"module 'gpg_vl' has no attribute {name!r}; public are {', '.join(__all__)}"
        )
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
