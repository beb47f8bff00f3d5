"""gpg_vl: teach vision-language models to reason, by reinforcement fine-tuning with Group Policy Gradient.

    import gpg_vl

    model = gpg_vl.Model.load("Qwen/Qwen2-VL-2B-Instruct")
    answers = model.generate("street.png", "How many cars are there?", n=8)

    run = gpg_vl.train("my.yaml", train={"steps": 100})
    results = gpg_vl.evaluate("cvbench", model=run.model, data="data/CV-Bench")

Each public name is imported when it is first used, so `import gpg_vl` itself is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpg_vl.eval.evaluate import evaluate as evaluate
    from gpg_vl.model import Model as Model
    from gpg_vl.rewards import reward as reward
    from gpg_vl.training.start import train as train
    from gpg_vl.types import Completion as Completion
    from gpg_vl.types import Example as Example

    __version__: str

_PUBLIC = {
    "Completion": "gpg_vl.types",
    "Example": "gpg_vl.types",
    "Model": "gpg_vl.model",
    "evaluate": "gpg_vl.eval.evaluate",
    "reward": "gpg_vl.rewards",
    "train": "gpg_vl.training.start",
}
__all__ = ["Completion", "Example", "Model", "evaluate", "reward", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from gpg_vl.version import installed_version

        return installed_version()
    if name not in _PUBLIC:
        raise AttributeError(
            f"module 'gpg_vl' has no attribute {name!r}; public are {', '.join(__all__)}"
        )
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
