"""The sampling distribution that all engines share.

Sampling is always explicit: a checkpoint's own generation_config is never consulted. (Released Qwen2-VL checkpoints ship
near-greedy settings there, under which all answers of a group would be the same.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling settings.

    Example: `Sampling(group_size=8, temperature=1.0, max_new_tokens=256, seed=0)`; `temperature=0` is greedy.
    """

    group_size: int
    temperature: float
    max_new_tokens: int
    seed: int
    top_p: float = 1.0
    """Below 1 only the most likely tokens that together reach this probability are sampled. Evaluation only."""
    top_k: int = 0
    """Above 0 only the `top_k` most likely tokens are sampled. Evaluation only."""
    with_greedy: bool = False
    """Whether each prompt also gets a greedy answer, as the last of its completions."""

    @property
    def answers(self) -> int:
        """Completions of each prompt."""
        return self.group_size + self.with_greedy


def uniforms(sampling: Sampling, draw: int, member: int) -> np.ndarray:
    """The random numbers in [0, 1) of one completion, one per token: float64 [max_new_tokens].

    Counter-based (Philox), keyed by seed, draw and member.
    """
    key = np.array([sampling.seed & (2**64 - 1), (draw << 20) + member], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(sampling.max_new_tokens)


def draw_tokens(
    logits_B_V: Tensor, sampling: Sampling, random_B: Tensor, greedy_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample tokens. Returns them and their log-probs under the distribution they were sampled from (under the model if
    greedy).

    logits_B_V: already divided by the temperature.
    greedy_B: bool, True where the likeliest token is taken; None: in no row.
    """
    logp_B_V = torch.log_softmax(logits_B_V, dim=-1)

    if sampling.temperature == 0:
        token_B = logp_B_V.argmax(dim=-1)
    else:
        if sampling.top_k > 0 or sampling.top_p < 1.0:
            kept_B_V = truncate(logp_B_V, top_k=sampling.top_k, top_p=sampling.top_p)
            logp_B_V = torch.log_softmax(kept_B_V, dim=-1)
        token_B = choose(logp_B_V, random_B)
    if greedy_B is not None:
        token_B = torch.where(greedy_B, logp_B_V.argmax(dim=-1), token_B)
    return token_B, logp_B_V.gather(1, token_B[:, None])[:, 0]


def truncate(logp_B_V: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Log-probs with the tokens outside top_k and top_p at minus infinity (not normalised again)."""
    if top_k > 0:
        least = logp_B_V.topk(min(top_k, logp_B_V.shape[1]), dim=1).values[:, -1:]
        logp_B_V = logp_B_V.masked_fill(logp_B_V < least, -torch.inf)
    if top_p < 1.0:
        ordered, order = logp_B_V.sort(dim=1, descending=True)
        probability = ordered.softmax(dim=1)
        outside = (
            probability.cumsum(dim=1) - probability >= top_p
        )  # the token that crosses top_p is kept
        logp_B_V = logp_B_V.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return logp_B_V


def choose(logp_B_V: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's random number.

    A token of probability 0 is never chosen: its step in the cumulative sum has no width.
    """
    # sum integers, because a sum of floats is not deterministic on a GPU
    width_B_V = logp_B_V.to(torch.float64, copy=True).exp_().mul_(2**50).round_().long()
    cumulative_B_V = width_B_V.cumsum_(dim=1)
    total_B = cumulative_B_V[:, -1]
    threshold_B = torch.minimum((uniforms_B * total_B).long(), total_B - 1)
    return torch.searchsorted(cumulative_B_V, threshold_B[:, None], right=True)[:, 0]
