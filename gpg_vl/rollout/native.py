"""The native engine: the policy itself answers, in this process.

Image and prompt are computed once per prompt; the key-value cache is then repeated for the members of the group, and only
the answers are decoded G-fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gpg_vl.models.layout import PADDING, pack, sibling_mask
from gpg_vl.models.load import Processing
from gpg_vl.models.policy import Policy
from gpg_vl.rollout.engine import Sampling, choose, truncate, uniforms
from gpg_vl.types import Completion, FinishReason, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """What an engine has computed so far, for the counters that the run logs."""

    vision_patches: int = 0
    prefilled_tokens: int = 0
    decoded_tokens: int = 0


class NativeEngine:
    """Samples with a `Policy` on its own device.

    prompts_per_batch: prompts prefilled and decoded together.
    autocast: dtype of the forward pass, the same as in training; None computes in the weights' own.
    """

    def __init__(
        self, policy: Policy, processing: Processing, *, prompts_per_batch: int, autocast: torch.dtype | None = None
    ) -> None:
        self._policy = policy
        self._tokenizer = processing.tokenizer
        self._tokens = processing.tokens
        self._prompts_per_batch = prompts_per_batch
        self._autocast = autocast
        self.work = WorkDone()

    def sync(self, version: int) -> None:
        """Nothing to do: the engine reads the weights that are trained."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        draws: Sequence[int],
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        answers: list[tuple[Completion, ...]] = []
        training = self._policy.training
        self._policy.eval()
        device = self._policy.never_sampled_V.device
        try:
            with torch.no_grad(), torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
                for start in range(0, len(prompts), self._prompts_per_batch):
                    part = slice(start, start + self._prompts_per_batch)
                    answers += self._batch(prompts[part], sampling, draws[part], device)
                    if done:
                        done(len(answers[start:]) * sampling.group_size)
        finally:
            self._policy.train(training)
        return answers

    def _batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, draws: Sequence[int], device: torch.device
    ) -> list[tuple[Completion, ...]]:
        size = sampling.group_size
        hidden_B_H, cache, visible_B_S = self._prefill(prompts, device)
        cache.batch_repeat_interleave(size)
        visible_B_S = visible_B_S.repeat_interleave(size, dim=0)
        hidden_B_H = hidden_B_H.repeat_interleave(size, dim=0)
        following_B = torch.tensor([p.next_position for p in prompts], device=device).repeat_interleave(size)
        random_B_T = np.stack([uniforms(sampling, draw, member) for draw in draws for member in range(size)])
        random_B_T = torch.from_numpy(random_B_T).to(device)
        ends = torch.tensor(self._tokens.ends, device=device)
        open_B = torch.ones(len(hidden_B_H), dtype=torch.bool, device=device)
        tokens_B_T, logp_B_T, open_B_T = [], [], []
        for t in range(sampling.max_new_tokens):
            token_B, logp_B = self._sample(hidden_B_H, sampling, random_B_T[:, t])
            token_B = torch.where(open_B, token_B, self._tokens.pad)
            tokens_B_T.append(token_B)
            logp_B_T.append(logp_B)
            open_B_T.append(open_B)
            open_B = open_B & ~torch.isin(token_B, ends)
            if t + 1 == sampling.max_new_tokens or not bool(open_B.any()):
                break
            visible_B_S = torch.cat([visible_B_S, visible_B_S.new_ones(len(visible_B_S), 1)], dim=1)
            hidden_B_H = self._decode(token_B, following_B + t, visible_B_S, cache)
        counted_B = torch.stack(open_B_T, dim=1).sum(dim=1).tolist()
        self.work = replace(self.work, decoded_tokens=self.work.decoded_tokens + sum(counted_B))
        tokens, logps = torch.stack(tokens_B_T, dim=1).tolist(), torch.stack(logp_B_T, dim=1).tolist()
        flat = [
            self._completion(ids[:n], logp[:n], prompts[i // size].prefill)
            for i, (ids, logp, n) in enumerate(zip(tokens, logps, counted_B, strict=True))
        ]
        return [tuple(flat[i * size : (i + 1) * size]) for i in range(len(prompts))]

    def _prefill(self, prompts: Sequence[Prompt], device: torch.device) -> tuple[Tensor, DynamicCache, Tensor]:
        """Last hidden state, key-value cache and the mask of real prompt tokens, one row per prompt."""
        rows = pack(prompts, [[()] for _ in prompts], pad=self._tokens.pad, shared_prefix=True).to(device)
        policy = self._policy
        cache = DynamicCache(config=policy.model.config.get_text_config())
        hidden = policy.tower_states(
            rows.positions_3_B_S, sibling_mask(rows.segments_B_S), cache=cache, embeddings=policy.embed(rows)
        )
        visible_B_S = rows.segments_B_S != PADDING
        last_B = visible_B_S.sum(dim=1) - 1
        patches = 0 if rows.pixel_values_N is None else len(rows.pixel_values_N)
        self.work = replace(
            self.work,
            vision_patches=self.work.vision_patches + patches,
            prefilled_tokens=self.work.prefilled_tokens + int(visible_B_S.sum()),
        )
        return hidden[torch.arange(len(prompts), device=device), last_B], cache, visible_B_S

    def _decode(self, token_B: Tensor, position_B: Tensor, visible_B_S: Tensor, cache: DynamicCache) -> Tensor:
        policy = self._policy
        positions_3_B_1 = position_B[None, :, None].expand(3, -1, -1)
        embeddings = policy.embed_tokens(token_B[:, None])
        return policy.tower_states(positions_3_B_1, visible_B_S[:, None, None, :], cache=cache, embeddings=embeddings)[
            :, 0
        ]

    def _sample(self, hidden_B_H: Tensor, sampling: Sampling, random_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, and their log-probs under the distribution that they were drawn from (under the model if greedy)."""
        logits_B_V = self._policy.logits(hidden_B_H, temperature=sampling.temperature or 1.0)
        logp_B_V = torch.log_softmax(logits_B_V, dim=-1)
        if sampling.temperature == 0:
            token_B = logp_B_V.argmax(dim=-1)
        else:
            logp_B_V = torch.log_softmax(truncate(logp_B_V, top_k=sampling.top_k, top_p=sampling.top_p), dim=-1)
            token_B = choose(logp_B_V, random_B)
        return token_B, logp_B_V.gather(1, token_B[:, None])[:, 0]

    def _completion(self, ids: list[int], logps: list[float], prefill: str) -> Completion:
        reason: FinishReason = "stop" if ids and ids[-1] in self._tokens.ends else "length"
        return Completion(
            token_ids=tuple(ids),
            logprobs=tuple(logps),
            finish_reason=reason,
            prefill=prefill,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
        )
