"""The KV cache of the sequences that are being decoded: a fixed number of slots, each with its own length.

A sequence is a prompt and the tokens decoded after it. The answers of a group share their prompt: `SharedSlots` stores its keys
once and reads them once for the whole group, `Slots` stores a copy in each slot. `models.key_sharing` decides which is faster.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Slots:
    """Each slot holds its whole sequence, the keys of its prompt copied in. Called by the text tower, once per layer.

    cache: [L, 2, S, Hkv, W, D], the keys and values of S sequences of at most W tokens.
    """

    def __init__(self, like_L_2_H_P_D: Tensor, *, slots: int, width: int) -> None:
        layers, two, heads, _, size = like_L_2_H_P_D.shape
        self.cache = like_L_2_H_P_D.new_zeros(layers, two, slots, heads, width, size)
        self.length_S = torch.zeros(slots, dtype=torch.long, device=self.cache.device)
        """Number of tokens in each slot, which is also the index of the next token."""
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
        """Called before the layers of a decoding call: compute which keys each slot's new token attends to, including
        itself."""
        place_W = torch.arange(self.attended, device=self.cache.device)
        self._mask = (place_W[None, :] <= self.length_S[:, None])[:, None, None, :]

    def end(self) -> None:
        """Called after the layers. The lengths of unused slots grow too, but are reset when a sequence is admitted."""
        self.length_S.add_(1).clamp_(max=self.cache.shape[4] - 1)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        keys, values = self.cache[layer]
        keys[self._every, :, self.length_S] = key[:, :, 0]
        values[self._every, :, self.length_S] = value[:, :, 0]

        q, k, v = _fold(query, keys), keys[:, :, : self.attended], values[:, :, : self.attended]
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=scale)
        return out.reshape(query.shape)

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order."""
        index = torch.tensor(slots, device=self.cache.device)
        self.cache, self.length_S = self.cache[:, :, index], self.length_S[index]
        self._every = self._every[: len(slots)]

    @property
    def key_bytes(self) -> int:
        """Bytes of all stored keys and values."""
        return self.cache.nbytes


class SharedSlots:
    """Each slot holds only the decoded tokens; a prompt is stored once. Called by the text tower, once per layer.

    Attention has two parts, over the keys of the prompt for all its answers together and over a slot's own, joined by
    their log-sum-exps. In exact arithmetic that is attention over both; in floating point it differs by rounding.

    cache: [L, 2, S, Hkv, W, D], keys and values of at most W tokens of each of S answers.
    """

    def __init__(self, like_L_2_H_P_D: Tensor, *, slots: int, width: int) -> None:
        layers, two, heads, _, size = like_L_2_H_P_D.shape
        self.cache = like_L_2_H_P_D.new_zeros(layers, two, slots, heads, width, size)
        self.length_S = torch.zeros(slots, dtype=torch.long)
        """Number of answer tokens in each slot, which is also the index of the next token."""
        self.attended = width
        self._every = torch.arange(slots)
        self._prompts: list[Tensor] = [like_L_2_H_P_D.new_empty(0)] * slots
        """The prompt of each slot; the slots of a group share one object, which is freed when the last of them changes."""
        self._runs: list[tuple[Tensor, int]] = []
        self._order_S = self._back_S = self._every
        self._mask: Tensor | None = None

    def admit(self, prefix_L_2_H_P_D: Tensor, slots: Sequence[int]) -> None:
        """Start sequences that continue this prompt, which is stored without a copy."""
        for slot in slots:
            self._prompts[slot] = prefix_L_2_H_P_D
        self.length_S[torch.tensor(slots)] = 0
        self._runs = []

    def begin(self) -> None:
        """Called before the layers of a decoding call: find the slots that share a prompt, and which own keys each new
        token attends to."""
        if not self._runs:
            self._group()
        place_W = torch.arange(self.attended)
        hidden = (place_W[None, :] > self.length_S[:, None])[:, None, None, :]
        self._mask = torch.zeros_like(hidden, dtype=self.cache.dtype).masked_fill_(
            hidden, -torch.inf
        )

    def end(self) -> None:
        """Called after the layers. The lengths of unused slots grow too, but are reset when a sequence is admitted."""
        self.length_S.add_(1).clamp_(max=self.cache.shape[4] - 1)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        keys, values = self.cache[layer]
        keys[self._every, :, self.length_S] = key[:, :, 0]
        values[self._every, :, self.length_S] = value[:, :, 0]

        q, k, v = _fold(query, keys), keys[:, :, : self.attended], values[:, :, : self.attended]
        own, own_sum = _attend(q, k, v, scale, self._mask)
        prompt, prompt_sum = self._attend_prompts(layer, q, scale)

        # the share of the prompt in the sum of both parts' exponentials
        share = torch.sigmoid(prompt_sum - own_sum)[..., None]
        joined = torch.lerp(own.to(share.dtype), prompt.to(share.dtype), share)
        return joined.to(query.dtype).reshape(query.shape)

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order."""
        index = torch.tensor(slots)
        self.cache, self.length_S = self.cache[:, :, index], self.length_S[index]
        self._every = self._every[: len(slots)]
        self._prompts = [self._prompts[slot] for slot in slots]
        self._runs = []

    @property
    def key_bytes(self) -> int:
        """Bytes of all stored keys and values."""
        prompts = {id(prompt): prompt.nbytes for prompt in self._prompts}
        return self.cache.nbytes + sum(prompts.values())

    def _group(self) -> None:
        """Order the slots so that slots with the same prompt are adjacent."""
        groups: dict[int, list[int]] = {}
        for slot, prompt in enumerate(self._prompts):
            groups.setdefault(id(prompt), []).append(slot)
        self._runs = [(self._prompts[group[0]], len(group)) for group in groups.values()]
        self._order_S = torch.tensor([slot for group in groups.values() for slot in group])
        self._back_S = self._order_S.argsort()

    def _attend_prompts(self, layer: int, q: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
        """[S, Hkv, heads that share a key head, D] and its log-sum-exps: each prompt is read once, for all its slots."""
        _, key_heads, share, size = q.shape
        outs, sums = [], []
        ordered = q[self._order_S].split([count for _, count in self._runs])
        for rows, (prompt_L_2_H_P_D, count) in zip(ordered, self._runs, strict=True):
            folded = rows.transpose(0, 1).reshape(1, key_heads, count * share, size)
            keys, values = prompt_L_2_H_P_D[layer]
            out, log_sum = _attend(folded, keys[None], values[None], scale)
            outs.append(out.reshape(key_heads, count, share, size))
            sums.append(log_sum.reshape(key_heads, count, share))
        out, log_sum = torch.cat(outs, dim=1), torch.cat(sums, dim=1)
        return out.transpose(0, 1)[self._back_S], log_sum.transpose(0, 1)[self._back_S]


def _fold(query: Tensor, keys: Tensor) -> Tensor:
    """[S, heads, 1, D] -> [S, Hkv, heads that share a key head, D]: query heads that share a key head become queries of it,
    so no key is repeated."""
    slots, heads, _, size = query.shape
    return query.reshape(slots, keys.shape[1], heads // keys.shape[1], size)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Q, D] and the log-sum-exp [B, H, Q] of its scores, in float32 at least.

    On a CPU it calls the kernel behind `scaled_dot_product_attention` directly, because only that returns the log-sum-exp.
    """
    out: Tensor
    log_sum: Tensor
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=mask, scale=scale
    )
    return out, log_sum
