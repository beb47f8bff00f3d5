"""Loads the trainer's weights into a vLLM model, layer by layer, and records what was loaded.

vLLM packs and fuses weights when it loads them. So weights are loaded again as from a checkpoint: each layer is materialized,
filled and packed when all of its tensors have arrived (vLLM's layerwise reload, which its own weight transfer uses too). A model
must never be a mix of two versions; the table shows whether everything arrived.
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
    """A record of a reload: which tensors were loaded, and which parameters got nothing.

    Example: a Qwen2-VL-2B with tied embeddings has 730 tensors in 4.4 GB of bfloat16, all taken, nothing unfed.
    """

    tensors: int
    bytes: int
    untaken: tuple[str, ...]
    """Tensors of the trainer that the engine did not load."""
    repeated: tuple[str, ...]
    """Names that came more than once."""
    unfed: tuple[str, ...]
    """Parameters of the engine that got no tensor."""

    @staticmethod
    def of(report: Mapping[str, Any]) -> "Table":
        """A table that came as JSON."""
        names = {kind: tuple(report[kind]) for kind in ("untaken", "repeated", "unfed")}
        return Table(tensors=report["tensors"], bytes=report["bytes"], **names)

    def refuse_gaps(self) -> None:
        """Raises RunError unless every tensor was loaded exactly once and every parameter got a tensor."""
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
                f"The weights of trainer and engine do not match: tensors {'; '.join(found)}. Sampling would use some old "
                f"weights. Serve the checkpoint that is trained (model.path), with a vLLM of the tested versions (gpg-vl "
                f"doctor); rollout.engine=native needs no second copy."
            )


class Reload:
    """One reload of a vLLM model: call `begin`, `load_weights` once or more, `finish`, inside vLLM's current config.

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

        # restore the loaders, because vLLM uses the same empty parameters for the next reload
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
        """Wrap the loader of a parameter to record its calls. The wrapper keeps the loader's name, by which vLLM recognises
        it."""

        @wraps(load)
        def watched(*args: Any, **kwargs: Any) -> Any:
            # tensors are passed on one by one, so the last counted tensor is the one being loaded
            self._taken.add(self._names[-1])
            self._fed.add(parameter)
            return load(*args, **kwargs)

        return watched


def select_weights(weights: Weights, setup: EngineSetup) -> Iterator[tuple[str, Tensor]]:
    """The weights that vLLM needs: without vision tower and merger if vLLM gets features. Iterates to the end."""
    part_of = setup.processing.family.part_of
    for name, tensor in weights():
        if setup.options.images == "pixels" or part_of(name) == "language":
            yield name, tensor


def reload_worker(worker: Any, weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> Table:
    """Load all weights into the model of a vLLM worker in this process."""
    from vllm.config import set_current_vllm_config

    model = worker.model_runner.get_model()
    with set_current_vllm_config(worker.vllm_config):
        reload = Reload(model, worker.vllm_config.model_config)
        reload.begin()
        reload.load_weights(weights())
        return reload.finish()


def _loaded_parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parameters that a checkpoint fills: all but those of attention layers, whose scales are not in our
    checkpoints."""
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
