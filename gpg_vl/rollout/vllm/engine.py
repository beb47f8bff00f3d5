"""vLLM in this process: answers of the trained policy, with weights that are handed over layer by layer."""

import atexit
import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from gpg_vl.models.families import Family
from gpg_vl.rollout.engine import (
    EngineOptions,
    EngineSetup,
    RolloutRequest,
    SyncReport,
    Weights,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.rollout.vllm.counters import Counters
from gpg_vl.rollout.vllm.features import encode_images
from gpg_vl.rollout.vllm.inputs import (
    Answer,
    Keys,
    engine_input,
    make_completion,
    sampling_settings,
)
from gpg_vl.rollout.vllm.options import engine_arguments
from gpg_vl.rollout.vllm.together import Together
from gpg_vl.rollout.vllm.weights import Table, reload_worker, wanted_weights
from gpg_vl.rollout.vllm.window import (
    prepare_environment,
    refuse_heads,
    refuse_sharing,
    refuse_vllm,
)
from gpg_vl.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What vLLM is asked for one request, as it goes from process to process."""

    prompt: Prompt
    draw: int
    features: Sequence[Tensor] | None
    """Of the images, where vLLM has no tower of its own."""


class VllmEngine:
    """Samples with vLLM in this process, on this process's device. See `Engine` for its methods.

    Its weights are a second copy, in the dtype of the forward pass; until the first `sync` they are the checkpoint's. With
    `vllm_tensor_parallel` N processes hold that copy together, and each is answered what it has asked.
    """

    def __init__(self, setup: EngineSetup) -> None:
        refuse_vllm(setup.processing.family)
        refuse_heads(setup.options.vllm_tensor_parallel, setup.path, setup.revision)
        prepare_environment(in_process=True)
        from vllm import LLM

        self._setup = setup
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sleeps = torch.cuda.is_available() and setup.options.vllm_sleep
        arguments = engine_arguments(
            setup.options,
            path=setup.path,
            revision=setup.revision,
            dtype=setup.autocast,
            empty=setup.awaits_sync,
        )
        self._together = Together(setup.options.vllm_tensor_parallel)
        arguments |= self._together.arguments()
        has_groups = distributed.is_initialized()
        with _as_if_nothing_had_been():
            self._llm = LLM(**arguments, enable_sleep_mode=self._sleeps)
        self._together.started()
        self._engine = self._llm.llm_engine
        _keep_process_groups(self._engine, of_trainer=has_groups)
        self._asleep: set[str] = set()
        self._version = 0
        self._synced = False
        self._requests = 0
        self._counters = Counters()

    @staticmethod
    def check(family: Family, options: EngineOptions, processes: int) -> None:
        """Raises UserError if this engine cannot work here. Loads no weights."""
        refuse_sharing(options.vllm_tensor_parallel, processes)
        refuse_vllm(family)

    # ---- weights

    def sync(self, weights: Weights, version: int) -> SyncReport:
        with self._counters.syncing(self._device):
            self._wake("weights")
            table = self._reload(weights)

        # every later table is the same: the names are those of the same two models
        if not self._synced:
            table.refuse_gaps()
            self._forget(features=True)
        self._synced = True
        self._forget(features=self._setup.trains_vision)
        self._version = version
        return SyncReport(version=version, tensors=table.tensors, bytes=table.bytes)

    def _reload(self, weights: Weights) -> Table:
        chosen = partial(wanted_weights, weights, self._setup)
        (table,) = self._llm.collective_rpc(reload_worker, args=(chosen,))
        made: Table = table
        return made

    def _forget(self, *, features: bool) -> None:
        """Drop what was computed with older weights. The keys say the version too, so this only frees memory."""
        assert self._llm.reset_prefix_cache(), (
            "keys and values are still held, although nothing is being answered"
        )
        if features:
            self._engine.reset_encoder_cache()

    @property
    def _keys(self) -> Keys:
        return Keys(version=self._version, features_change=self._setup.trains_vision)

    # ---- memory

    def rest(self) -> None:
        if not self._sleeps or self._asleep:
            return
        # level 2 drops the weights as well: the next sync brings them all
        self._llm.sleep(level=2)
        self._asleep = {"weights", "kv_cache"}

    def _wake(self, *tags: str) -> None:
        for tag in tags:
            if tag in self._asleep:
                self._llm.wake_up(tags=[tag])
                self._asleep.remove(tag)

    # ---- answers

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        questions = [
            _Question(prompt=request.prompt, draw=request.draw, features=features)
            for request, features in zip(
                requests, encode_images(self._setup, requests), strict=True
            )
        ]
        everybodys, mine = self._together.gathered(questions)
        if not everybodys:
            return []

        assert self._synced or not self._setup.awaits_sync, "its weights are those of nobody yet"
        assert "weights" not in self._asleep, (
            "an engine that rests is given weights before it answers"
        )
        self._wake("kv_cache")
        with self._counters.decoding(self._device):
            outputs = self._ask(everybodys, mine, sampling, done)
            return [
                self._complete(question.prompt, output)
                for question, output in zip(questions, outputs[mine], strict=True)
            ]

    def _ask(
        self,
        questions: Sequence[_Question],
        mine: slice,
        sampling: Sampling,
        done: Callable[[int], None] | None,
    ) -> list[Any]:
        """vLLM's output of each question, in order. `mine`: those that `done` is called for."""
        names = []
        for question in questions:
            self._requests += 1
            names.append(str(self._requests))
            given = engine_input(question.prompt, self._keys, question.features)
            self._engine.add_request(names[-1], given, self._parameters(sampling, question.draw))

        own = set(names[mine])
        finished: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[output.request_id] = output
                    if done and output.request_id in own:
                        done(sampling.group_size)
        return [finished[name] for name in names]

    def _parameters(self, sampling: Sampling, draw: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = sampling_settings(sampling, self._setup.processing.tokens, draw)
        settings["logit_bias"] = {int(token): b for token, b in settings["logit_bias"].items()}
        return SamplingParams(**settings, output_kind=RequestOutputKind.FINAL_ONLY)

    def _complete(self, prompt: Prompt, output: Any) -> tuple[Completion, ...]:
        completions = []
        for said in output.outputs:
            logprobs = [
                of_place[token].logprob
                for token, of_place in zip(said.token_ids, said.logprobs, strict=True)
            ]
            answer = Answer(token_ids=said.token_ids, logprobs=logprobs)
            completions.append(
                make_completion(answer, prompt, self._setup.processing, self._version)
            )
        self._counters.count(prompt, completions)
        return tuple(completions)

    # ---- what it has done

    def counters(self) -> Mapping[str, float]:
        return asdict(self._counters)

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()


# ---- what vLLM changes in its process, and should not


@contextmanager
def _as_if_nothing_had_been() -> Iterator[None]:
    """vLLM seeds every random generator of its process when it starts, and freezes what the garbage collector looks at."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        gc.unfreeze()


def _keep_process_groups(engine: Any, *, of_trainer: bool) -> None:
    """vLLM's last deed is to destroy every process group of its process, and it fails where none is left. Leave them to
    whoever made them.
    """
    engine.engine_core._finalizer.detach()
    if not of_trainer:
        atexit.register(_end_process_groups)


def _end_process_groups() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
