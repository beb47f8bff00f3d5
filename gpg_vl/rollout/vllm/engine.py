"""The engine that runs vLLM in this process, with weights that are copied from the policy layer by layer."""

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
from gpg_vl.rollout.vllm.compatibility import (
    prepare_environment,
    refuse_heads,
    refuse_sharing,
    refuse_vllm,
)
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
from gpg_vl.rollout.vllm.tensor_parallel import EngineGroup
from gpg_vl.rollout.vllm.weights import Table, reload_worker, select_weights
from gpg_vl.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """One request to vLLM, in the form that is sent between processes."""

    prompt: Prompt
    draw: int
    features: Sequence[Tensor] | None
    """The features of the images, if vLLM has no vision tower."""


class VllmEngine:
    """Samples with vLLM in this process, on this process's device. See `Engine` for its methods.

    Its weights are a second copy, in the dtype of the forward pass; until the first `sync` they are the checkpoint's. With
    `vllm_tensor_parallel` N processes share that copy, and each gets the answers to its own requests.
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
        self._engine_group = EngineGroup(setup.options.vllm_tensor_parallel)
        arguments |= self._engine_group.arguments()

        # vLLM changes random states and process groups when it starts; keep those of the trainer
        has_groups = distributed.is_initialized()
        with _keep_process_state():
            self._llm = LLM(**arguments, enable_sleep_mode=self._sleeps)
        self._engine_group.mark_started()
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

        # the table is the same at every later sync, because the names of both models do not change
        if not self._synced:
            table.refuse_gaps()
            self._forget(features=True)
        self._synced = True
        self._forget(features=self._setup.trains_vision)
        self._version = version
        return SyncReport(version=version, tensors=table.tensors, bytes=table.bytes)

    def _reload(self, weights: Weights) -> Table:
        chosen = partial(select_weights, weights, self._setup)
        (table,) = self._llm.collective_rpc(reload_worker, args=(chosen,))
        loaded_table: Table = table
        return loaded_table

    def _forget(self, *, features: bool) -> None:
        """Drop cached values that were computed with older weights. The cache keys contain the version, so this only frees
        memory."""
        assert self._llm.reset_prefix_cache(), (
            "keys and values are still cached although no request is running"
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
        # level 2 drops the weights too; the next sync brings all of them
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
        all_questions, own_slice = self._engine_group.gather(questions)
        if not all_questions:
            return []

        assert self._synced or not self._setup.awaits_sync, "no weights have been synced yet"
        assert "weights" not in self._asleep, "a resting engine needs a sync before it can answer"
        self._wake("kv_cache")
        with self._counters.decoding(self._device):
            outputs = self._ask(all_questions, own_slice, sampling, done)
            return [
                self._complete(question.prompt, of_prompt)
                for question, of_prompt in zip(questions, outputs[own_slice], strict=True)
            ]

    def _ask(
        self,
        questions: Sequence[_Question],
        own_slice: slice,
        sampling: Sampling,
        done: Callable[[int], None] | None,
    ) -> list[list[Any]]:
        """vLLM's outputs for each question, in order. `own_slice`: the questions for which `done` is called."""
        names = [self._add_requests(question, sampling) for question in questions]
        own = {name for of_question in names[own_slice] for name in of_question}
        finished: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[output.request_id] = output
                    if done and output.request_id in own:
                        done(len(output.outputs))
        return [[finished[name] for name in of_question] for of_question in names]

    def _add_requests(self, question: _Question, sampling: Sampling) -> list[str]:
        """Add the requests of a question to vLLM. Returns their ids."""
        names = []
        for settings in sampling_settings(sampling, self._setup.processing.tokens, question.draw):
            self._requests += 1
            names.append(str(self._requests))
            given = engine_input(question.prompt, self._keys, question.features)
            self._engine.add_request(names[-1], given, self._parameters(settings))
        return names

    def _parameters(self, settings: dict[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        bias = {int(token): bias for token, bias in settings["logit_bias"].items()}
        kind = RequestOutputKind.FINAL_ONLY
        return SamplingParams(**{**settings, "logit_bias": bias}, output_kind=kind)

    def _complete(self, prompt: Prompt, outputs: Sequence[Any]) -> tuple[Completion, ...]:
        completions = []
        for said in (said for output in outputs for said in output.outputs):
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
def _keep_process_state() -> Iterator[None]:
    """Undo what vLLM changes when it starts: it seeds all random generators and freezes objects for the garbage
    collector."""
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
    """Prevent vLLM from destroying all process groups of this process when it shuts down; their creators destroy them."""
    engine.engine_core._finalizer.detach()
    if not of_trainer:
        atexit.register(_end_process_groups)


def _end_process_groups() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
