"""Decoding in slots: a fixed number of sequences, each with its own length, one token each per call.

On CUDA the keys of a prompt are copied for each of its answers (`rollout.slots`). So all shapes are constant and a call can be
one recorded CUDA graph.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import CastMatrices, Decode
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


class GraphDecoder:
    """`decode` on CUDA, recorded once per attended width and replayed.

    Under autocast every replay would cast the matrices again. So they are cast once per set of weights and used instead of the
    parameters, with the same result as autocast's own cast.
    """

    def __init__(self, policy: Policy, slots: Slots, autocast: torch.dtype | None) -> None:
        self._policy, self._slots, self._autocast = policy, slots, autocast
        self._cast = policy(CastMatrices(dtype=autocast)) if autocast else {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        count = len(slots.length_S)
        self._token_S = torch.zeros(count, dtype=torch.long, device=slots.cache.device)
        self._position_S = torch.zeros_like(self._token_S)

    def __call__(self, token_S: Tensor, position_S: Tensor) -> Tensor:
        self._token_S.copy_(token_S)
        self._position_S.copy_(position_S)
        width = self._slots.attended
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
