"""Decoding in slots: a fixed number of sequences, each with its own length, one token each per call.

A slot holds the keys and values of one sequence: those of its prompt, copied in when it is admitted, and those of the tokens
decoded since. All shapes stay the same from call to call, so that on CUDA a call is one recorded graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention

from gpg_vl.models.policy import Policy
from gpg_vl.models.requests import CastMatrices, Decode

BUCKET = 128
"""On CUDA the attended width grows in steps of so many tokens: each step is a graph of its own."""


class Slots:
    """Keys and values of the sequences that are being decoded. Called by the text tower, once per layer.

    cache: [L, 2, S, Hkv, W, D], the keys and values of S sequences of at most W tokens.
    """

    def __init__(self, like_L_2_H_P_D: Tensor, *, slots: int, width: int) -> None:
        layers, two, heads, _, size = like_L_2_H_P_D.shape
        self.cache = like_L_2_H_P_D.new_zeros(layers, two, slots, heads, width, size)
        self.length_S = torch.zeros(slots, dtype=torch.long, device=self.cache.device)
        """Tokens that a slot holds; the next one goes there."""
        self.attended = width
        self._every = torch.arange(slots, device=self.cache.device)
        self._mask: Tensor | None = None

    def admit(self, prefix_L_2_H_P_D: Tensor, slots: Sequence[int]) -> None:
        """Start sequences that continue this prompt."""
        length = prefix_L_2_H_P_D.shape[3]
        index = torch.tensor(slots, device=self.cache.device)
        self.cache[:, :, index, :, :length] = prefix_L_2_H_P_D[:, :, None]
        self.length_S[index] = length

    def begin(self) -> None:
        """Before the layers of one call: what each slot's new token may see, itself included."""
        place_W = torch.arange(self.attended, device=self.cache.device)
        self._mask = (place_W[None, :] <= self.length_S[:, None])[:, None, None, :]

    def end(self) -> None:
        """After the layers. A slot that is not in use counts on; it is admitted anew before it means anything."""
        self.length_S.add_(1).clamp_(max=self.cache.shape[4] - 1)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        keys, values = self.cache[layer]
        keys[self._every, :, self.length_S] = key[:, :, 0]
        values[self._every, :, self.length_S] = value[:, :, 0]
        slots, heads, _, size = query.shape
        # the query heads that share a key head stand side by side as queries of it: nothing is repeated
        q = query.reshape(slots, keys.shape[1], heads // keys.shape[1], size)
        k, v = keys[:, :, : self.attended], values[:, :, : self.attended]
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=scale)
        return out.reshape(slots, heads, 1, size)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all others; the kept ones stand in this order."""
        index = torch.tensor(slots, device=self.cache.device)
        self.cache, self.length_S = self.cache[:, :, index], self.length_S[index]
        self._every = self._every[: len(slots)]


def decode(policy: Policy, slots: Slots, token_S: Tensor, position_S: Tensor) -> Tensor:
    """[S, H]: the hidden state after each slot's token, which is written into its slot."""
    slots.begin()
    hidden_S_H: Tensor = policy(Decode(token_S=token_S, position_S=position_S, attention=slots))
    slots.end()
    return hidden_S_H


class GraphDecoder:
    """`decode` on CUDA, recorded once per attended width and replayed.

    Under autocast the matrices would be cast again in each replay, so they are cast once per set of weights and used in
    place of the parameters: the same numbers as autocast's own cast.
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

        # libraries allocate their workspaces in the first calls, which must not become part of the graph
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
    """`decode` while the policy computes with these matrices in place of its own."""
    if not matrices:
        return decode(policy, slots, token_S, position_S)

    # tied weights stay apart: an embedding that shares the head's weights is not a matrix product
    slots.begin()
    request = Decode(token_S=token_S, position_S=position_S, attention=slots)
    hidden_S_H: Tensor = functional_call(policy, matrices, (request,), tie_weights=False)
    slots.end()
    return hidden_S_H
