"""PrefixGrouper (arXiv:2506.05433) on the training step alone; it has no rollout.

Its published examples attend with FlashAttention and know the positions of text. Here its `ungroup`, `group` and masks are
its own, attention is SDPA, and vision and positions are ours: without them it would not compute the same gradient. The head
scores every position of the row, prompt included, as its tutorial does.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prefix_grouper import PrefixGrouper
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from benchmarks.anchor import GivenStep, Question, Row, completions
from benchmarks.learner import LEARNING_RATE, MAX_GRAD_NORM
from benchmarks.meter import Meter
from benchmarks.ours import Ours
from gpg_vl.types import Prompt

NAME = "prefix_grouper_sdpa"


def _sdpa(q: Tensor, k: Tensor, v: Tensor, present: Tensor, *, scaling: float) -> Tensor:
    """Attention of the last queries on all keys, [b, heads, s, d] to [b, s, heads, d]. `present` is True at real keys."""
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if queries == keys and bool(present.all()):
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
    square = torch.ones(queries, keys, dtype=torch.bool)
    itself = square.tril(keys - queries) & square.triu(
        keys - queries
    )  # a padding query sees itself, not nothing
    visible = square.tril(keys - queries) & present[:, None, None, :] | itself
    return scaled_dot_product_attention(
        q, k, v, visible, scale=scaling, enable_gqa=grouped
    ).transpose(1, 2)


def _attend(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    prefix_grouper: PrefixGrouper,
    **_: Any,
) -> tuple[Tensor, None]:
    return prefix_grouper.forward(partial(_sdpa, scaling=scaling), q, k, v), None


class Grouped:
    """Training steps on given completions, one group per pass."""

    def __init__(self, checkpoint: Path, row: Row, *, checkpointing: bool = False) -> None:
        self.row = row
        self.ours = Ours(checkpoint, row, "shared", checkpointing=checkpointing, masked=False)
        self.model = self.ours.policy.model.train()
        AttentionInterface.register(NAME, _attend)
        self.model.set_attn_implementation({"text_config": NAME})  # the vision tower keeps its own
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0
        )

    def log_probs(
        self, prompt: Prompt, tokens_G_T: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """log pi [G, T] of a group's completions, and True where there is a token."""
        rows = [torch.tensor(t) for t in tokens_G_T]
        ids_G_T = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask_G_T = nn.utils.rnn.pad_sequence(
            [torch.ones_like(t) for t in rows], batch_first=True
        ).bool()
        prompt_1_P, mask_1_P = (
            prompt.input_ids_T[None],
            torch.ones(1, prompt.length, dtype=torch.bool),
        )
        grouper = PrefixGrouper.from_ungrouped_masks(mask_1_P, mask_G_T, group_sizes=len(rows))
        ids = grouper.concat_input(prompt_1_P, mask_1_P, ids_G_T, mask_G_T)
        following = torch.cat([torch.arange(len(t)) + prompt.next_position for t in rows])
        positions = torch.cat([prompt.positions_3_T, following.expand(3, -1)], dim=1)[:, None]
        features = torch.cat(
            list(
                self.model.model.get_image_features(
                    prompt.pixel_values_N, prompt.grid_thw_I_3
                ).pooler_output
            )
        )
        embeddings = self.model.get_input_embeddings()(ids)
        image = torch.zeros_like(ids, dtype=torch.bool)
        image[0, : prompt.length] = prompt.image_mask_T
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings.masked_scatter(
                image[..., None].expand_as(embeddings), features
            ),
            position_ids=positions,
            attention_mask={"full_attention": None},
            use_cache=False,
            prefix_grouper=grouper,
        ).last_hidden_state
        logits = self.model.get_output_embeddings()(hidden)
        _, _, logits_G_T_V, present_G_T = grouper.split_output(logits, include_prefix_last=1)
        targets_G_T = grouper.convert_padding(ids_G_T, mask_G_T, padding_mode="right")
        logits_G_T_V = logits_G_T_V[:, :-1]
        picked = logits_G_T_V.gather(2, targets_G_T[..., None])[..., 0]
        return picked - logits_G_T_V.logsumexp(dim=2), present_G_T[:, 1:]

    def backward(
        self,
        prompts: Sequence[Prompt],
        tokens_P_G_T: Sequence[Sequence[Sequence[int]]],
        rewards_P_G: Sequence[Sequence[float]],
    ) -> None:
        """Add the gradient of GPG's loss, averaged over tokens, alpha 1."""
        count = sum(len(t) for group in tokens_P_G_T for t in group)
        for prompt, tokens, rewards in zip(prompts, tokens_P_G_T, rewards_P_G, strict=True):
            advantages_G = torch.tensor(rewards) - torch.tensor(rewards).mean()
            logp_G_T, present_G_T = self.log_probs(prompt, tokens)
            (-(advantages_G[:, None] * logp_G_T * present_G_T).sum() / count).backward()

    def gradient(self, asked: Sequence[Question], given: GivenStep) -> dict[str, Tensor]:
        """As `Ours.gradient`, of GPG's loss with the mean over tokens."""
        self._optimizer.zero_grad(set_to_none=True)
        prompts = [prompt for _, prompt in self.ours.encode(asked)]
        self.backward(prompts, given.tokens_P_G_T, given.rewards_P_G)
        return {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None
        }

    def step(
        self,
        asked: Sequence[Question],
        tokens_P_G_T: Sequence[Sequence[Sequence[int]]],
        number: int,
        meter: Meter,
    ) -> None:
        start = time.perf_counter()
        prompts = [prompt for _, prompt in self.ours.encode(asked)]
        meter.rollout_took(time.perf_counter() - start)
        self._optimizer.zero_grad(set_to_none=True)
        self.backward(
            prompts, tokens_P_G_T, [self.row.rewards(number + i) for i in range(len(prompts))]
        )
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        meter.step_ended()


def run(grouped: Grouped, asked: Sequence[Question], *, steps: int, warmup: int) -> Meter:
    """Measure `steps` training steps after `warmup`, each on completions of the forced length."""
    row = grouped.row
    meter = Meter(*grouped.ours.towers(), warmup=warmup)
    size = row.prompts_per_step
    meter.start()
    for i in range(warmup + steps):
        grouped.step(asked[i * size : (i + 1) * size], completions(row, i), i * size, meter)
    return meter
