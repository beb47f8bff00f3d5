"""The protocol of a rollout engine: it takes requests, returns completions, and gets new weights by `sync`.

All engines share the sampling distribution in `rollout.sampling`. `rollout.engines` finds an engine by its name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpg_vl.errors import RunError
from gpg_vl.models.load import Processing
from gpg_vl.models.policy import Policy
from gpg_vl.models.prefix import PrefixStore
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Completion, Prompt


class EngineLostError(RunError):
    """The engine stopped answering and did not come back in time. Nothing was trained on its unfinished answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One prompt to answer.

    Example: `RolloutRequest(prompt=prompt, draw=17)`
    """

    prompt: Prompt
    draw: int
    """The prompt's place in the data order. The random numbers of a completion depend only on the seed, the draw and
    its place in the group, so an engine gives the same answers however the requests are batched."""
    images: tuple[str | bytes, ...] = ()
    """The example's images as in its data set, for engines that prepare images themselves. The built-in engines use the prompt's
    patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """A summary of one weight sync.

    Example: `SyncReport(version=3, tensors=729, bytes=4_400_000_000)`
    """

    version: int
    tensors: int = 0
    """Number of tensors copied; 0 if the engine reads the trained weights directly."""
    bytes: int = 0


Weights = Callable[[], Iterator[tuple[str, Tensor]]]
"""Names and whole tensors of the trained model, under the names of its checkpoint. Every process must iterate to the end."""


class Passes:
    """Weights that all processes iterate `number` times. A process that stops early must call `finish`, because each tensor
    may be a collective."""

    def __init__(self, weights: Weights, number: int) -> None:
        self._weights = weights
        self._left = number
        self._current: Iterator[tuple[str, Tensor]] = iter(())

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        assert self._left, "the other processes do not iterate the weights as often"
        self._left -= 1
        self._current = self._weights()
        return self._current

    def finish(self) -> None:
        """Iterate the remaining passes, including the rest of an interrupted one."""
        while True:
            for _ in self._current:
                pass
            if not self._left:
                return
            self()


class Engine(Protocol):
    """Samples completions from a known version of the policy.

    Each optimizer step uses it inside `with engine.step(): ...`.
    """

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Returns `sampling.answers` completions for each request, in order, each with the version that sampled it. The
        prompt of a request is computed once. The greedy answer, if requested, is the last one.

        Every process of a launch must call it equally often, with an empty list if it has no requests, because some engines are
        shared by several processes.

        done: called with the number of completions that have been finished since the last call.
        Raises EngineLostError on this process only: processes do not wait for each other here, and the caller informs the
        others.
        """
        ...

    def sync(self, weights: Weights, version: int) -> SyncReport:
        """Take over the weights after optimizer step `version`.

        Raises EngineLostError, on all processes, because all of them take part in a sync.
        """
        ...

    def rest(self) -> None:
        """Called when no answer is needed before the next `sync`, so the engine may free memory that only sampling
        needs."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Counts since the engine was made, by name; times are in seconds and their names end in `_seconds`."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """A context around one optimizer step, from the first sampled answer to the last gradient."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The user's options for engines: the fields of the config's `rollout` section. Each engine uses the ones it needs.

    Example: `EngineOptions(slots=64)`
    """

    prompts_per_batch: int = 32
    slots: int = 128
    images: Literal["pixels", "features"] = "pixels"
    vllm_memory: float = 0.35
    vllm_sleep: bool = True
    vllm_tensor_parallel: int = 1
    servers: tuple[str, ...] = ()
    server_wait: float = 600.0


DEFAULT_OPTIONS = EngineOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Everything an engine can be made from. Each engine uses what it needs."""

    path: str
    """The checkpoint, a folder or a hub name, for engines that load their own copy of the weights."""
    revision: str | None = None
    policy: Callable[[], Policy]
    """Returns the policy to sample from. Not called by engines that need only the checkpoint and `sync`."""
    fills_policy: bool = False
    """True if that policy is a copy for the engine, which `sync` fills; False if it is the trained policy itself."""
    processing: Processing
    autocast: torch.dtype | None = None
    """The autocast dtype of the forward pass, the same as in training; None computes in the weights' own dtype."""
    options: EngineOptions = DEFAULT_OPTIONS
    awaits_sync: bool = False
    """True if `sync` brings weights before the first answer, so an engine with its own copy need not read the
    checkpoint's."""
    trains_vision: bool = False
    """Whether the features of an image change from version to version."""
    prefixes: PrefixStore | None = None
    """Where the engine stores the prompts that it computes, if the trainer wants to reuse them."""


def refuse_non_finite_answers(
    requests: Sequence[RolloutRequest], answers: Sequence[Sequence[Completion]]
) -> None:
    """Raises RunError if log-probs of a sampled token are NaN or infinite."""
    for request, completions in zip(requests, answers, strict=True):
        for completion in completions:
            if all(map(isfinite, completion.logprobs)):
                continue
            raise RunError(
                f"The model's log-probs of an answer to example {request.prompt.example_id!r} are not finite, so the "
                f"answer is meaningless. Usual causes: weights that hold NaN or infinity; numbers too large for bfloat16. "
                f"Run with model.dtype=float32 to see which it is, or take another checkpoint."
            )
