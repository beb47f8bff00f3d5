"""What a rollout engine is: requests in, completions out, and the weights it answers with.

How tokens are drawn is the same for all of them and is in `rollout.sampling`. An engine is found by its name in
`rollout.engines`.
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
    """The engine cannot answer any more, and did not come back in time. Nothing was trained with what it had answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One prompt that is to be answered.

    Example: `RolloutRequest(prompt=prompt, draw=17)`
    """

    prompt: Prompt
    draw: int
    """The prompt's place in the data order. The random numbers of a completion depend on the seed, its draw and its place
    in the group alone, so an engine gives the same answers however the requests are batched."""
    images: tuple[str | bytes, ...] = ()
    """The example's pictures as its data set has them, for engines that prepare pictures themselves; ours takes the
    prompt's patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What taking over weights was.

    Example: `SyncReport(version=3, tensors=729, bytes=4_400_000_000)`
    """

    version: int
    tensors: int = 0
    """Copied; 0 where the engine reads the weights that are trained."""
    bytes: int = 0


Weights = Callable[[], Iterator[tuple[str, Tensor]]]
"""Names and whole tensors of the trained model, under the names of its checkpoint. Every process must iterate to the end."""


class Passes:
    """Weights that other processes iterate so many times, wherever this one stops: each tensor may wait for all of them."""

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
        """Iterate what is left, also of a pass that was broken off."""
        while True:
            for _ in self._current:
                pass
            if not self._left:
                return
            self()


class Engine(Protocol):
    """Answers prompts with a policy of a known version.

    Used as `with engine.step(): ...` around what one optimizer step does with it.
    """

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """`sampling.answers` completions for each request, in order, each with the version that sampled it. All of a request
        are answers to one prompt that is computed once, the greedy one, if it is wanted, the last of them.

        Every process of a launch calls it equally often, with no requests where it has nothing to ask: some engines are
        shared by several of them, who ask together.

        done: called with the number of completions that have been finished since the last call.
        Raises EngineLostError, on this process alone: no process waits for another one in here, and the caller tells them.
        """
        ...

    def sync(self, weights: Weights, version: int) -> SyncReport:
        """Take over the weights after optimizer step `version`.

        Raises EngineLostError. All processes take part in a sync, so the engine sees to it that all of them raise.
        """
        ...

    def rest(self) -> None:
        """No answer is wanted before the next `sync`: memory that only answers need may be given back."""
        ...

    def counters(self) -> Mapping[str, float]:
        """What the engine has computed since it was made: counts by name, and seconds under names with `_seconds`."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """What belongs to one optimizer step: from the first answer sampled to the last gradient."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may choose about engines. Fields as in the config's `rollout` section; each engine takes what it needs.

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
    """What engines are made of. An engine takes what it needs and leaves the rest."""

    path: str
    """The checkpoint, for engines that hold a copy of the weights; a folder, or a hub name."""
    revision: str | None = None
    policy: Callable[[], Policy]
    """Gives the policy that is to be sampled. Not called by an engine that needs nothing but the checkpoint and `sync`."""
    fills_policy: bool = False
    """Whether that policy is a copy for the engine alone, which `sync` fills; else it is the one that is trained."""
    processing: Processing
    autocast: torch.dtype | None = None
    """Of the forward pass, the same as in training; None computes in the weights' own dtype."""
    options: EngineOptions = DEFAULT_OPTIONS
    awaits_sync: bool = False
    """Whether weights come by `sync` before the first answer: an engine with a copy of its own need not read the checkpoint's."""
    trains_vision: bool = False
    """Whether the features of an image change from version to version."""
    prefixes: PrefixStore | None = None
    """Where the trainer wants the prompts kept that the engine computes."""


def refuse_non_finite_answers(
    requests: Sequence[RolloutRequest], answers: Sequence[Sequence[Completion]]
) -> None:
    """Raises RunError if a token was drawn from a distribution that is none: the model computes NaN or infinity."""
    for request, completions in zip(requests, answers, strict=True):
        for completion in completions:
            if all(map(isfinite, completion.logprobs)):
                continue
            raise RunError(
                f"The model's log-probs of an answer to example {request.prompt.example_id!r} are not finite, so the answer "
                f"means nothing. Usual causes: weights that hold NaN or infinity; numbers too large for bfloat16. Run with "
                f"model.dtype=float32 to see which it is, or take another checkpoint."
            )
