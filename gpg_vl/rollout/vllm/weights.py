"""The trainer's weights into a vLLM model, layer by layer, with a table of what went where.

vLLM packs and fuses weights when it loads them, so they are loaded again in the form of a checkpoint: each layer is
materialized, filled and packed when all of its tensors have come (vLLM's layerwise reload, which its own weight transfer
uses as well). What belongs together must never be half of one version and half of another; the table says whether
everything was there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gpg_vl.errors import RunError
from gpg_vl.rollout.engine import EngineSetup, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a reload took and fed.

    Example: a Qwen2-VL-2B with tied embeddings has 730 tensors in 4.4 GB of bfloat16, all taken, nothing unfed.
    """

    tensors: int
    bytes: int
    untaken: tuple[str, ...]
    """Tensors of the trainer that no parameter of the engine took."""
    repeated: tuple[str, ...]
    """Names that came more than once."""
    unfed: tuple[str, ...]
    """Parameters of the engine that no tensor went into."""

    @staticmethod
    def of(report: Mapping[str, Any]) -> "Table":
        """A table that came as JSON."""
        names = {kind: tuple(report[kind]) for kind in ("untaken", "repeated", "unfed")}
        return Table(tensors=report["tensors"], bytes=report["bytes"], **names)

    def refuse_gaps(self) -> None:
        """Raises RunError unless every tensor went somewhere, once, and every parameter got something."""
        wrong = {
            "of the trainer that vLLM did not take": self.untaken,
            "that were sent more than once": self.repeated,
            "of vLLM that the trainer sends nothing for": self.unfed,
        }
        found = [
            f"{len(names)} {kind} ({_format_names(names)})"
            for kind, names in wrong.items()
            if names
        ]
        if found:
            raise RunError(
                f"The weights of trainer and engine do not belong together: tensors {'; '.join(found)}. Sampling would go "
                f"on with some old weights. Serve the checkpoint that is trained (model.path), with a vLLM of the tested "
                f"versions (gpg-vl doctor); rollout.engine=native needs no second copy."
            )


class Reload:
    """One reload of a vLLM model: `begin`, `load_weights` once or more often, `finish`. Under vLLM's current config.

    Between `begin` and `finish` the model cannot be used.
    """

    def __init__(self, model: nn.Module, model_config: Any) -> None:
        self._model = model
        self._model_config = model_config
        self._names: list[str] = []
        self._bytes = 0
        self._taken: set[str] = set()
        self._fed: set[str] = set()
        self._loaders: list[tuple[Any, Callable[..., Any]]] = []
        self._parameters: list[str] = []

    def begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self._model)
        for name, parameter in _loaded_parameters(self._model):
            self._parameters.append(name)
            self._loaders.append((parameter, parameter.weight_loader))
            parameter.weight_loader = self._watch(parameter.weight_loader, name)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Names as in a checkpoint, whole tensors."""
        with torch.no_grad():
            self._model.load_weights(self._count(weights))  # type: ignore[operator]  # a method of vLLM's models

    def finish(self) -> Table:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with torch.no_grad():
            finalize_layerwise_reload(self._model, self._model_config)

        # vLLM takes the same empty parameters for the next reload, with whatever loaders they have
        for parameter, loader in self._loaders:
            parameter.weight_loader = loader
        counted = {name: self._names.count(name) for name in self._names}
        return Table(
            tensors=len(self._names),
            bytes=self._bytes,
            untaken=tuple(name for name in counted if name not in self._taken),
            repeated=tuple(name for name, times in counted.items() if times > 1),
            unfed=tuple(name for name in self._parameters if name not in self._fed),
        )

    def _count(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._names.append(name)
            self._bytes += tensor.numel() * tensor.element_size()
            yield name, tensor

    def _watch(self, load: Callable[..., Any], parameter: str) -> Callable[..., Any]:
        """The loader of a parameter, which notes that it was called. vLLM knows its own by their name, which is kept."""

        @wraps(load)
        def watched(*args: Any, **kwargs: Any) -> Any:
            # tensors are handed on one by one, so the last that was counted is the one that is loaded
            self._taken.add(self._names[-1])
            self._fed.add(parameter)
            return load(*args, **kwargs)

        return watched


def select_weights(weights: Weights, setup: EngineSetup) -> Iterator[tuple[str, Tensor]]:
    """Those that vLLM has: without the vision tower and its merger where it is given features. Iterates to the end."""
    part_of = setup.processing.family.part_of
    for name, tensor in weights():
        if setup.options.images == "pixels" or part_of(name) == "language":
            yield name, tensor


def reload_worker(worker: Any, weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> Table:
    """All weights into the model of a vLLM worker of this process."""
    from vllm.config import set_current_vllm_config

    model = worker.model_runner.get_model()
    with set_current_vllm_config(worker.vllm_config):
        reload = Reload(model, worker.vllm_config.model_config)
        reload.begin()
        reload.load_weights(weights())
        return reload.finish()


def _loaded_parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a checkpoint fills: the parameters outside of attention layers, whose scales no checkpoint here holds."""
    from vllm.model_executor.layers.attention import is_deferred_attention_layer

    for module_name, module in model.named_modules():
        if is_deferred_attention_layer(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if hasattr(parameter, "weight_loader"):
                yield f"{module_name}.{name}", parameter


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
