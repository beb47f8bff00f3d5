"""Proximal Policy Optimization (arXiv:1707.06347) as language models use it: a critic says what a token is compared with.

    reward_t = - kl_beta * (log mu - log pi_ref)_t, and at the last token of a completion r_i besides
    delta_t = reward_t + gamma * V_{t+1} - V_t,     A_t = sum_{l >= 0} (gamma * lam)^l delta_{t+l}     (GAE, arXiv:1506.02438)
    return_t = A_t + V_t
    loss = 1/K sum_i sum_t [ - min(ratio A'_t, clip(ratio) A'_t)
                             + value_coef / 2 * max((v_t - return_t)^2, (clip(v_t, V_t -+ value_clip) - return_t)^2) ]

mu sampled the token. V are the values under the weights before the first update of the step, v under those of now; after the
last token V is 0, also where the limit has cut an answer off. A' is A made standard over all K tokens of the step. The two
losses and their defaults are those of TRL's PPOTrainer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpg_vl.algorithms.algorithm import Algorithm, Credit, Critic, StepBatch
from gpg_vl.algorithms.clipped import Clip, surrogate_of
from gpg_vl.algorithms.whitening import VARIANCE_FLOOR, whiten


class Inputs(NamedTuple):
    """What a token's loss is made of: the fields of `clipped.Inputs`, and what its value is compared with."""

    advantage_K: Tensor
    """A'."""
    weight_K: Tensor
    """1/K."""
    old_logp_K: Tensor
    """Under the weights that sampled the token; NaN where those are the current ones."""
    reference_logp_K: Tensor
    """Under the weights the run began with; never read if `kl_beta` is 0."""
    old_value_K: Tensor
    """V."""
    return_K: Tensor


def ppo(
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.1,
    critic_learning_rate: float = 1e-4,
    kl_beta: float = 0.05,
    updates: int = 4,
) -> Algorithm:
    """PPO with its switches.

    gamma: what a reward one token later is multiplied by.
    lam: 1 compares what followed a token with the critic's forecast; 0 trusts the forecast of the next token instead.
    clip_low, clip_high: how far the ratio may move from 1, down and up, before a token has no more gradient.
    value_clip: how far a value may move from V before its loss has no more gradient.
    value_coef: weight of the critic's loss.
    critic_learning_rate: peak of the rate of the critic's own layer.
    kl_beta: weight of the divergence from the reference, which is taken off the reward.
    updates: optimizer updates on the same answers.
    """

    def credit(batch: StepBatch) -> Credit:
        old_K, value_K = batch.old_logp_K, batch.value_K
        assert old_K is not None, "the trainer computes old_logp for a clipped ratio"
        assert value_K is not None, "and values where there is a critic"

        reward_K = token_rewards(batch, kl_beta)
        advantage_K = gae(reward_K, value_K, batch.lengths_P_G, gamma=gamma, lam=lam)
        reference_K = batch.reference_logp_K
        return Credit(
            inputs=Inputs(
                advantage_K=whiten(advantage_K, batch),
                weight_K=torch.full_like(value_K, 1 / max(batch.counts.tokens, 1)),
                old_logp_K=old_K,
                reference_logp_K=old_K if reference_K is None else reference_K,
                old_value_K=value_K,
                return_K=advantage_K + value_K,
            ),
            trained_P_G=batch.lengths_P_G > 0,
            metrics={
                "alpha": None,
                "explained_variance": explained_variance(value_K, advantage_K + value_K, batch),
            },
        )

    def value_loss(value_K: Tensor, inputs: Inputs) -> Tensor:
        free_K, clipped_K = value_losses(value_K, inputs, value_clip)
        return value_coef * inputs.weight_K * torch.maximum(free_K, clipped_K)

    def observe_values(value_K: Tensor, inputs: Inputs) -> Mapping[str, Tensor]:
        free_K, clipped_K = value_losses(value_K, inputs, value_clip)
        return {
            "value_loss": torch.maximum(free_K, clipped_K),
            "value_clip_share": (clipped_K > free_K).to(value_K.dtype),
        }

    policy = surrogate_of(
        credit, Clip(clip_low, clip_high), kl_beta=kl_beta, updates=updates, kl_in_loss=False
    )
    critic = Critic(
        value_loss=value_loss, learning_rate=critic_learning_rate, observe=observe_values
    )
    return replace(policy, critic=critic)


def token_rewards(batch: StepBatch, kl_beta: float) -> Float[Tensor, "K"]:
    """The reward of each token, float64: minus the divergence, and that of the completion at its last token."""
    reward_K = torch.zeros(int(batch.lengths_P_G.sum()), dtype=torch.float64)
    if kl_beta > 0:
        assert batch.reference_logp_K is not None, "the trainer computes reference_logp for kl_beta"
        reward_K -= kl_beta * (batch.sampled_logp_K - batch.reference_logp_K)

    # a completion without tokens has no last one, and no other's may take its reward
    length_N = batch.lengths_P_G.flatten()
    has_tokens_N = length_N > 0
    last_N = length_N.cumsum(0) - 1
    reward_K[last_N[has_tokens_N]] += batch.rewards_P_G.flatten()[has_tokens_N]
    return reward_K


def gae(
    reward_K: Float[Tensor, "K"],
    value_K: Float[Tensor, "K"],
    lengths_P_G: Int[Tensor, "P G"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "K"]:
    """Generalized advantage estimates of each token (arXiv:1506.02438, eq. 16). After a completion nothing is worth anything."""
    length_N = lengths_P_G.flatten()
    longest = int(length_N.max()) if len(length_N) else 0
    inside_N_T = torch.arange(longest) < length_N[:, None]

    # rows of one completion each, with zeros behind it
    reward_N_T = value_K.new_zeros(inside_N_T.shape).masked_scatter(inside_N_T, reward_K)
    value_N_T = value_K.new_zeros(inside_N_T.shape).masked_scatter(inside_N_T, value_K)

    advantage_N_T = torch.zeros_like(value_N_T)
    following_N = value_K.new_zeros(len(length_N))
    next_value_N = torch.zeros_like(following_N)
    for t in reversed(range(longest)):
        delta_N = reward_N_T[:, t] + gamma * next_value_N - value_N_T[:, t]
        following_N = delta_N + gamma * lam * following_N
        next_value_N = value_N_T[:, t]
        advantage_N_T[:, t] = following_N
    return advantage_N_T[inside_N_T]


def value_losses(value_K: Tensor, inputs: Inputs, value_clip: float) -> tuple[Tensor, Tensor]:
    """(of the value, of the value kept within `value_clip` of V): half the squared distance from the return."""
    kept_K = value_K.clamp(inputs.old_value_K - value_clip, inputs.old_value_K + value_clip)
    free_K, clipped_K = value_K - inputs.return_K, kept_K - inputs.return_K
    return 0.5 * free_K.square(), 0.5 * clipped_K.square()


def explained_variance(
    value_K: Float[Tensor, "K"], return_K: Float[Tensor, "K"], batch: StepBatch
) -> float | None:
    """1 - Var(return - value) / Var(return) over the tokens of all processes; None where the returns hardly differ.

    1: the critic knows what follows; 0: no better than a constant; below 0: worse.
    """
    tokens = max(batch.counts.tokens, 1)
    both_2_K = torch.stack([return_K, return_K - value_K])
    totals = batch.total(both_2_K.sum(dim=1).tolist())
    centred_2_K = both_2_K - torch.tensor(totals, dtype=torch.float64)[:, None] / tokens

    of_returns, of_errors = batch.total(centred_2_K.square().sum(dim=1).tolist())
    # equal returns have a variance too, of what rounding leaves
    return 1 - of_errors / of_returns if of_returns > tokens * VARIANCE_FLOOR else None
