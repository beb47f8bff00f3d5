"""The engine that uses vLLM servers started with `gpg-vl serve`, on this node or on others.

A server may die and come back. Every sync names the weights by run and version, and every answer says which weights sampled it.
An answer from other weights is discarded, and its request is sent again once the server has the right weights.
"""

import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpg_vl.errors import RunError, UserError
from gpg_vl.models.families import Family
from gpg_vl.rollout.broadcast import broadcast, rank
from gpg_vl.rollout.engine import (
    EngineLostError,
    EngineOptions,
    EngineSetup,
    Passes,
    RolloutRequest,
    SyncReport,
    Weights,
)
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.rollout.vllm.client import ANSWER_SECONDS, Server, ServerGoneError
from gpg_vl.rollout.vllm.compatibility import prepare_environment, refuse_vllm
from gpg_vl.rollout.vllm.counters import Counters
from gpg_vl.rollout.vllm.features import encode_images
from gpg_vl.rollout.vllm.handshake import (
    POLL_SECONDS,
    describe,
    refuse_other_model,
    refuse_other_weights,
    servers_of,
    wait_for,
    weights_of,
)
from gpg_vl.rollout.vllm.inputs import (
    Answer,
    Keys,
    make_completion,
    request_body,
    sampling_settings,
)
from gpg_vl.rollout.vllm.protocol import SHARED_MEMORY, UNTRAINED
from gpg_vl.rollout.vllm.transfer import (
    SharedMemory,
    Transfer,
    choose_transfer,
    deliver,
    process_name,
)
from gpg_vl.rollout.vllm.weight_update import BROKEN, alone, lock_of, update
from gpg_vl.rollout.vllm.weights import Table, select_weights
from gpg_vl.types import Completion

HERE = torch.device("cpu")
"""The device for timing: the servers' work is not on a device of this process."""
MOST_LOSSES = 3
"""How often servers may be lost during one call, since a request that crashes its server would do so again and again."""


class _Body(NamedTuple):
    """The body of one request to a server. A prompt may need several."""

    request: int
    """The index of its prompt in the requests."""
    content: dict[str, Any]


class ServerEngine:
    """Samples from vLLM servers over HTTP. See `Engine` for its methods. All processes of a run create it together.

    The servers' weights are this run's from the first `sync` on; before it they must be those of the checkpoint.
    """

    def __init__(self, setup: EngineSetup) -> None:
        refuse_vllm(setup.processing.family)
        prepare_environment(in_process=False)
        self._setup = setup
        self._servers = servers_of(setup.options)
        self._counters = Counters()
        self._servers_lost = 0
        """How often a lost server was waited for."""

        # it contains the main process's name, by which files of killed runs are found
        self._run = broadcast(f"{process_name()}-{uuid.uuid4().hex[:8]}")
        self._version = 0
        self._server_weights = UNTRAINED
        """The name of the weights that the servers must have."""
        self._files: tuple[Path, ...] = ()
        """The files of those weights, for a server that has lost them; empty if this process cannot send them again."""
        self._is_known = False
        """True once it is known that the servers have those weights."""
        self._transfers: list[Transfer] = []
        self._passes = self._meet()

    @staticmethod
    def check(family: Family, options: EngineOptions, processes: int) -> None:
        """Raises UserError if this engine cannot work here. Contacts no server."""
        servers_of(options)
        refuse_vllm(family)

    def _meet(self) -> int:
        """The main process checks every server. Returns, on all processes, how often a sync iterates the weights."""
        message, passes = None, 0
        if rank() == 0:
            try:
                for server in self._servers:
                    self._transfers.append(self._look_at(server))
                passes = max(transfer.passes(len(self._servers)) for transfer in self._transfers)
            except (UserError, RunError) as error:
                message = str(error)
        message, passes = broadcast((message, passes))
        if message is not None:
            raise UserError(message)

        for transfer in self._transfers:
            weakref.finalize(self, transfer.close)
        weakref.finalize(self, lock_of(self._run).unlink, missing_ok=True)
        return passes

    def _look_at(self, server: Server) -> Transfer:
        wait_for(server, self._setup.options.server_wait)
        description = describe(server)
        refuse_other_model(server, description, self._setup)

        # files are written once for all servers on the node
        for known in self._transfers:
            if isinstance(known, SharedMemory) and description.transport == SHARED_MEMORY:
                return known
        return choose_transfer(description, server, self._setup.autocast or torch.float32)

    # ---- weights

    def sync(self, weights: Weights, version: int) -> SyncReport:
        passes = Passes(partial(select_weights, weights, self._setup), self._passes)
        with self._counters.syncing(HERE):
            self._server_weights = f"{self._run}:{version}"
            message, table = None, None
            if rank() == 0:
                try:
                    table = self._send(passes)
                except (RunError, UserError) as error:
                    message = str(error)
            passes.finish()
            message, table, files = broadcast((message, table, self._files))

        if message is not None:
            raise EngineLostError(message)
        self._files = tuple(file for file in files if file.exists())
        self._version = version
        self._is_known = True
        if table is None:
            return SyncReport(version=version)
        return SyncReport(version=version, tensors=table.tensors, bytes=table.bytes)

    def _send(self, weights: Weights) -> Table | None:
        """Send the current weights to every server. Raises RunError if there is no space for them, or if a server does not
        come back.

        Returns the last server's table; None if that server had to get the weights a second time.
        """
        table: Table | None = None
        for transfer in dict.fromkeys(self._transfers):
            transfer.prepare(weights)
            if isinstance(transfer, SharedMemory):
                self._files = tuple(transfer.files)

        for server, transfer in zip(self._servers, self._transfers, strict=True):
            try:
                table = update(server, partial(transfer.deliver, weights), self._server_weights)
            except ServerGoneError as gone:
                self._restore(server, gone)
        return table

    def _restore(self, server: Server, loss: ServerGoneError) -> None:
        """Send the current weights again to a server that was lost, unless it has them. Raises EngineLostError."""
        self._servers_lost += 1
        for _ in range(MOST_LOSSES):
            wait_for(server, self._setup.options.server_wait)
            try:
                with alone(self._run):
                    if weights_of(server) == self._server_weights:
                        return
                    if self._server_weights == UNTRAINED:
                        refuse_other_weights([server], self._setup)
                        return
                    if self._files:
                        update(server, partial(deliver, self._files), self._server_weights)
                        return
                self._await_weights(server)
                return
            except ServerGoneError as again:
                loss = again
        raise EngineLostError(
            f"The server {server.url} was lost {MOST_LOSSES + 1} times in a row ({loss}). Read its output; a smaller "
            f"--slots or --memory of gpg-vl serve may help."
        )

    def _await_weights(self, server: Server) -> None:
        """Wait until a server that came back has the weights again. Only the main process can send them."""
        deadline = time.monotonic() + self._setup.options.server_wait
        while rank() != 0 and time.monotonic() < deadline:
            if weights_of(server) == self._server_weights:
                return
            time.sleep(POLL_SECONDS)
        raise EngineLostError(
            f"The server {server.url} came back without the weights of step {self._version}, and they cannot be sent "
            f"again in the middle of a step, because NCCL keeps no copy. Resume from the checkpoint with --resume."
        )

    @property
    def _keys(self) -> Keys:
        return Keys(version=self._version, features_change=self._setup.trains_vision)

    # ---- answers

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        if not requests:
            return []
        with self._counters.decoding(HERE):
            if not self._is_known:
                refuse_other_weights(self._servers, self._setup)
                self._is_known = True
            bodies = self._write(requests, sampling)
            replies = self._ask_all(bodies, done or (lambda _: None))
            choices: list[list[Any]] = [[] for _ in requests]
            for body, reply in zip(bodies, replies, strict=True):
                choices[body.request] += sorted(reply["choices"], key=itemgetter("index"))
            return [
                self._complete(request, of_request)
                for request, of_request in zip(requests, choices, strict=True)
            ]

    def _write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[_Body]:
        features = encode_images(self._setup, requests)
        tokens, keys = self._setup.processing.tokens, self._keys
        return [
            _Body(number, request_body(request.prompt, keys, settings, of_images))
            for number, (request, of_images) in enumerate(zip(requests, features, strict=True))
            for settings in sampling_settings(sampling, tokens, request.draw)
        ]

    def _ask_all(
        self, bodies: Sequence[_Body], answered: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Get a reply to every body. Requests to a server that died are sent again when it is back.

        answered: called with the number of completions of each reply.
        """
        replies: dict[int, dict[str, Any]] = {}
        losses = 0
        while len(replies) < len(bodies):
            lost: dict[Server, ServerGoneError] = {}
            waiting = [number for number in range(len(bodies)) if number not in replies]
            with ThreadPoolExecutor(min(self._setup.options.slots, len(waiting))) as pool:
                asked = {
                    pool.submit(self._ask, self._server_of(bodies[number]), bodies[number]): number
                    for number in waiting
                }
                for future in as_completed(asked):
                    number = asked[future]
                    try:
                        replies[number] = future.result()
                        answered(len(replies[number]["choices"]))
                    except ServerGoneError as gone:
                        lost[self._server_of(bodies[number])] = gone

            losses += bool(lost)
            if losses > MOST_LOSSES:
                raise EngineLostError(
                    f"Servers were lost {losses} times during the same requests: {'; '.join(map(str, lost.values()))}. "
                    f"Read their output."
                )
            for server, loss in lost.items():
                self._restore(server, loss)
        return [replies[number] for number in range(len(bodies))]

    def _server_of(self, body: _Body) -> Server:
        """The server of a prompt: prompts go to the servers in turn, and each process begins with a different server."""
        return self._servers[(body.request + rank()) % len(self._servers)]

    def _ask(self, server: Server, body: _Body) -> dict[str, Any]:
        """Send one request. Raises ServerGoneError, also if the answer came from weights other than the current ones."""
        reply: dict[str, Any] = server.post(
            "/inference/v1/generate", body.content, seconds=ANSWER_SECONDS
        )
        for choice in reply["choices"]:
            wrote = {span["version"] for span in choice["weight_versions"]}
            if wrote == {self._server_weights}:
                continue
            foreign = [
                name
                for name in wrote
                if name not in (UNTRAINED, BROKEN) and not name.startswith(f"{self._run}:")
            ]
            if foreign:
                raise EngineLostError(
                    f"The server {server.url} answers with the weights {foreign[0]} of another run. A server serves one run at "
                    f"a time: stop the other, or start a server of your own (gpg-vl serve --port) and name it in "
                    f"rollout.servers."
                )
            raise ServerGoneError(f"{server.url}: it answered with the weights {sorted(wrote)}")
        return reply

    def _complete(
        self, request: RolloutRequest, choices: Sequence[Mapping[str, Any]]
    ) -> tuple[Completion, ...]:
        completions = []
        for choice in choices:
            logprobs = [place["logprob"] for place in choice["logprobs"]["content"]]
            answer = Answer(token_ids=choice["token_ids"], logprobs=logprobs)
            completions.append(
                make_completion(answer, request.prompt, self._setup.processing, self._version)
            )
        self._counters.count(request.prompt, completions)
        return tuple(completions)

    # ---- what it has done

    def rest(self) -> None:
        """Does nothing: servers have their own memory."""

    def counters(self) -> Mapping[str, float]:
        return {**asdict(self._counters), "servers_lost": self._servers_lost}

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()
