"""The keys and values of the sequences that are being decoded: a fixed number of slots, each with its own length.

A sequence is a prompt and the tokens decoded since. The answers of a group have the prompt in common: `SharedSlots` holds its
keys once and reads them once for the whole group, `Slots` holds a copy in each slot. `models.key_sharing` counts which is faster.
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

        q, k, v = _fold(query, keys), keys[:, :, : self.attended], values[:, :, : self.attended]
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=scale)
        return out.reshape(query.shape)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all others; the kept ones are in this order."""
        index = torch.tensor(slots, device=self.cache.device)
        self.cache, self.length_S = self.cache[:, :, index], self.length_S[index]
        self._every = self._every[: len(slots)]

    @property
    def key_bytes(self) -> int:
        """Of all keys and values that are held."""
        return self.cache.nbytes


class SharedSlots:
    """Each slot holds the tokens decoded since; a prompt is held once. Called by the text tower, once per layer.

    Attention has two parts, over the keys of the prompt for all its answers together and over a slot's own, joined by
    their log-sum-exps. In exact arithmetic that is attention over both; in floating point it differs by rounding.

    cache: [L, 2, S, Hkv, W, D], keys and values of at most W tokens of each of S answers.
    """

    def __init__(self, like_L_2_H_P_D: Tensor, *, slots: int, width: int) -> None:
        layers, two, heads, _, size = like_L_2_H_P_D.shape
        self.cache = like_L_2_H_P_D.new_zeros(layers, two, slots, heads, width, size)
        self.length_S = torch.zeros(slots, dtype=torch.long)
        """Tokens of the answer that a slot holds; the next one goes there."""
        self.attended = width
        self._every = torch.arange(slots)
        self._prompts: list[Tensor] = [like_L_2_H_P_D.new_empty(0)] * slots
        """Of each slot: the same object in the slots of a group. It is freed when the last of them takes another."""
        self._runs: list[tuple[Tensor, int]] = []
        self._order_S = self._back_S = self._every
        self._mask: Tensor | None = None

    def admit(self, prefix_L_2_H_P_D: Tensor, slots: Sequence[int]) -> None:
        """Start sequences that continue this prompt, which is kept as it is."""
        for slot in slots:
            self._prompts[slot] = prefix_L_2_H_P_D
        self.length_S[torch.tensor(slots)] = 0
        self._runs = []

    def begin(self) -> None:
        """Before the layers of one call: which slots have a prompt in common, and what each new token may see of its own."""
        if not self._runs:
            self._group()
        place_W = torch.arange(self.attended)
        hidden = (place_W[None, :] > self.length_S[:, None])[:, None, None, :]
        self._mask = torch.zeros_like(hidden, dtype=self.cache.dtype).masked_fill_(
            hidden, -torch.inf
        )

    def end(self) -> None:
        """After the layers. A slot that is not in use counts on; it is admitted anew before it means anything."""
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
        """Drop all others; the kept ones are in this order."""
        index = torch.tensor(slots)
        self.cache, self.length_S = self.cache[:, :, index], self.length_S[index]
        self._every = self._every[: len(slots)]
        self._prompts = [self._prompts[slot] for slot in slots]
        self._runs = []

    @property
    def key_bytes(self) -> int:
        """Of all keys and values that are held."""
        prompts = {id(prompt): prompt.nbytes for prompt in self._prompts}
        return self.cache.nbytes + sum(prompts.values())

    def _group(self) -> None:
        """Order the slots so that those of a prompt follow each other."""
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
    """[S, heads, 1, D] -> [S, Hkv, heads that share a key head, D]: they are queries of it, so that no key is repeated."""
    slots, heads, _, size = query.shape
    return query.reshape(slots, keys.shape[1], heads // keys.shape[1], size)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Q, D] and the log-sum-exp [B, H, Q] of its scores, in float32 at least.

    The kernel behind `scaled_dot_product_attention` on a CPU, which hands out the second only if it is called by its name.
    """
    out: Tensor
    log_sum: Tensor
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=mask, scale=scale
    )
    return out, log_sum
