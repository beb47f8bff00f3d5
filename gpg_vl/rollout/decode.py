"""Decoding in slots: a fixed number of sequences, each with its own length, one token each per call.

On a CPU the linear layers are copied once for all calls, in the layout in which products of few rows are fast
(`models.blocked`). On CUDA the keys of a prompt are copied for each of its answers (`rollout.slots`). So all shapes are constant
and a call can be one recorded CUDA graph.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import functional_call

from gpg_vl.models.blocked import WORTH
from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import BlockLayers, CastHead, CastMatrices, Decode, Predict
from gpg_vl.rollout.slots import SharedSlots, Slots

BUCKET = 128
"""On CUDA the attended width grows in steps of this many tokens; each width needs its own graph."""


def decode(
    policy: Policy, slots: Slots | SharedSlots, token_S: Tensor, position_S: Tensor
) -> Tensor:
    """The hidden state [S, H] after each slot's token. Writes the token's keys and values into its slot."""
    slots.begin()
    hidden_S_H: Tensor = policy(Decode(token_S=token_S, position_S=position_S, attention=slots))
    slots.end()
    return hidden_S_H


class Head:
    """The logits of one `generate`: the head's weight is cast, and on a CPU arranged, once for all its calls.

    rows: of each call, about. calls: at most so many.
    """

    def __init__(self, policy: Policy, *, rows: int, calls: int, temperature: float) -> None:
        self._policy, self._temperature = policy, temperature
        self._head_V_H: Tensor = policy(CastHead(rows=rows if calls >= WORTH else 0))

    def __call__(self, hidden_B_H: Tensor) -> Tensor:
        logits_B_V: Tensor = self._policy(
            Predict(hidden_B_H=hidden_B_H, head_V_H=self._head_V_H, temperature=self._temperature)
        )
        return logits_B_V


class PlainDecoder:
    """`decode` wherever shapes may change from call to call.

    calls: at most so many; few do not pay for a copy of the layers.
    """

    needs_constant_shapes = False

    def __init__(self, policy: Policy, slots: Slots | SharedSlots, calls: int) -> None:
        self._policy, self._slots = policy, slots
        rows = len(slots.length_S)
        worth = policy.device.type == "cpu" and calls >= WORTH
        self._layers = policy(BlockLayers(rows=rows)) if worth else nullcontext()

    def __call__(self, token_S: Tensor, position_S: Tensor, longest: int) -> Tensor:
        """longest: tokens of the fullest slot."""
        self._slots.attended = longest
        with self._layers:
            return decode(self._policy, self._slots, token_S, position_S)


class GraphDecoder:
    """`decode` on CUDA, recorded once per attended width and replayed.

    Under autocast every replay would cast the matrices again. So they are cast once per set of weights and used instead of the
    parameters, with the same result as autocast's own cast.
    """

    needs_constant_shapes = True

    def __init__(self, policy: Policy, slots: Slots, autocast: torch.dtype | None) -> None:
        self._policy, self._slots, self._autocast = policy, slots, autocast
        self._cast = policy(CastMatrices(dtype=autocast)) if autocast else {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        count = len(slots.length_S)
        self._token_S = torch.zeros(count, dtype=torch.long, device=slots.cache.device)
        self._position_S = torch.zeros_like(self._token_S)

    def __call__(self, token_S: Tensor, position_S: Tensor, longest: int) -> Tensor:
        """longest: tokens of the fullest slot."""
        self._token_S.copy_(token_S)
        self._position_S.copy_(position_S)
        width = min(self._slots.cache.shape[4], -(-longest // BUCKET) * BUCKET)
        self._slots.attended = width
        if width not in self._graphs:
            self._graphs[width] = self._record()
        graph, hidden_S_H = self._graphs[width]
        graph.replay()
        return hidden_S_H

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        lengths = self._slots.length_S.clone()

        # warm up first: libraries allocate workspaces in their first calls, which must not be part of the graph
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._run()
                self._slots.length_S.copy_(lengths)
        torch.cuda.current_stream().wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden_S_H = self._run()
        self._slots.length_S.copy_(lengths)
        return graph, hidden_S_H

    def _run(self) -> Tensor:
        device = self._token_S.device.type
        enabled = self._autocast is not None
        with torch.autocast(device, self._autocast, enabled=enabled, cache_enabled=False):
            return decode_with(
                self._cast, self._policy, self._slots, self._token_S, self._position_S
            )


def decode_with(
    matrices: dict[str, Tensor], policy: Policy, slots: Slots, token_S: Tensor, position_S: Tensor
) -> Tensor:
    """Run `decode` with these matrices instead of the policy's own."""
    if not matrices:
        return decode(policy, slots, token_S, position_S)

    # replace only what is named: an embedding tied to the head is a lookup, which is not cast
    slots.begin()
    request = Decode(token_S=token_S, position_S=position_S, attention=slots)
    hidden_S_H: Tensor = functional_call(policy, matrices, (request,), tie_weights=False)
    slots.end()
    return hidden_S_H
